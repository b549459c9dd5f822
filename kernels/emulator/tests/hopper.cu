// Warpgroup products and barriers in shared memory.
#include "device_hopper.cuh"

using namespace ratplus;

constexpr i32 WIDTH = 128;

struct WarpgroupParams {
    // [64, 64]
    const void* a;
    // [WIDTH, 64]
    const void* b;
    // [64, WIDTH]
    const void* v;
    // [2, 64, WIDTH]: a b^T, a v
    float* out;
    // Leaves out the wait for the last products.
    i32 mistake;
};

// Rows of 64 elements, from `from` with `stride` elements a row, in the swizzle.
template <typename T>
inline void fill(T* tile, const void* from, i32 rows, i32 stride) {
    for (i32 i = static_cast<i32>(thread_index()); i < rows * 8; i += static_cast<i32>(block_threads())) {
        const i32 row = i / 8;
        const i32 chunk = i % 8;
        const T* const source = static_cast<const T*>(from) + static_cast<i64>(row) * stride + 8 * chunk;
        store16(tile + row * TILE_ROW + 8 * (chunk ^ row % 8), load16(source));
    }
}

inline void write_sum(float* out, const float (&sum)[WIDTH / 2]) {
    const i32 lane = static_cast<i32>(thread_index() % WARP);
    const i32 row = static_cast<i32>(thread_index() / WARP) * 16 + lane / 4;
    for (i32 i = 0; i < WIDTH / 2; ++i) {
        out[(row + i / 2 % 2 * 8) * WIDTH + i / 4 * 8 + lane % 4 * 2 + i % 2] = sum[i];
    }
}

template <typename T>
inline void warpgroup_products(const WarpgroupParams& p) {
    T* const a = reinterpret_cast<T*>(shared_memory());
    T* const b = a + 64 * TILE_ROW;
    T* const v = b + WIDTH * TILE_ROW;
    fill(a, p.a, 64, 64);
    fill(b, p.b, WIDTH, 64);
    fill(v, p.v, 64, WIDTH);
    fill(v + 64 * TILE_ROW, static_cast<const T*>(p.v) + 64, 64, WIDTH);
    fence_for_products();
    block_barrier();
    float sum[WIDTH / 2];
    products_begin();
    for (i32 k = 0; k < 4; ++k) {
        Products<T>::rows(sum, rows_descriptor(a, k), rows_descriptor(b, k), k > 0);
    }
    products_commit();
    products_wait<0>();
    products_touch(sum);
    write_sum(p.out, sum);

    float other[WIDTH / 2] = {};
    const u32 lane = thread_index() % WARP;
    const u32 row = thread_index() / WARP * 16 + lane / 4;
    u32 fragment[4][4];
    for (i32 k = 0; k < 4; ++k) {
        for (u32 i = 0; i < 4; ++i) {
            const u32 column = 16 * static_cast<u32>(k) + lane % 4 * 2 + i / 2 * 8;
            __builtin_memcpy(&fragment[k][i], static_cast<const T*>(p.a) + (row + i % 2 * 8) * 64 + column, sizeof(u32));
        }
    }
    for (i32 k = 0; k < 4; ++k) {
        products_begin();
        Products<T>::columns(other, fragment[k], columns_descriptor(v, k, 64 * TILE_ROW));
        products_commit();
    }
    if (p.mistake == 0) {
        products_wait<0>();
    } else {
        products_wait<1>();
    }
    products_touch(other);
    write_sum(p.out + 64 * WIDTH, other);
}

RATPLUS_KERNEL(test_warpgroup_bf16, WarpgroupParams, 128, 1) { warpgroup_products<bf16>(p); }
RATPLUS_KERNEL(test_warpgroup_f16, WarpgroupParams, 128, 1) { warpgroup_products<f16>(p); }

struct HandoverParams {
    // [rounds, 128]
    const u32* in;
    u32* out;
    i32 rounds;
    // Overwrites what was not read yet; or reads what was not written yet.
    i32 mistake;
};

// One warpgroup hands values to another through two buffers.
RATPLUS_KERNEL(test_handover, HandoverParams, 256, 1) {
    u64* const full = reinterpret_cast<u64*>(shared_memory());
    u64* const empty = full + 2;
    u32* const buffers = reinterpret_cast<u32*>(empty + 2);
    const u32 thread = thread_index() % 128;
    if (thread_index() == 0) {
        for (i32 i = 0; i < 2; ++i) {
            barrier_init(full + i, 128);
            barrier_init(empty + i, 128);
        }
    }
    block_barrier();
    for (i32 round = 0; round < p.rounds; ++round) {
        const i32 stage = round % 2;
        const u32 parity = static_cast<u32>(round / 2 % 2);
        u32* const buffer = buffers + 128 * stage;
        if (thread_index() < 128) {
            if (round >= 2 && p.mistake != 1) {
                barrier_wait(empty + stage, parity ^ 1);
            }
            buffer[thread] = p.in[128 * round + static_cast<i32>(thread)];
            barrier_arrive(full + stage);
        } else {
            if (p.mistake != 2) {
                barrier_wait(full + stage, parity);
            }
            // What another thread wrote.
            p.out[128 * round + static_cast<i32>(thread)] = buffer[127 - thread];
            warpgroup_barrier(1);
            barrier_arrive(empty + stage);
        }
    }
}

