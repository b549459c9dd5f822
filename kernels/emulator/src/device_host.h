// The functions of kernels/cuda/device.cuh on the CPU, one for one; what they promise stands
// there. Misuse that a GPU would pass over in silence ends the launch here.
#pragma once
#include "conversions.h"
#include "engine.h"

// Defines and registers a kernel; the body follows.
#define RATPLUS_KERNEL(name, PARAMS, max_threads, min_blocks) \
    RATPLUS_KERNEL_EXPANDED(name, PARAMS, max_threads, min_blocks)
#define RATPLUS_KERNEL_EXPANDED(name, PARAMS, max_threads, min_blocks)                                       \
    extern "C" void ratplus_kernel_##name(const PARAMS& p);                                                  \
    static const ::ratplus::emulator::Kernel ratplus_registered_##name(                                      \
        #name, __FILE__, #PARAMS, sizeof(PARAMS), max_threads, min_blocks,                                  \
        [](const void* params) { ratplus_kernel_##name(*static_cast<const PARAMS*>(params)); });             \
    extern "C" void ratplus_kernel_##name([[maybe_unused]] const PARAMS& p)

namespace ratplus {

inline u32 thread_index() { return emulator::current->index; }
inline u32 thread_index_again() { return thread_index(); }
inline u32 block_x() { return emulator::current->block[0]; }
inline u32 block_y() { return emulator::current->block[1]; }
inline u32 block_z() { return emulator::current->block[2]; }
inline u32 grid_x() { return emulator::current->grid[0]; }
inline u32 block_threads() { return emulator::current->threads; }
inline u8* shared_memory() { return emulator::current->shared; }

// --- barriers and warp exchange -----------------------------------------------------------------

inline void block_barrier(RATPLUS_SITE) { emulator::block_barrier(site); }
inline void warp_barrier(RATPLUS_SITE) { emulator::warp_barrier(site); }
inline float shuffle_xor(float value, u32 mask, RATPLUS_SITE) {
    return from_bits(emulator::exchange(emulator::Call::shuffle_xor, to_bits(value), mask, site));
}
inline u32 shuffle_xor(u32 value, u32 mask, RATPLUS_SITE) {
    return emulator::exchange(emulator::Call::shuffle_xor, value, mask, site);
}
inline float shuffle_up(float value, u32 delta, RATPLUS_SITE) {
    return from_bits(emulator::exchange(emulator::Call::shuffle_up, to_bits(value), delta, site));
}
inline float shuffle(float value, u32 lane, RATPLUS_SITE) {
    return from_bits(emulator::exchange(emulator::Call::shuffle, to_bits(value), lane, site));
}
inline u32 shuffle(u32 value, u32 lane, RATPLUS_SITE) {
    return emulator::exchange(emulator::Call::shuffle, value, lane, site);
}

// --- other blocks and the host --------------------------------------------------------------

inline u32 atomic_increment(u32* address) {
    emulator::note_progress();
    return __atomic_fetch_add(address, 1u, __ATOMIC_RELAXED);
}
inline u64 atomic_increment_ordered(u64* address) {
    emulator::note_progress();
    return __atomic_fetch_add(address, u64{1}, __ATOMIC_ACQ_REL);
}
inline u64 load_relaxed(const u64* address) { return __atomic_load_n(address, __ATOMIC_RELAXED); }
inline void store_relaxed(u64* address, u64 value) { __atomic_store_n(address, value, __ATOMIC_RELAXED); }
inline void compare_and_store(u64* address, u64 expected, u64 value) {
    emulator::note_progress();
    __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}
inline u32 load_acquire(const u32* address, RATPLUS_SITE) {
    emulator::note_look(site);
    return __atomic_load_n(address, __ATOMIC_ACQUIRE);
}
inline void store_release(u32* address, u32 value) {
    emulator::note_progress();
    __atomic_store_n(address, value, __ATOMIC_RELEASE);
}
inline float load_shared_by_blocks(const float* address) {
    float value;
    __atomic_load(address, &value, __ATOMIC_RELAXED);
    return value;
}
inline void store_to_host(u64* address, u64 value) { __atomic_store_n(address, value, __ATOMIC_RELAXED); }
inline void spin_pause(RATPLUS_SITE) { emulator::spin(site); }

// --- global and shared memory -----------------------------------------------------------------

namespace emulator {
inline void check_aligned16(const void* address, Site site) {
    if ((reinterpret_cast<u64>(address) & 15) != 0) {
        fault(Status::misaligned_address, site, "16 bytes at %p, which is no multiple of 16", address);
    }
}
}  // namespace emulator

inline Vec16 load16(const void* address, RATPLUS_SITE) {
    emulator::check_aligned16(address, site);
    Vec16 value;
    __builtin_memcpy(&value, address, sizeof value);
    return value;
}
inline void store16(void* address, const Vec16& value, RATPLUS_SITE) {
    emulator::check_aligned16(address, site);
    const u64 offset = reinterpret_cast<u64>(address) - reinterpret_cast<u64>(emulator::current->shared);
    if (offset < emulator::current->shared_bytes) {
        emulator::note_store16(offset, site);
    }
    __builtin_memcpy(address, &value, sizeof value);
}
inline Vec16 load16_once(const void* address, RATPLUS_SITE) { return load16(address, site); }
inline void store16_once(void* address, const Vec16& value, RATPLUS_SITE) { store16(address, value, site); }

inline void copy_async16(void* to, const void* from, bool valid, RATPLUS_SITE) {
    emulator::copy_async16(to, from, valid, site);
}
inline void copy_async_commit() { emulator::copy_async_commit(); }
template <int PENDING>
inline void copy_async_wait() {
    static_assert(PENDING >= 0);
    emulator::copy_async_wait(PENDING);
}

// --- arithmetic -----------------------------------------------------------------------------------

inline float exp2_fast(float x) {
    const float y = __builtin_exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}
inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float divide(float a, float b) {
    // The GPU's fast division gives up on these denominators.
    const float size = __builtin_fabsf(b);
    return size > 0x1p126f && size < __builtin_inff() ? a * 0.0f : a / b;
}
inline float reciprocal(float x) { return 1.0f / x; }
// As on the GPU, 0 is larger than -0.
inline float larger(float a, float b) { return a == b ? from_bits(to_bits(a) & to_bits(b)) : __builtin_fmaxf(a, b); }
inline float smaller(float a, float b) { return a == b ? from_bits(to_bits(a) | to_bits(b)) : __builtin_fminf(a, b); }
inline float magnitude(float a) { return __builtin_fabsf(a); }

// --- matrix fragments ---------------------------------------------------------------------------

inline void load_blocks(u32 (&block)[4], const void* row, RATPLUS_SITE) {
    emulator::load_blocks(emulator::Call::load_blocks, block, row, site);
}
inline void load_blocks_transposed(u32 (&block)[4], const void* row, RATPLUS_SITE) {
    emulator::load_blocks(emulator::Call::load_blocks_transposed, block, row, site);
}
template <typename T>
void multiply_blocks(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, RATPLUS_SITE);
template <>
inline void multiply_blocks<bf16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, emulator::Site site) {
    emulator::multiply_blocks(emulator::Call::multiply_bf16, c, a, b0, b1, site);
}
template <>
inline void multiply_blocks<f16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, emulator::Site site) {
    emulator::multiply_blocks(emulator::Call::multiply_f16, c, a, b0, b1, site);
}

}  // namespace ratplus
