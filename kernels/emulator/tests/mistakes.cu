// Kernels that are wrong, each in a way of its own.
#include "device.cuh"

using namespace ratplus;

enum Mistake : i32 {
    NONE,
    EXITS_BEFORE_BARRIER,
    DIFFERENT_BARRIERS,
    LANE_MISSING,
    DIFFERENT_CALLS,
    BARRIER_AND_SHUFFLE,
    SPINS_FOREVER,
    LOOKS_FOREVER,
    UNALIGNED_LOAD,
    UNALIGNED_STORE,
    UNALIGNED_COPY,
    UNALIGNED_ROW,
    COPY_NOT_WAITED,
    COPY_NOT_COMMITTED,
    COPY_PAST_SHARED,
    ROW_PAST_SHARED,
    SHARED_OVERRUN,
    SHARED_CANARY,
    SHARED_BEFORE,
    GLOBAL_OVERRUN,
    NULL_POINTER,
    DIVISION_BY_ZERO,
    STACK_OVERFLOW,
    COPY_FROM_NOWHERE,
};

struct MistakeParams {
    // 64 elements
    u32* memory;
    Mistake mistake;
};

__attribute__((noinline)) static u32 descend(volatile u32* memory, u32 depth) {
    volatile u32 frame[256];
    frame[depth % 256] = memory[0];
    return depth == 0 ? frame[0] : descend(frame, depth - 1) + frame[1];
}

// 64 threads and 256 bytes of shared memory, but for the alignment.
RATPLUS_KERNEL(test_mistake, MistakeParams, 64, 1) {
    const u32 thread = thread_index();
    u8* const shared = shared_memory();
    const bool last = thread == 63;
    u32 block[4];
    switch (p.mistake) {
        case NONE: break;
        case EXITS_BEFORE_BARRIER:
            if (last) {
                return;
            }
            break;
        case DIFFERENT_BARRIERS:
            if (last) {
                block_barrier();
                return;
            }
            break;
        case LANE_MISSING:
            if (!last) {
                warp_barrier();
            }
            break;
        case DIFFERENT_CALLS:
            if (last) {
                shuffle(1.0f, 0);
            } else {
                shuffle_xor(1.0f, 1);
            }
            break;
        case BARRIER_AND_SHUFFLE:
            if (thread < WARP) {
                shuffle(1.0f, 0);
            } else if (thread % 2 == 0) {
                warp_barrier();
            }
            break;
        case SPINS_FOREVER:
            while (last && load_acquire(p.memory) != 1) {
                spin_pause();
            }
            break;
        case LOOKS_FOREVER:
            while (last && load_acquire(p.memory) != 1) {
            }
            break;
        case UNALIGNED_LOAD: store16(p.memory, load16(p.memory + 1)); break;
        case UNALIGNED_STORE: store16_once(p.memory + 2, load16_once(p.memory)); break;
        case UNALIGNED_COPY: copy_async16(shared + 8, p.memory, true); break;
        case UNALIGNED_ROW: load_blocks(block, shared + 4); break;
        case COPY_NOT_WAITED:
            copy_async16(shared, p.memory, true);
            copy_async_commit();
            copy_async_wait<1>();
            break;
        case COPY_NOT_COMMITTED:
            copy_async16(shared, p.memory, true);
            copy_async_wait<0>();
            break;
        case COPY_PAST_SHARED: copy_async16(shared + 256, p.memory, false); break;
        case ROW_PAST_SHARED: load_blocks_transposed(block, shared + 256); break;
        case SHARED_OVERRUN: *const_cast<volatile u8*>(shared + 1024) = 1; break;
        case SHARED_CANARY: *const_cast<volatile u8*>(shared + 256) = 1; break;
        case SHARED_BEFORE: *const_cast<volatile u8*>(shared - 1) = 1; break;
        case GLOBAL_OVERRUN: *const_cast<volatile u32*>(p.memory + 64) = 1; break;
        case NULL_POINTER: *static_cast<volatile u32*>(nullptr) = 1; break;
        case DIVISION_BY_ZERO: p.memory[0] = 1000 / *const_cast<volatile u32*>(p.memory + 1); break;
        case STACK_OVERFLOW: p.memory[0] = descend(p.memory, 100000 + thread); break;
        case COPY_FROM_NOWHERE: copy_async16(shared, nullptr, false); break;
    }
    block_barrier();
}
