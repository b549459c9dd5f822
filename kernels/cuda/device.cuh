// The hardware as the kernels see it. Everything that is no plain C++ goes through here: below is
// the GPU; under RATPLUS_EMULATION the same functions come from ../emulator/src/device_host.h and
// run on the CPU.
//
// Rules that both sides rely on:
// - `block_barrier` is reached by every thread of the block, warp functions by every lane.
// - A kernel's shared memory is dynamic, from `shared_memory()`, and holds garbage at the start.
// - `copy_async16` may be read after `copy_async_wait` of its group and then a barrier.
#pragma once
#include "types.cuh"

#if defined(RATPLUS_EMULATION)
#include "device_host.h"
#else

// Defines `extern "C" __global__ name(const PARAMS p)`; the body follows.
#define RATPLUS_KERNEL(name, PARAMS, max_threads, min_blocks) \
    extern "C" __global__ void __launch_bounds__(max_threads, min_blocks) name(const __grid_constant__ PARAMS p)

namespace ratplus {

RATPLUS_DEVICE u32 thread_index() { return threadIdx.x; }
// The same, read again: no register has to keep it from an earlier use.
RATPLUS_DEVICE u32 thread_index_again() {
    u32 index;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
    return index;
}
RATPLUS_DEVICE u32 block_x() { return blockIdx.x; }
RATPLUS_DEVICE u32 block_y() { return blockIdx.y; }
RATPLUS_DEVICE u32 block_z() { return blockIdx.z; }
RATPLUS_DEVICE u32 grid_x() { return gridDim.x; }
RATPLUS_DEVICE u32 block_threads() { return blockDim.x; }

RATPLUS_DEVICE u8* shared_memory() {
    extern __shared__ __align__(1024) u8 ratplus_shared[];
    return ratplus_shared;
}

// --- barriers and warp exchange -----------------------------------------------------------------

RATPLUS_DEVICE void block_barrier() { __syncthreads(); }
RATPLUS_DEVICE void warp_barrier() { __syncwarp(); }
// The value of the lane whose number differs in the bits of `mask`.
RATPLUS_DEVICE float shuffle_xor(float value, u32 mask) { return __shfl_xor_sync(~0u, value, mask); }
RATPLUS_DEVICE u32 shuffle_xor(u32 value, u32 mask) { return __shfl_xor_sync(~0u, value, mask); }
// The value of the lane `delta` below; one's own where there is none.
RATPLUS_DEVICE float shuffle_up(float value, u32 delta) { return __shfl_up_sync(~0u, value, delta); }
// The value of `lane`.
RATPLUS_DEVICE float shuffle(float value, u32 lane) { return __shfl_sync(~0u, value, lane); }
RATPLUS_DEVICE u32 shuffle(u32 value, u32 lane) { return __shfl_sync(~0u, value, lane); }

// --- other blocks and the host --------------------------------------------------------------

RATPLUS_DEVICE u32 atomic_increment(u32* address) { return atomicAdd(address, 1u); }
// Between two `block_barrier`s: what the block wrote before is seen by blocks that increment later, and
// what earlier ones wrote by this block after.
RATPLUS_DEVICE u64 atomic_increment_ordered(u64* address) {
    u64 old;
    asm volatile("atom.acq_rel.gpu.global.add.u64 %0, [%1], 1;" : "=l"(old) : "l"(address) : "memory");
    return old;
}
// What other blocks may change meanwhile.
RATPLUS_DEVICE u64 load_relaxed(const u64* address) {
    u64 value;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(address) : "memory");
    return value;
}
RATPLUS_DEVICE void store_relaxed(u64* address, u64 value) {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
}
// Stores `value` where `expected` still is.
RATPLUS_DEVICE void compare_and_store(u64* address, u64 expected, u64 value) {
    asm volatile("{ .reg .b64 old; atom.relaxed.gpu.global.cas.b64 old, [%0], %1, %2; }" ::"l"(address), "l"(expected),
                 "l"(value)
                 : "memory");
}
RATPLUS_DEVICE u32 load_acquire(const u32* address) {
    u32 value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    return value;
}
// Behind a `block_barrier` it releases what every thread of the block wrote before.
RATPLUS_DEVICE void store_release(u32* address, u32 value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}
// What other blocks of this launch wrote: past the first-level cache.
RATPLUS_DEVICE float load_shared_by_blocks(const float* address) {
    float value;
    asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(value) : "l"(address) : "memory");
    return value;
}
// Eight bytes to memory that the host reads while the kernel runs.
RATPLUS_DEVICE void store_to_host(u64* address, u64 value) {
    asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
}
// Between two looks at a value that another block will write.
RATPLUS_DEVICE void spin_pause() { __nanosleep(20); }

