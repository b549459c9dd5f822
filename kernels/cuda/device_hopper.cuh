// What only sm_90a has: warpgroup products from shared memory, and barriers in shared memory. Under
// RATPLUS_EMULATION the same functions come from ../emulator/src/device_hopper_host.h.
//
// A warpgroup is four consecutive warps, the first one's number a multiple of four. Operands in
// shared memory are rows of 128 bytes, 64 elements of sixteen bits, in the 128-byte swizzle: chunk
// c of sixteen bytes of row r lies at chunk c ^ (r % 8). Tiles start at multiples of 1024 bytes.
#pragma once
#include "device.cuh"

#if defined(RATPLUS_EMULATION)
#include "device_hopper_host.h"
#else

namespace ratplus {

// --- barriers ---------------------------------------------------------------------------------

// Reached by every thread of one warpgroup; `id` from 1 to 15, one for each warpgroup.
RATPLUS_DEVICE void warpgroup_barrier(u32 id) { asm volatile("bar.sync %0, 128;" ::"r"(id) : "memory"); }
// Barrier ID, of no warpgroup, where some wait until others gave them the turn: THREADS in all. As many
// turns are given as are waited for when the block ends.
template <u32 ID, u32 THREADS>
RATPLUS_DEVICE void turn_wait() {
    asm volatile("bar.sync %0, %1;" ::"n"(ID), "n"(THREADS) : "memory");
}
template <u32 ID, u32 THREADS>
RATPLUS_DEVICE void turn_give() {
    asm volatile("bar.arrive %0, %1;" ::"n"(ID), "n"(THREADS) : "memory");
}

// A barrier in shared memory that flips its phase, at first 0, whenever `count` arrivals are complete.
RATPLUS_DEVICE void barrier_init(u64* barrier, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
RATPLUS_DEVICE void barrier_arrive(u64* barrier) {
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Waits until the phase of this parity is complete.
RATPLUS_DEVICE void barrier_wait(u64* barrier, u32 parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}
// Makes this thread's writes to shared memory visible to warpgroup products after a barrier.
RATPLUS_DEVICE void fence_for_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// --- registers --------------------------------------------------------------------------------

template <u32 COUNT>
RATPLUS_DEVICE void raise_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <u32 COUNT>
RATPLUS_DEVICE void lower_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// --- warpgroup products -----------------------------------------------------------------------

// Orders register accesses before and products after; the first thing of a batch of products.
RATPLUS_DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Ends a batch of products.
RATPLUS_DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most `PENDING` batches are under way.
template <int PENDING>
RATPLUS_DEVICE void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// Keeps the compiler from moving accesses to a result across this point.
template <i32 COUNT>
RATPLUS_DEVICE void products_touch(float (&sum)[COUNT]) {
    RATPLUS_UNROLL
    for (i32 i = 0; i < COUNT; ++i) {
        asm volatile("" : "+f"(sum[i])::"memory");
    }
}

// A tile for a product, with two distances in bytes: see the two makers below. Fields as in the PTX
// ISA's matrix descriptor; the swizzle of 128 bytes is number 1.
RATPLUS_DEVICE u64 tile_descriptor(const void* start, u32 leading, u32 stride) {
    return static_cast<u64>(shared_address(start) >> 4 & 0x3fff) | static_cast<u64>(leading >> 4) << 16 |
           static_cast<u64>(stride >> 4) << 32 | 1ull << 62;
}

#define RATPLUS_D32                                                                                       \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
    "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define RATPLUS_D64                                                                                       \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
    "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "  \
    "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "  \
    "%62, %63}"
#define RATPLUS_F8(d, i)                                                                                \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
        "+f"(d[i + 7])
#define RATPLUS_F32(d) RATPLUS_F8(d, 0), RATPLUS_F8(d, 8), RATPLUS_F8(d, 16), RATPLUS_F8(d, 24)
#define RATPLUS_F64(d) \
    RATPLUS_F32(d), RATPLUS_F8(d, 32), RATPLUS_F8(d, 40), RATPLUS_F8(d, 48), RATPLUS_F8(d, 56)

// The warpgroup's 64 x N of f32, N twice COUNT: warp w has rows 16 w to 16 w + 15, in each eight
// columns as a result of mma.m16n8k16.
template <typename T>
struct Products;

#define RATPLUS_PRODUCTS(T, TYPE)                                                                              \
    template <>                                                                                                \
    struct Products<T> {                                                                                       \
        /* sum (+)= a b^T: rows of 16 elements of `a` (64 of them) and of `b` (N of them). */                  \
        static RATPLUS_DEVICE void rows(float (&d)[32], u64 a, u64 b, bool add) {                              \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"                                          \
                         "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " " RATPLUS_D32           \
                         ", %32, %33, p, 1, 1, 0, 0;\n}"                                                       \
                         : RATPLUS_F32(d)                                                                      \
                         : "l"(a), "l"(b), "r"(static_cast<i32>(add)));                                        \
        }                                                                                                      \
        static RATPLUS_DEVICE void rows(float (&d)[64], u64 a, u64 b, bool add) {                              \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"                                          \
                         "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " " RATPLUS_D64          \
                         ", %64, %65, p, 1, 1, 0, 0;\n}"                                                       \
                         : RATPLUS_F64(d)                                                                      \
                         : "l"(a), "l"(b), "r"(static_cast<i32>(add)));                                        \
        }                                                                                                      \
        /* sum += a b: `a` in fragments of mma.m16n8k16, `b` sixteen rows of N elements. */                    \
        static RATPLUS_DEVICE void columns(float (&d)[32], const u32 (&a)[4], u64 b) {                         \
            asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " " RATPLUS_D32           \
                         ", {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"                                            \
                         : RATPLUS_F32(d)                                                                      \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                \
        }                                                                                                      \
        static RATPLUS_DEVICE void columns(float (&d)[64], const u32 (&a)[4], u64 b) {                         \
            asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " " RATPLUS_D64          \
                         ", {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"                                            \
                         : RATPLUS_F64(d)                                                                      \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                \
        }                                                                                                      \
    };

RATPLUS_PRODUCTS(bf16, "bf16")
RATPLUS_PRODUCTS(f16, "f16")

#undef RATPLUS_PRODUCTS
#undef RATPLUS_F64
#undef RATPLUS_F32
#undef RATPLUS_F8
#undef RATPLUS_D64
#undef RATPLUS_D32

}  // namespace ratplus
#endif

namespace ratplus {

// Elements in a row of a shared tile.
constexpr i32 TILE_ROW = 64;
// Elements from a group of eight rows to the next.
constexpr i32 EIGHT_ROWS = 8 * TILE_ROW;

// Rows of sixteen elements, from column `16 * k` of a tile on: eight rows and eight rows are 1024
// bytes apart. The swizzle is of the address, so a start within the row is fine.
template <typename T>
RATPLUS_DEVICE u64 rows_descriptor(const T* tile, i32 k) {
    return tile_descriptor(tile + 16 * k, 16, EIGHT_ROWS * 2);
}
// Sixteen rows from row `16 * k` on, of 64 columns in each of tiles that are `next` elements apart.
template <typename T>
RATPLUS_DEVICE u64 columns_descriptor(const T* tile, i32 k, i32 next) {
    return tile_descriptor(tile + 16 * k * TILE_ROW, static_cast<u32>(next) * 2, EIGHT_ROWS * 2);
}

}  // namespace ratplus
