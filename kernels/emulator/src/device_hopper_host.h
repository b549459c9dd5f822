// The functions of kernels/cuda/device_hopper.cuh on the CPU, one for one; what they promise
// stands there.
#pragma once
#include "device_host.h"

namespace ratplus {

namespace emulator {

// A product of a warpgroup on its way: this thread's share of it.
struct Product {
    // Of T: rows of `a` times rows of `b`, or fragments times columns of `b`.
    bool columns;
    bool bf16;
    bool add;
    u32 width;
    float* sum;
    u64 a;
    u64 b;
};

void warpgroup_barrier(u32 id, Site site);
void turn_wait(u32 id, u32 threads, Site site);
void turn_give(u32 id, u32 threads, Site site);
void barrier_init(u64* barrier, u32 count, Site site);
void barrier_arrive(u64* barrier, Site site);
void barrier_wait(u64* barrier, u32 parity, Site site);
u64 tile_descriptor(const void* start, u32 leading, u32 stride, Site site);
// `fragment` holds four words where the product is of columns.
void product(const Product& product, const u32* fragment, Site site);
void fence_for_products();
void products_begin();
void products_commit();
void products_wait(u32 pending);

}  // namespace emulator

inline void warpgroup_barrier(u32 id, RATPLUS_SITE) { emulator::warpgroup_barrier(id, site); }
template <u32 ID, u32 THREADS>
inline void turn_wait(RATPLUS_SITE) {
    emulator::turn_wait(ID, THREADS, site);
}
template <u32 ID, u32 THREADS>
inline void turn_give(RATPLUS_SITE) {
    emulator::turn_give(ID, THREADS, site);
}
inline void barrier_init(u64* barrier, u32 count, RATPLUS_SITE) { emulator::barrier_init(barrier, count, site); }
inline void barrier_arrive(u64* barrier, RATPLUS_SITE) { emulator::barrier_arrive(barrier, site); }
inline void barrier_wait(u64* barrier, u32 parity, RATPLUS_SITE) { emulator::barrier_wait(barrier, parity, site); }
inline void fence_for_products() { emulator::fence_for_products(); }

template <u32 COUNT>
inline void raise_registers() {}
template <u32 COUNT>
inline void lower_registers() {}

inline void products_begin() { emulator::products_begin(); }
inline void products_commit() { emulator::products_commit(); }
template <int PENDING>
inline void products_wait() {
    emulator::products_wait(PENDING);
}
template <i32 COUNT>
inline void products_touch(float (&)[COUNT]) {}

inline u64 tile_descriptor(const void* start, u32 leading, u32 stride, RATPLUS_SITE) {
    return emulator::tile_descriptor(start, leading, stride, site);
}

template <typename T>
struct Products {
    template <u32 COUNT>
    static void rows(float (&d)[COUNT], u64 a, u64 b, bool add, RATPLUS_SITE) {
        emulator::product({false, IS_BF16, add, 2 * COUNT, d, a, b}, nullptr, site);
    }
    template <u32 COUNT>
    static void columns(float (&d)[COUNT], const u32 (&a)[4], u64 b, RATPLUS_SITE) {
        emulator::product({true, IS_BF16, true, 2 * COUNT, d, 0, b}, a, site);
    }

private:
    static constexpr bool IS_BF16 = __is_same(T, bf16);
};

}  // namespace ratplus