// --- global and shared memory -----------------------------------------------------------------

RATPLUS_DEVICE Vec16 load16(const void* address) { return *static_cast<const Vec16*>(address); }
RATPLUS_DEVICE void store16(void* address, const Vec16& value) { *static_cast<Vec16*>(address) = value; }
// Global memory that is read once.
RATPLUS_DEVICE Vec16 load16_once(const void* address) {
    Vec16 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                 : "l"(address));
    return v;
}
// Global memory that is written once and not read again soon.
RATPLUS_DEVICE void store16_once(void* address, const Vec16& v) {
    asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(v.word[0]), "r"(v.word[1]),
                 "r"(v.word[2]), "r"(v.word[3])
                 : "memory");
}

RATPLUS_DEVICE u32 shared_address(const void* address) {
    return static_cast<u32>(__cvta_generic_to_shared(address));
}
// Copies 16 bytes from global to shared memory behind the thread's back; zeros where not `valid`,
// and then `from` is not read but has to be a valid address all the same.
RATPLUS_DEVICE void copy_async16(void* to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(valid ? 16 : 0)
                 : "memory");
}
// Ends a group of copies.
RATPLUS_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `PENDING` groups of this thread are under way.
template <int PENDING>
RATPLUS_DEVICE void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// --- arithmetic -----------------------------------------------------------------------------------

// 2^x to 2 units in the last place; 0 at minus infinity.
RATPLUS_DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// a * b + c with one rounding.
RATPLUS_DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
RATPLUS_DEVICE float divide(float a, float b) { return __fdividef(a, b); }
// 1 / x to 1 unit in the last place, for x from 2^-126 to 2^126.
RATPLUS_DEVICE float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
RATPLUS_DEVICE float larger(float a, float b) { return fmaxf(a, b); }
RATPLUS_DEVICE float smaller(float a, float b) { return fminf(a, b); }
RATPLUS_DEVICE float magnitude(float a) { return fabsf(a); }
RATPLUS_DEVICE float from_bits(u32 bits) { return __uint_as_float(bits); }
RATPLUS_DEVICE u32 to_bits(float value) { return __float_as_uint(value); }

RATPLUS_DEVICE float widen(float value) { return value; }
RATPLUS_DEVICE float widen(bf16 value) { return from_bits(static_cast<u32>(value.bits) << 16); }
RATPLUS_DEVICE float widen(f16 value) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
}
// Rounds to nearest even.
template <typename T>
RATPLUS_DEVICE T narrow(float value);
template <>
RATPLUS_DEVICE float narrow<float>(float value) { return value; }
template <>
RATPLUS_DEVICE bf16 narrow<bf16>(float value) {
    bf16 out;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
    return out;
}
template <>
RATPLUS_DEVICE f16 narrow<f16>(float value) {
    f16 out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
    return out;
}
// Two elements in one word, `low` first in memory.
template <typename T>
RATPLUS_DEVICE u32 pack2(float low, float high);
template <>
RATPLUS_DEVICE u32 pack2<bf16>(float low, float high) {
    u32 out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}
template <>
RATPLUS_DEVICE u32 pack2<f16>(float low, float high) {
    u32 out;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}

// --- matrix fragments ---------------------------------------------------------------------------

// Four 8 x 8 blocks of 16-bit elements: lane l gives the address of row l % 8 of block l / 8 and
// receives, of each block, columns 2 (l % 4) and the next of row l / 4.
RATPLUS_DEVICE void load_blocks(u32 (&block)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(block[0]), "=r"(block[1]), "=r"(block[2]), "=r"(block[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// The same, each block transposed.
RATPLUS_DEVICE void load_blocks_transposed(u32 (&block)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(block[0]), "=r"(block[1]), "=r"(block[2]), "=r"(block[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// c += a b: a is 16 x 16 row-major, b 16 x 8 column-major, c 16 x 8, in the fragments of
// mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16").
template <typename T>
RATPLUS_DEVICE void multiply_blocks(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1);
template <>
RATPLUS_DEVICE void multiply_blocks<bf16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
RATPLUS_DEVICE void multiply_blocks<f16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace ratplus
#endif
