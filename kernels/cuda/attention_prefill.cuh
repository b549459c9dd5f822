// Attention of a chunk of tokens in f16 and bf16, with mma.sync (sm_80 and later).
//
// A block has queries of one head: 128 for many keys, 64 for few keys. A warp has sixteen of them, or
// 32 where there are registers for their results: it reads keys and values from shared memory half as
// often. Unless the block has eight warps, a multiprocessor holds two blocks, and one computes while the
// other starts or ends. Its queries' fragments stay in registers; where keys are and who sees them waits in
// shared memory for the two moments of a tile that ask for it.
// One online softmax: it starts from each query's own key, whose score is a row product, so that no
// row is ever empty and no diagonal tile is computed where nobody sees another's own key; then come
// the tiles of the set of keys. Masks are computed on the tiles that some query does not see in
// full. Keys and values of the next tile are copied behind the work on this one.
#pragma once
#include "attention_tiles.cuh"

namespace ratplus {

constexpr i32 PREFILL_KEYS = 64;
// Room for a TilePlan.
constexpr i32 PLAN_BYTES = 144;

template <typename T, i32 DIM, i32 THREADS, class Keys, class Tile>
RATPLUS_DEVICE void copy_tile(const Keys& set, const HeadTensors<T>& at, const Tile& tile, i32 past, T* keys,
                              T* values) {
    constexpr i32 CHUNKS = DIM / 8;
    constexpr i32 STEP = THREADS / CHUNKS;
    static_assert(STEP % 8 == 0, "a thread's rows have their chunks in one place");
    const i32 chunk = static_cast<i32>(thread_index()) % CHUNKS;
    const i32 own = static_cast<i32>(thread_index()) / CHUNKS;
    T* const to_keys = keys + chunk_at<DIM>(own, chunk);
    T* const to_values = values + chunk_at<DIM>(own, chunk);
    each_key<T, DIM, PREFILL_KEYS, STEP>(set, at, tile, past, own, [&](i32 first, const KeyPlace<T>& from, bool there) {
        copy_async16(to_keys + first * DIM, from.key + chunk * 8, there);
        copy_async16(to_values + first * DIM, from.value + chunk * 8, there);
    });
    copy_async_commit();
}

template <typename T, class Keys, class Tiles>
struct TilePlan {
    HeadTensors<T> at;
    Keys set;
    Tiles tiles;
};

// A warp has BANDS times sixteen queries.
template <typename T, i32 DIM, i32 WARPS, i32 BANDS, class Keys>
RATPLUS_DEVICE void attention_prefill(const AttentionParams& p, const Keys& set) {
    constexpr i32 THREADS = WARPS * static_cast<i32>(WARP);
    constexpr i32 BAND_QUERIES = WARPS * 16;
    constexpr i32 QUERIES = BANDS * BAND_QUERIES;
    constexpr i32 KEYS = PREFILL_KEYS;
    constexpr i32 COLUMNS = DIM / 8;
    const u32 slot = block_z();
    const Slot s = read_slot(p.lengths, slot, block_x() == 0 && block_y() == 0 && thread_index() == 0);
    const HeadTensors<T> at(p, slot, block_kv_head(p), block_member(p));
    // The last tile sees the most keys: it goes first.
    const i32 token = static_cast<i32>(grid_x() - 1 - block_x()) * QUERIES;
    const i32 rows = minimum(QUERIES, p.lengths.seq_len - token);
    const i32 count = minimum(rows, s.tokens - token);
    const i32 thread = static_cast<i32>(thread_index());
    if (count <= 0) {
        for (i32 i = thread; i < rows * COLUMNS; i += THREADS) {
            store16(at.output + (token + i / COLUMNS) * at.query_stride + i % COLUMNS * 8, Vec16{});
        }
        return;
    }
    const i32 past = static_cast<i32>(s.past);
    const i32 first = past + token;
    const auto tiles = set.template tiles<KEYS>(first, count);
    const i32 tile_count = tiles.count;

    // The queries, two tiles of keys and of values, the queries' own scores, the plan.
    T* const queries = reinterpret_cast<T*>(shared_memory());
    T* const keys = queries + QUERIES * DIM;
    T* const values = keys + 2 * KEYS * DIM;
    float* const self_scores = reinterpret_cast<float*>(values + 2 * KEYS * DIM);
    using Tiles = decltype(set.template tiles<KEYS>(0, 0));
    using Plan = TilePlan<T, Keys, Tiles>;
    static_assert(sizeof(Plan) <= PLAN_BYTES && QUERIES * sizeof(float) % alignof(Plan) == 0, "it has its room");
    Plan* const plan = reinterpret_cast<Plan*>(self_scores + QUERIES);
    if (thread == 0) {
        *plan = Plan{at, set, tiles};
    }
    using Loaded = Queries<T, DIM, THREADS, BAND_QUERIES>;
    const auto store = [&](const Loaded& loaded, i32 from) {
        loaded.store(p, queries + from * DIM, self_scores + from,
                     [](i32 r, i32 chunk) { return chunk_at<DIM>(r, chunk); });
    };
    RATPLUS_UNROLL
    for (i32 band = 1; band < BANDS; ++band) {
        const i32 from = band * BAND_QUERIES;
        store(Loaded(p, at, token + from, past, count - from, thread), from);
    }
    const Loaded loaded(p, at, token, past, count, thread);
    // This thread's rows of a band's fragments: `row` and `row + 8`; its columns: `column` and the next,
    // of every eight.
    const i32 lane = thread % static_cast<i32>(WARP);
    const i32 base = thread / static_cast<i32>(WARP) * 16 * BANDS;
    const i32 row = base + lane / 4;
    const i32 column = lane % 4 * 2;
    OwnValues<T, DIM> own[BANDS];
    RATPLUS_UNROLL
    for (i32 band = 0; band < BANDS; ++band) {
        own[band].load(at, token, row + 16 * band, count, column);
    }
    if (tile_count > 0) {
        copy_tile<T, DIM, THREADS>(set, at, tiles.tile(0), past, keys, values);
    }
    store(loaded, 0);

    block_barrier();
    float sum[BANDS][COLUMNS][4];
    RATPLUS_UNROLL
    for (i32 band = 0; band < BANDS; ++band) {
        RATPLUS_UNROLL
        for (i32 n = 0; n < COLUMNS; ++n) {
            unpack2<T>(own[band].word[0][n], sum[band][n][0], sum[band][n][1]);
            unpack2<T>(own[band].word[1][n], sum[band][n][2], sum[band][n][3]);
        }
    }
    float top[BANDS][2], total[BANDS][2];
    decltype(set.sight(0)) sight[BANDS][2];
    RATPLUS_UNROLL
    for (i32 band = 0; band < BANDS; ++band) {
        RATPLUS_UNROLL
        for (i32 half = 0; half < 2; ++half) {
            sight[band][half] = set.sight(first + row + 16 * band + 8 * half);
            top[band][half] = self_scores[row + 16 * band + 8 * half];
            // Sums over columns are spread over four lanes.
            total[band][half] = lane % 4 == 0 ? 1.0f : 0.0f;
        }
    }
    const float scale = score_scale(p);
    u32 query[DIM / 16][BANDS][4];
    RATPLUS_UNROLL
    for (i32 k = 0; k < DIM / 16; ++k) {
        RATPLUS_UNROLL
        for (i32 band = 0; band < BANDS; ++band) {
            load_blocks(query[k][band], queries + chunk_at<DIM>(base + 16 * band + lane % 16, 2 * k + lane / 16));
        }
    }

    for (i32 index = 0; index < tile_count; ++index) {
        const i32 stage = index & 1;
        const T* const key = keys + stage * KEYS * DIM;
        const T* const value = values + stage * KEYS * DIM;
        copy_async_wait<0>();
        // The tile is here, and every warp has left the one before it.
        block_barrier();
        if (index + 1 < tile_count) {
            const i32 other = (1 - stage) * KEYS * DIM;
            const Plan now = *plan;
            copy_tile<T, DIM, THREADS>(now.set, now.at, now.tiles.tile(index + 1), past, keys + other, values + other);
        }
        float score[BANDS][KEYS / 8][4] = {};
        RATPLUS_UNROLL
        for (i32 k = 0; k < DIM / 16; ++k) {
            RATPLUS_UNROLL
            for (i32 n = 0; n < KEYS / 8; n += 2) {
                u32 block[4];
                load_blocks(block, key + chunk_at<DIM>(n * 8 + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
                RATPLUS_UNROLL
                for (i32 band = 0; band < BANDS; ++band) {
                    multiply_blocks<T>(score[band][n], query[k][band], block[0], block[1]);
                    multiply_blocks<T>(score[band][n + 1], query[k][band], block[2], block[3]);
                }
            }
        }
        const Tiles again = plan->tiles;
        const auto tile = again.tile(index);
        if (!again.all_visible(tile)) {
            const Keys who = plan->set;
            RATPLUS_UNROLL
            for (i32 band = 0; band < BANDS; ++band) {
                RATPLUS_UNROLL
                for (i32 half = 0; half < 2; ++half) {
                    const Visible seen = who.visible(tile, sight[band][half]);
                    const i32 high = minimum(seen.high, tile.count);
                    RATPLUS_UNROLL
                    for (i32 n = 0; n < KEYS / 8; ++n) {
                        RATPLUS_UNROLL
                        for (i32 i = 0; i < 2; ++i) {
                            const i32 at_key = n * 8 + column + i;
                            if (at_key < seen.low || at_key >= high) {
                                score[band][n][2 * half + i] = masked();
                            }
                        }
                    }
                }
            }
        }
        u32 weight[BANDS][KEYS / 16][4];
        RATPLUS_UNROLL
        for (i32 band = 0; band < BANDS; ++band) {
            float keep[2], offset[2];
            RATPLUS_UNROLL
            for (i32 half = 0; half < 2; ++half) {
                float highest = top[band][half];
                RATPLUS_UNROLL
                for (i32 n = 0; n < KEYS / 8; ++n) {
                    highest = larger(highest, larger(score[band][n][2 * half], score[band][n][2 * half + 1]));
                }
                highest = larger(highest, shuffle_xor(highest, 1));
                highest = larger(highest, shuffle_xor(highest, 2));
                keep[half] = exp2_fast((top[band][half] - highest) * scale);
                top[band][half] = highest;
                offset[half] = highest * scale;
            }
            if (larger(magnitude(offset[0]), magnitude(offset[1])) > FAR_SCORE) {
                RATPLUS_UNROLL
                for (i32 n = 0; n < KEYS / 8; ++n) {
                    RATPLUS_UNROLL
                    for (i32 i = 0; i < 4; ++i) {
                        score[band][n][i] -= top[band][i / 2];
                    }
                }
                offset[0] = offset[1] = 0.0f;
            }
            RATPLUS_UNROLL
            for (i32 half = 0; half < 2; ++half) {
                float added = 0.0f;
                RATPLUS_UNROLL
                for (i32 n = 0; n < KEYS / 8; ++n) {
                    const float a = exp2_fast(fma(score[band][n][2 * half], scale, -offset[half]));
                    const float b = exp2_fast(fma(score[band][n][2 * half + 1], scale, -offset[half]));
                    added += a + b;
                    weight[band][n / 2][half + n % 2 * 2] = pack2<T>(a, b);
                }
                total[band][half] = fma(total[band][half], keep[half], added);
                RATPLUS_UNROLL
                for (i32 n = 0; n < COLUMNS; ++n) {
                    sum[band][n][2 * half] *= keep[half];
                    sum[band][n][2 * half + 1] *= keep[half];
                }
            }
        }
        RATPLUS_UNROLL
        for (i32 k = 0; k < KEYS / 16; ++k) {
            RATPLUS_UNROLL
            for (i32 n = 0; n < COLUMNS; n += 2) {
                u32 block[4];
                load_blocks_transposed(block, value + chunk_at<DIM>(k * 16 + lane % 16, n + lane / 16));
                RATPLUS_UNROLL
                for (i32 band = 0; band < BANDS; ++band) {
                    multiply_blocks<T>(sum[band][n], weight[band][k], block[0], block[1]);
                    multiply_blocks<T>(sum[band][n + 1], weight[band][k], block[2], block[3]);
                }
            }
        }
    }

    // Through this warp's own rows of the queries, which it does not read any more.
    warp_barrier();
    RATPLUS_UNROLL
    for (i32 band = 0; band < BANDS; ++band) {
        RATPLUS_UNROLL
        for (i32 half = 0; half < 2; ++half) {
            float all = total[band][half];
            all += shuffle_xor(all, 1);
            all += shuffle_xor(all, 2);
            const float share = divide(1.0f, all);
            RATPLUS_UNROLL
            for (i32 n = 0; n < COLUMNS; ++n) {
                T* const to = queries + chunk_at<DIM>(row + 16 * band + 8 * half, n) + column;
                *reinterpret_cast<u32*>(to) = pack2<T>(sum[band][n][2 * half] * share, sum[band][n][2 * half + 1] * share);
            }
        }
    }
    warp_barrier();
    RATPLUS_UNROLL
    for (i32 i = lane; i < 16 * BANDS * COLUMNS; i += static_cast<i32>(WARP)) {
        const i32 query = base + i / COLUMNS;
        const i32 chunk = i % COLUMNS;
        if (query < rows) {
            const Vec16 out = query < count ? load16(queries + chunk_at<DIM>(query, chunk)) : Vec16{};
            store16(at.output + (token + query) * at.query_stride + chunk * 8, out);
        }
    }
}

}  // namespace ratplus