enum Plant : i32 {
    NOTHING,
    NO_PROXY_FENCE,
    FENCE_BEFORE_COPIES,
    NO_PRODUCTS_BEGIN,
    OTHER_BARRIER,
    NO_FULL_WAIT,
    NO_EMPTY_WAIT,
    NO_WARP_BARRIER,
    RELEASED_EARLY,
    FRAGMENT_CHANGED,
    QUERIES_CHANGED,
    TURN_NOT_GIVEN,
    BARRIER_ZERO,
};

struct PipelineParams {
    // [rounds, 64, 64] of bf16
    const void* in;
    // [2, 64, 64], of each of two warpgroups
    float* out;
    i32 rounds;
    Plant plant;
};

// Two warpgroups, in turns, add up products of tiles that a third copies, from shared memory and from
// fragments.
RATPLUS_KERNEL(test_pipeline, PipelineParams, 384, 1) {
    constexpr i32 TILE = 64 * TILE_ROW;
    constexpr i32 STAGES = 2;
    bf16* const queries = reinterpret_cast<bf16*>(shared_memory());
    bf16* const tiles = queries + TILE;
    u64* const full = reinterpret_cast<u64*>(tiles + STAGES * TILE);
    u64* const empty = full + STAGES;
    const u32 group = thread_index() / 128;
    const i32 thread = static_cast<i32>(thread_index() % 128);
    fill(queries, p.in, 64, 64);
    fence_for_products();
    if (thread_index() == 0) {
        for (i32 i = 0; i < STAGES; ++i) {
            barrier_init(full + i, 128);
            barrier_init(empty + i, 8);
        }
    }
    block_barrier();
    const auto parity = [](i32 round) { return static_cast<u32>(round / STAGES & 1); };
    if (group == 2) {
        for (i32 round = 0; round < p.rounds; ++round) {
            bf16* const tile = tiles + round % STAGES * TILE;
            if (p.plant != NO_EMPTY_WAIT) {
                barrier_wait(empty + round % STAGES, parity(round) ^ 1);
            }
            for (i32 i = thread; i < 64 * 8; i += 128) {
                const i32 row = i / 8;
                const i32 chunk = i % 8;
                const bf16* const from = static_cast<const bf16*>(p.in) + (static_cast<i64>(round) * 64 + row) * 64;
                copy_async16(tile + row * TILE_ROW + 8 * (chunk ^ row % 8), from + 8 * chunk, true);
            }
            copy_async_commit();
            if (p.plant == FENCE_BEFORE_COPIES) {
                fence_for_products();
            }
            copy_async_wait<0>();
            if (p.plant != NO_PROXY_FENCE && p.plant != FENCE_BEFORE_COPIES) {
                fence_for_products();
            }
            barrier_arrive(full + round % STAGES);
        }
        return;
    }
    const u32 lane = thread_index() % WARP;
    warpgroup_barrier(p.plant == OTHER_BARRIER ? 1 : p.plant == BARRIER_ZERO ? 0 : 1 + group);
    float sum[32] = {};
    u32 fragment[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
    if (group == 1) {
        turn_give<3, 256>();
    }
    for (i32 round = 0; round < p.rounds; ++round) {
        const bf16* const tile = tiles + round % STAGES * TILE;
        if (p.plant != NO_FULL_WAIT) {
            barrier_wait(full + round % STAGES, parity(round));
        }
        if (group == 0) {
            turn_wait<3, 256>();
        } else {
            turn_wait<4, 256>();
        }
        if (p.plant != NO_PRODUCTS_BEGIN) {
            products_begin();
        }
        for (i32 k = 0; k < 4; ++k) {
            Products<bf16>::rows(sum, rows_descriptor(queries, k), rows_descriptor(tile, k), true);
        }
        Products<bf16>::columns(sum, fragment, columns_descriptor(tile, 0, TILE));
        products_commit();
        if (group == 0 && p.plant != TURN_NOT_GIVEN) {
            turn_give<4, 256>();
        } else if (group == 1 && round + 1 < p.rounds) {
            turn_give<3, 256>();
        }
        if (p.plant == FRAGMENT_CHANGED) {
            fragment[2] = 0;
        }
        if (p.plant == QUERIES_CHANGED && thread_index() == 0) {
            queries[5].bits ^= 1;
        }
        const auto release = [&] {
            if (p.plant != NO_WARP_BARRIER) {
                warp_barrier();
            }
            if (lane == 0) {
                barrier_arrive(empty + round % STAGES);
            }
        };
        if (p.plant == RELEASED_EARLY) {
            release();
        }
        products_wait<0>();
        products_touch(sum);
        if (p.plant != RELEASED_EARLY) {
            release();
        }
    }
    float* const out = p.out + 64 * 64 * group;
    const i32 row = thread / static_cast<i32>(WARP) * 16 + static_cast<i32>(lane) / 4;
    for (i32 i = 0; i < 32; ++i) {
        out[(row + i / 2 % 2 * 8) * 64 + i / 4 * 8 + static_cast<i32>(lane) % 4 * 2 + i % 2] = sum[i];
    }
}
