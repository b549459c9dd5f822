// Which earlier blocks a query sees whole: `score` scores the complete blocks before the query's own, `pick`
// lists the `most_chosen` with the greatest scores. Queries with no more earlier blocks see them all, and have
// no list.
//
// The bits of a score depend on the query and the block alone: a lane sums its channels in their order, and
// lanes are summed as a tree.
#include "block_top_k.cuh"

namespace ratplus {

constexpr i32 SCORE_WARPS = 4;
// Queries that a block scores for, all of one key-value head.
constexpr i32 SCORE_QUERIES = 8;
// Blocks of keys that a warp scores at once; with the queries as many scores as a warp has lanes.
constexpr i32 SCORE_TOGETHER = 4;
// Blocks of keys that a block scores.
constexpr i32 SCORE_TILE = 64;
static_assert(SCORE_QUERIES * SCORE_TOGETHER == static_cast<i32>(WARP), "a score a lane");

// Unsigned numbers in the order of the scores: both zeros are one, and a NaN is below all others.
RATPLUS_DEVICE u32 score_order(float score) {
    if (score != score) {
        return 0;
    }
    const u32 bits = to_bits(score + 0.0f);
    return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

template <typename T>
RATPLUS_DEVICE void block_score(const BlockTopKParams& p) {
    const u32 slot = block_z();
    const Slot s = read_slot(p.lengths, slot, false);
    const i32 past = static_cast<i32>(s.past);
    const i32 dim = p.head_dim;
    const i32 half = dim / 2;
    // Queries are counted token by token, the heads of a token next to one another.
    const i32 query_tiles = (p.slice * p.group + SCORE_QUERIES - 1) / SCORE_QUERIES;
    const i32 head = static_cast<i32>(block_y()) / query_tiles;
    const i32 first = (static_cast<i32>(block_y()) % query_tiles) * SCORE_QUERIES;
    const i32 end = minimum(p.slice, s.tokens - p.first_token) * p.group;
    const i32 tile = static_cast<i32>(block_x()) * SCORE_TILE;
    if (first >= end) {
        return;
    }
    const i32 last = minimum(first + SCORE_QUERIES, end) - 1;
    const i32 earlier = (past + p.first_token + last / p.group) / p.block_size;
    if (earlier <= p.most_chosen || tile >= earlier) {
        return;
    }

    float* const queries = reinterpret_cast<float*>(shared_memory());
    for (i32 i = static_cast<i32>(thread_index()); i < SCORE_QUERIES * half; i += SCORE_WARPS * static_cast<i32>(WARP)) {
        const i32 query = first + i / half;
        const i32 d = i % half;
        float low = 0.0f;
        float high = 0.0f;
        if (query < end) {
            const i32 token = p.first_token + query / p.group;
            const T* const row = static_cast<const T*>(p.query) +
                                 token_row(p, slot, token, p.num_heads, head * p.group + query % p.group);
            const i64 table = (s.past + token) * half + d;
            const float x = widen(row[d]);
            const float y = widen(row[d + half]);
            low = rotate_low(x, y, p.cos[table], p.sin[table]);
            high = rotate_high(x, y, p.cos[table], p.sin[table]);
        }
        queries[i / half * dim + d] = low;
        queries[i / half * dim + d + half] = high;
    }
    block_barrier();

    const i32 lane = static_cast<i32>(thread_index() % WARP);
    const i32 warp = static_cast<i32>(thread_index() / WARP);
    const float* const summaries = p.summary + summary_row(p, slot, head);
    // This lane's query, and whether there is one.
    const i32 query = first + lane / SCORE_TOGETHER;
    const i32 token = p.first_token + query / p.group;
    const i32 own = query < end ? (past + token) / p.block_size : 0;
    const i64 index = query_index(p, slot, head * p.group + query % p.group, query / p.group, p.slice);
    u32* const scores = p.score + index * p.blocks;
    const i32 tile_end = minimum(tile + SCORE_TILE, earlier);
    for (i32 block = tile + warp * SCORE_TOGETHER; block < tile_end; block += SCORE_WARPS * SCORE_TOGETHER) {
        float sum[WARP];
        RATPLUS_UNROLL
        for (u32 i = 0; i < WARP; ++i) {
            sum[i] = 0.0f;
        }
        for (i32 d = lane; d < dim; d += static_cast<i32>(WARP)) {
            // Of the sum both are the same.
            float least[SCORE_TOGETHER], greatest[SCORE_TOGETHER];
            RATPLUS_UNROLL
            for (i32 i = 0; i < SCORE_TOGETHER; ++i) {
                const bool complete = block + i < earlier;
                const float* const row = summaries + static_cast<i64>(block + i) * p.parts * dim + d;
                least[i] = complete ? row[0] : 0.0f;
                greatest[i] = complete ? row[(p.parts - 1) * dim] : 0.0f;
            }
            RATPLUS_UNROLL
            for (i32 j = 0; j < SCORE_QUERIES; ++j) {
                const float q = queries[j * dim + d];
                RATPLUS_UNROLL
                for (i32 i = 0; i < SCORE_TOGETHER; ++i) {
                    float& to = sum[j * SCORE_TOGETHER + i];
                    to = fma(q, q > 0.0f ? greatest[i] : least[i], to);
                }
            }
        }
        // Each step halves the sums that a lane has, until lane l has the l-th.
        RATPLUS_UNROLL
        for (u32 mask = WARP / 2; mask > 0; mask /= 2) {
            const bool upper = (static_cast<u32>(lane) & mask) != 0;
            RATPLUS_UNROLL
            for (u32 i = 0; i < WARP / 2; ++i) {
                if (i < mask) {
                    const float kept = upper ? sum[i + mask] : sum[i];
                    const float given = upper ? sum[i] : sum[i + mask];
                    sum[i] = kept + shuffle_xor(given, mask);
                }
            }
        }
        const i32 scored = block + lane % SCORE_TOGETHER;
        if (scored < own) {
            scores[scored] = score_order(sum[0]);
        }
    }
}

constexpr i32 PICK_WARPS = 4;
constexpr i32 PICK_THREADS = PICK_WARPS * static_cast<i32>(WARP);

// The numbers of all threads of a block, summed. `shared` has two rows of PICK_WARPS, which take turns.
RATPLUS_DEVICE u32 pick_sum(u32 count, u32* shared) {
    RATPLUS_UNROLL
    for (u32 mask = WARP / 2; mask > 0; mask /= 2) {
        count += shuffle_xor(count, mask);
    }
    if (thread_index() % WARP == 0) {
        shared[thread_index() / WARP] = count;
    }
    block_barrier();
    u32 sum = 0;
    RATPLUS_UNROLL
    for (i32 warp = 0; warp < PICK_WARPS; ++warp) {
        sum += shared[warp];
    }
    return sum;
}

RATPLUS_DEVICE void block_pick(const BlockTopKParams& p) {
    const u32 slot = block_z();
    const Slot s = read_slot(p.lengths, slot, false);
    const i32 head = static_cast<i32>(block_y());
    const i32 token = p.first_token + static_cast<i32>(block_x());
    const i32 earlier = static_cast<i32>((s.past + token) / p.block_size);
    const u32 most = static_cast<u32>(p.most_chosen);
    if (token >= s.tokens || earlier <= p.most_chosen) {
        return;
    }
    const i32 thread = static_cast<i32>(thread_index());
    const u32* const scores =
        p.score + query_index(p, slot, head, static_cast<i32>(block_x()), p.slice) * p.blocks;
    u32* const shared = reinterpret_cast<u32*>(shared_memory());
    const auto count = [&](u32 least, i32 round) {
        u32 found = 0;
        for (i32 block = thread; block < earlier; block += PICK_THREADS) {
            found += scores[block] >= least ? 1u : 0u;
        }
        return pick_sum(found, shared + round % 2 * PICK_WARPS);
    };
    // The greatest number that `most` scores reach, bit by bit, or one that no more reach.
    u32 bound = 0;
    for (i32 bit = 31; bit >= 0; --bit) {
        const u32 higher = bound | 1u << bit;
        const u32 reached = count(higher, bit);
        if (reached >= most) {
            bound = higher;
        }
        if (reached == most) {
            break;
        }
    }
    // A thread has consecutive blocks; all above the bound are chosen, and the first of those at it.
    const i32 each = (earlier + PICK_THREADS - 1) / PICK_THREADS;
    const i32 begin = minimum(thread * each, earlier);
    const i32 end = minimum(begin + each, earlier);
    u32 above = 0;
    u32 equal = 0;
    for (i32 block = begin; block < end; ++block) {
        const u32 score = scores[block];
        above += score > bound ? 1u : 0u;
        equal += score == bound ? 1u : 0u;
    }
    u32* const counts = shared + 2 * PICK_WARPS;
    counts[thread] = above;
    counts[PICK_THREADS + thread] = equal;
    block_barrier();
    u32 above_before = 0;
    u32 equal_before = 0;
    u32 above_all = 0;
    for (i32 other = 0; other < PICK_THREADS; ++other) {
        const u32 of_other = counts[other];
        above_all += of_other;
        if (other < thread) {
            above_before += of_other;
            equal_before += counts[PICK_THREADS + other];
        }
    }
    const u32 of_equal = most - above_all;
    i32* const chosen = p.chosen + query_index(p, slot, head, token, p.lengths.seq_len) * p.most_chosen;
    for (i32 block = begin; block < end; ++block) {
        const u32 score = scores[block];
        const bool is_equal = score == bound;
        if (score > bound || (is_equal && equal_before < of_equal)) {
            chosen[above_before + minimum(equal_before, of_equal)] = block;
        }
        above_before += score > bound ? 1u : 0u;
        equal_before += is_equal ? 1u : 0u;
    }
}

}  // namespace ratplus

#define RATPLUS_SCORE(T, name)                                                                              \
    RATPLUS_KERNEL(ratplus_block_top_k_attention_choose_score_##name, ratplus::BlockTopKParams, 128, 4) { \
        ratplus::block_score<T>(p);                                                                         \
    }

RATPLUS_SCORE(float, f32)
RATPLUS_SCORE(ratplus::bf16, bf16)
RATPLUS_SCORE(ratplus::f16, f16)

RATPLUS_KERNEL(ratplus_block_top_k_attention_choose_pick, ratplus::BlockTopKParams, 128, 8) { ratplus::block_pick(p); }
