// Attention of a chunk of tokens in f16 and bf16 on sm_90a, with wgmma.
//
// What is computed is what attention_prefill.cuh computes, in the same order of keys. One warpgroup
// of a block copies tiles of keys and values, the others have 64 queries each: two of them for many
// keys, one for few, of which a multiprocessor holds two blocks. The product of
// a tile's keys runs while the tile before it meets its values, and the softmax of one runs
// beside the other's product. Copies are asynchronous copies of sixteen bytes rather than tensor
// maps: rows come from the cache, from the ring in two runs, and from the chunk, and rows that are
// not there have to be zero.
#pragma once
#include "device_hopper.cuh"
#include "attention_tiles.cuh"

namespace ratplus {

constexpr i32 GROUP_THREADS = 128;
constexpr i32 GROUP_QUERIES = 64;
constexpr i32 STAGES = 2;

// A block: its warpgroups of queries, the keys of a tile, and the registers of its threads.
template <i32 DIM_, i32 CONSUMERS_, i32 KEYS_>
struct Shape {
    static constexpr i32 DIM = DIM_;
    static constexpr i32 CONSUMERS = CONSUMERS_;
    static constexpr i32 KEYS = KEYS_;
    static constexpr i32 QUERIES = CONSUMERS * GROUP_QUERIES;
    static constexpr i32 THREADS = (1 + CONSUMERS) * GROUP_THREADS;
    static constexpr u32 COPY_REGISTERS = 40;
    static constexpr u32 QUERY_REGISTERS = CONSUMERS == 2 ? 232 : 216;
    // Elements of a tile of keys.
    static constexpr i32 TILE = KEYS * DIM;
    // Shared memory, in order: queries, keys, values, the queries' own scores, barriers.
    static constexpr i32 KEYS_AT = QUERIES * DIM * 2;
    static constexpr i32 VALUES_AT = KEYS_AT + STAGES * TILE * 2;
    static constexpr i32 SCORES_AT = VALUES_AT + STAGES * TILE * 2;
    static constexpr i32 BARRIERS_AT = SCORES_AT + QUERIES * 4;
};

// Where chunk `chunk` of row `row` is in a matrix of `rows` rows that is cut into tiles of 64 columns.
RATPLUS_DEVICE i32 swizzled(i32 rows, i32 row, i32 chunk) {
    return chunk / 8 * rows * TILE_ROW + row * TILE_ROW + (chunk % 8 ^ (row & 7)) * 8;
}

struct Pipeline {
    u64* key_full;
    u64* key_empty;
    u64* value_full;
    u64* value_empty;

    RATPLUS_DEVICE explicit Pipeline(u8* shared) {
        key_full = reinterpret_cast<u64*>(shared);
        key_empty = key_full + STAGES;
        value_full = key_full + 2 * STAGES;
        value_empty = key_full + 3 * STAGES;
    }
};

// Copies the keys or the values of a tile and ends the group of copies.
template <typename T, i32 DIM, i32 KEYS, class Keys, class Tile>
RATPLUS_DEVICE void copy_rows(const Keys& set, const HeadTensors<T>& at, const Tile& tile, i32 past, bool keys,
                              T* to) {
    constexpr i32 CHUNKS = DIM / 8;
    constexpr i32 STEP = GROUP_THREADS / CHUNKS;
    static_assert(STEP % 8 == 0, "a thread's rows have their chunks in one place");
    const i32 thread = static_cast<i32>(thread_index()) % GROUP_THREADS;
    const i32 chunk = thread % CHUNKS;
    const i32 own = thread / CHUNKS;
    to += swizzled(KEYS, own, chunk);
    each_key<T, DIM, KEYS, STEP>(set, at, tile, past, own, [&](i32 first, const KeyPlace<T>& from, bool there) {
        copy_async16(to + first * TILE_ROW, (keys ? from.key : from.value) + chunk * 8, there);
    });
    copy_async_commit();
}

// The copying warpgroup. Keys run one tile ahead of values: keys 0, keys 1, values 0, keys 2, ...
template <typename T, typename S, class Keys, class Tiles>
RATPLUS_DEVICE void produce(const Keys& set, const HeadTensors<T>& at, const Tiles& tiles, i32 past, T* keys,
                            T* values, const Pipeline& pipeline) {
    u64* pending = nullptr;
    const auto copy = [&](bool key, i32 index) {
        const i32 stage = index % STAGES;
        // Its first use finds the stage empty: that is the phase before the first.
        barrier_wait((key ? pipeline.key_empty : pipeline.value_empty) + stage, (index / STAGES & 1) ^ 1);
        copy_rows<T, S::DIM, S::KEYS>(set, at, tiles.tile(index), past, key,
                                      (key ? keys : values) + stage * S::TILE);
        if (pending != nullptr) {
            copy_async_wait<1>();
            fence_for_products();
            barrier_arrive(pending);
        }
        pending = (key ? pipeline.key_full : pipeline.value_full) + stage;
    };
    for (i32 index = 0; index <= tiles.count; ++index) {
        if (index < tiles.count) {
            copy(true, index);
        }
        if (index > 0) {
            copy(false, index - 1);
        }
    }
    copy_async_wait<0>();
    fence_for_products();
    barrier_arrive(pending);
}

// One warpgroup of queries.
template <typename T, typename S>
struct Consumer {
    static constexpr i32 KEYS = S::KEYS;
    static constexpr i32 DIM = S::DIM;
    float top[2];
    float total[2];
    float keep[2];
    float sum[DIM / 2];
    float score[KEYS / 2];
    u32 weight[KEYS / 16][4];

