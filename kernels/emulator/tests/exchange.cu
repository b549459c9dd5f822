// Barriers, warp exchange, blocks that wait for each other.
#include "device.cuh"

using namespace ratplus;

struct SumParams {
    const float* in;
    float* out;
    // For each thread: shuffles of its index.
    float* shuffled;
};

// The block's sum by a tree in shared memory, then the warps' sums by exchange.
RATPLUS_KERNEL(test_sum, SumParams, 1024, 1) {
    float* const tree = reinterpret_cast<float*>(shared_memory());
    const u32 thread = thread_index();
    const u32 at = block_x() * block_threads() + thread;
    tree[thread] = p.in[at];
    block_barrier();
    for (u32 half = block_threads() / 2; half >= WARP; half /= 2) {
        if (thread < half) {
            tree[thread] += tree[thread + half];
        }
        block_barrier();
    }
    if (thread < WARP) {
        float sum = tree[thread];
        for (u32 mask = 16; mask > 0; mask /= 2) {
            sum += shuffle_xor(sum, mask);
        }
        warp_barrier();
        if (thread == 0) {
            p.out[block_x()] = sum;
        }
    }
    const float index = static_cast<float>(thread);
    p.shuffled[4 * at] = shuffle_xor(index, 5);
    p.shuffled[4 * at + 1] = shuffle_up(index, 3);
    p.shuffled[4 * at + 2] = shuffle(index, (thread + 7) % WARP);
    p.shuffled[4 * at + 3] = static_cast<float>(shuffle(thread, 31 - thread % WARP));
}

struct ChainParams {
    const float* in;
    float* out;
    // Zero: a ticket, then a flag for each block.
    u32* flags;
    // The running sum after each block.
    float* sums;
    // Waits by block index, which is a mistake.
    i32 by_index;
};

// A running sum over all blocks, each waiting for the one before.
RATPLUS_KERNEL(test_chain, ChainParams, 256, 1) {
    u32* const shared = reinterpret_cast<u32*>(shared_memory());
    if (thread_index() == 0) {
        shared[0] = p.by_index != 0 ? block_x() : atomic_increment(p.flags);
    }
    block_barrier();
    const u32 tile = shared[0];
    float* const before = reinterpret_cast<float*>(shared + 1);
    if (thread_index() == 0) {
        *before = 0.0f;
        if (tile > 0) {
            while (load_acquire(p.flags + tile) == 0) {
                spin_pause();
            }
            *before = load_shared_by_blocks(p.sums + tile - 1);
        }
        float sum = *before;
        for (u32 i = 0; i < block_threads(); ++i) {
            sum += p.in[tile * block_threads() + i];
        }
        p.sums[tile] = sum;
        store_release(p.flags + tile + 1, 1);
    }
    block_barrier();
    float sum = *before;
    for (u32 i = 0; i <= thread_index(); ++i) {
        sum += p.in[tile * block_threads() + i];
    }
    p.out[tile * block_threads() + thread_index()] = sum;
}

struct GeometryParams {
    // [z, y, x, threads, 6]
    u32* out;
    u64* host;
};

RATPLUS_KERNEL(test_geometry, GeometryParams, 64, 1) {
    const u32 block = (block_z() * 3 + block_y()) * grid_x() + block_x();
    u32* const out = p.out + 6 * (block * block_threads() + thread_index());
    out[0] = block_x();
    out[1] = block_y();
    out[2] = block_z();
    out[3] = grid_x();
    out[4] = block_threads();
    out[5] = thread_index();
    if (thread_index() == 0 && block == 0) {
        store_to_host(p.host, 0x123456789abcdef0ull);
    }
}