    // score = queries keys^T; a batch of products.
    RATPLUS_DEVICE void multiply_keys(const T* queries, const T* keys) {
        products_touch(score);
        products_begin();
        RATPLUS_UNROLL
        for (i32 k = 0; k < DIM / 16; ++k) {
            const i32 tile = k / 4;
            Products<T>::rows(score, rows_descriptor(queries + tile * S::QUERIES * TILE_ROW, k % 4),
                              rows_descriptor(keys + tile * KEYS * TILE_ROW, k % 4), k > 0);
        }
        products_commit();
    }

    // sum += weights values; a batch of products.
    RATPLUS_DEVICE void multiply_values(const T* values) {
        products_touch(sum);
        products_begin();
        RATPLUS_UNROLL
        for (i32 k = 0; k < KEYS / 16; ++k) {
            Products<T>::columns(sum, weight[k], columns_descriptor(values, k, KEYS * TILE_ROW));
        }
        products_commit();
    }

    template <class Keys, class Tile, class Sight>
    RATPLUS_DEVICE void mask(const Keys& set, const Tile& tile, const Sight (&sight)[2], i32 column) {
        RATPLUS_UNROLL
        for (i32 half = 0; half < 2; ++half) {
            const Visible seen = set.visible(tile, sight[half]);
            const i32 high = minimum(seen.high, tile.count);
            RATPLUS_UNROLL
            for (i32 n = 0; n < KEYS / 8; ++n) {
                RATPLUS_UNROLL
                for (i32 i = 0; i < 2; ++i) {
                    const i32 key = n * 8 + column + i;
                    if (key < seen.low || key >= high) {
                        score[4 * n + 2 * half + i] = masked();
                    }
                }
            }
        }
    }

    // Scores become weights relative to the new `top`; `keep` is what older sums are worth then.
    RATPLUS_DEVICE void softmax(float scale) {
        float offset[2];
        RATPLUS_UNROLL
        for (i32 half = 0; half < 2; ++half) {
            float highest = top[half];
            RATPLUS_UNROLL
            for (i32 n = 0; n < KEYS / 8; ++n) {
                highest = larger(highest, larger(score[4 * n + 2 * half], score[4 * n + 2 * half + 1]));
            }
            highest = larger(highest, shuffle_xor(highest, 1));
            highest = larger(highest, shuffle_xor(highest, 2));
            keep[half] = exp2_fast((top[half] - highest) * scale);
            top[half] = highest;
            offset[half] = highest * scale;
        }
        if (larger(magnitude(offset[0]), magnitude(offset[1])) > FAR_SCORE) {
            RATPLUS_UNROLL
            for (i32 i = 0; i < KEYS / 2; ++i) {
                score[i] -= top[i / 2 % 2];
            }
            offset[0] = offset[1] = 0.0f;
        }
        RATPLUS_UNROLL
        for (i32 half = 0; half < 2; ++half) {
            float added = 0.0f;
            RATPLUS_UNROLL
            for (i32 n = 0; n < KEYS / 8; ++n) {
                RATPLUS_UNROLL
                for (i32 i = 0; i < 2; ++i) {
                    float& x = score[4 * n + 2 * half + i];
                    x = exp2_fast(fma(x, scale, -offset[half]));
                    added += x;
                }
            }
            total[half] = fma(total[half], keep[half], added);
        }
    }

    RATPLUS_DEVICE void rescale() {
        RATPLUS_UNROLL
        for (i32 n = 0; n < DIM / 8; ++n) {
            RATPLUS_UNROLL
            for (i32 i = 0; i < 4; ++i) {
                sum[4 * n + i] *= keep[i / 2];
            }
        }
    }

    RATPLUS_DEVICE void round_weights() {
        RATPLUS_UNROLL
        for (i32 n = 0; n < KEYS / 8; ++n) {
            RATPLUS_UNROLL
            for (i32 half = 0; half < 2; ++half) {
                weight[n / 2][half + n % 2 * 2] = pack2<T>(score[4 * n + 2 * half], score[4 * n + 2 * half + 1]);
            }
        }
    }
};

template <typename T, typename S, class Keys>
RATPLUS_DEVICE void attention_hopper(const AttentionParams& p, const Keys& set) {
    constexpr i32 DIM = S::DIM;
    constexpr i32 QUERIES = S::QUERIES;
    constexpr i32 COLUMNS = DIM / 8;
    const u32 slot = block_z();
    const Slot lengths = read_slot(p.lengths, slot, block_x() == 0 && block_y() == 0 && thread_index() == 0);
    const HeadTensors<T> at(p, slot, block_kv_head(p), block_member(p));
    // The last tile sees the most keys: it goes first.
    const i32 token = static_cast<i32>(grid_x() - 1 - block_x()) * QUERIES;
    const i32 rows = minimum(QUERIES, p.lengths.seq_len - token);
    const i32 count = minimum(rows, lengths.tokens - token);
    const i32 thread = static_cast<i32>(thread_index());
    if (count <= 0) {
        for (i32 i = thread; i < rows * COLUMNS; i += S::THREADS) {
            store16(at.output + (token + i / COLUMNS) * at.query_stride + i % COLUMNS * 8, Vec16{});
        }
        return;
    }
    const i32 past = static_cast<i32>(lengths.past);
    const i32 first = past + token;
    const auto tiles = set.template tiles<S::KEYS>(first, count);
    u8* const shared = shared_memory();
    T* const queries = reinterpret_cast<T*>(shared);
    T* const keys = reinterpret_cast<T*>(shared + S::KEYS_AT);
    T* const values = reinterpret_cast<T*>(shared + S::VALUES_AT);
    const Pipeline pipeline(shared + S::BARRIERS_AT);
    if (thread == 0) {
        for (i32 i = 0; i < STAGES; ++i) {
            barrier_init(pipeline.key_full + i, GROUP_THREADS);
            barrier_init(pipeline.value_full + i, GROUP_THREADS);
            barrier_init(pipeline.key_empty + i, S::CONSUMERS * 4);
            barrier_init(pipeline.value_empty + i, S::CONSUMERS * 4);
        }
        fence_for_products();
    }
    block_barrier();
    const i32 group = thread / GROUP_THREADS;
    if (group == S::CONSUMERS) {
        lower_registers<S::COPY_REGISTERS>();
        if (tiles.count > 0) {
            produce<T, S>(set, at, tiles, past, keys, values, pipeline);
        }
        return;
    }
    raise_registers<S::QUERY_REGISTERS>();
    const i32 lane = thread % static_cast<i32>(WARP);
    const i32 own_first = group * GROUP_QUERIES;
    float* const scores = reinterpret_cast<float*>(shared + S::SCORES_AT) + own_first;
    const i32 base = thread % GROUP_THREADS / static_cast<i32>(WARP) * 16;
    const i32 row = base + lane / 4;
    const i32 column = lane % 4 * 2;
    const i32 own_count = minimum(maximum(count - own_first, 0), GROUP_QUERIES);
    const Queries<T, DIM, GROUP_THREADS, GROUP_QUERIES> loaded(p, at, token + own_first, past, own_count,
                                                               thread % GROUP_THREADS);
    OwnValues<T, DIM> own_values;
    own_values.load(at, token, own_first + row, count, column);
    loaded.store(p, queries, scores, [&](i32 r, i32 chunk) { return swizzled(QUERIES, own_first + r, chunk); });
    fence_for_products();
    warpgroup_barrier(static_cast<u32>(1 + group));

    const T* const own_queries = queries + own_first * TILE_ROW;
    const float scale = score_scale(p);
    Consumer<T, S> c;
    RATPLUS_UNROLL
    for (i32 half = 0; half < 2; ++half) {
        c.top[half] = scores[row + 8 * half];
        // Sums over columns are spread over four lanes.
        c.total[half] = lane % 4 == 0 ? 1.0f : 0.0f;
        RATPLUS_UNROLL
        for (i32 n = 0; n < COLUMNS; ++n) {
            unpack2<T>(own_values.word[half][n], c.sum[4 * n + 2 * half], c.sum[4 * n + 2 * half + 1]);
        }
    }
    const i32 query = first + own_first + row;
    const decltype(set.sight(0)) sight[2] = {set.sight(query), set.sight(query + 8)};
    const auto finish = [&](i32 index) {
        const auto tile = tiles.tile(index);
        if (!tiles.all_visible(tile)) {
            c.mask(set, tile, sight, column);
        }
        c.softmax(scale);
    };
    const auto release = [&](u64* barrier) {
        warp_barrier();
        if (lane == 0) {
            barrier_arrive(barrier);
        }
    };
    // Two warpgroups begin their products in turns, so that one's softmax runs beside the other's
    // products. Each waits for its turn and gives the other's once a tile but the first; both have as many tiles.
    constexpr bool TURNS = S::CONSUMERS == 2;
    constexpr u32 FIRST_TURN = 1 + S::CONSUMERS;
    constexpr u32 BOTH = 2 * GROUP_THREADS;
    const auto wait_turn = [&] {
        if (TURNS && group == 0) {
            turn_wait<FIRST_TURN, BOTH>();
        } else if (TURNS) {
            turn_wait<FIRST_TURN + 1, BOTH>();
        }
    };
    const auto give_turn = [&](bool wanted) {
        if (TURNS && wanted && group == 0) {
            turn_give<FIRST_TURN + 1, BOTH>();
        } else if (TURNS && wanted) {
            turn_give<FIRST_TURN, BOTH>();
        }
    };
    const auto parity = [](i32 index) { return static_cast<u32>(index / STAGES & 1); };

    // The wait for the next tile's keys stands before the wait for products: what the compiler
    // must not move across it, the softmax, runs while they do.
    const auto next_keys = [&](i32 index) {
        if (index < tiles.count) {
            barrier_wait(pipeline.key_full + index % STAGES, parity(index));
        }
    };

    if (tiles.count > 0) {
        next_keys(0);
        c.multiply_keys(own_queries, keys);
        products_wait<0>();
        products_touch(c.score);
        release(pipeline.key_empty);
        finish(0);
        c.rescale();
        c.round_weights();
        next_keys(1);
        give_turn(group == 1 && tiles.count > 1);
        for (i32 index = 1; index < tiles.count; ++index) {
            const i32 stage = index % STAGES;
            const i32 before = (index - 1) % STAGES;
            wait_turn();
            c.multiply_keys(own_queries, keys + stage * S::TILE);
            barrier_wait(pipeline.value_full + before, parity(index - 1));
            c.multiply_values(values + before * S::TILE);
            give_turn(group == 0 || index + 1 < tiles.count);
            products_wait<1>();
            products_touch(c.score);
            release(pipeline.key_empty + stage);
            finish(index);
            next_keys(index + 1);
            products_wait<0>();
            products_touch(c.sum);
            release(pipeline.value_empty + before);
            c.rescale();
            c.round_weights();
        }
        const i32 last = tiles.count - 1;
        barrier_wait(pipeline.value_full + last % STAGES, parity(last));
        c.multiply_values(values + last % STAGES * S::TILE);
        products_wait<0>();
        products_touch(c.sum);
    }

    // Through this warp's own rows of the queries, once no warp's product reads them.
    const i32 again = static_cast<i32>(thread_index_again());
    const i32 end_lane = again % static_cast<i32>(WARP);
    // The warp's first row, counted from the block's.
    const i32 end_base = again / static_cast<i32>(WARP) * 16;
    warpgroup_barrier(static_cast<u32>(1 + again / GROUP_THREADS));
    RATPLUS_UNROLL
    for (i32 half = 0; half < 2; ++half) {
        float all = c.total[half];
        all += shuffle_xor(all, 1);
        all += shuffle_xor(all, 2);
        const float share = divide(1.0f, all);
        RATPLUS_UNROLL
        for (i32 n = 0; n < COLUMNS; ++n) {
            T* const to = queries + swizzled(QUERIES, end_base + end_lane / 4 + 8 * half, n) + end_lane % 4 * 2;
            *reinterpret_cast<u32*>(to) =
                pack2<T>(c.sum[4 * n + 2 * half] * share, c.sum[4 * n + 2 * half + 1] * share);
        }
    }
    warp_barrier();
    RATPLUS_UNROLL
    for (i32 i = end_lane; i < 16 * COLUMNS; i += static_cast<i32>(WARP)) {
        const i32 own = end_base + i / COLUMNS;
        const i32 chunk = i % COLUMNS;
        if (own < rows) {
            const Vec16 out = own < count ? load16(queries + swizzled(QUERIES, own, chunk)) : Vec16{};
            store16(at.output + (token + own) * at.query_stride + chunk * 8, out);
        }
    }
}

}  // namespace ratplus
