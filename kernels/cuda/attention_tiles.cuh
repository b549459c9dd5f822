// What the kernels for tiles of queries share: the queries, and what each has of its own token.
#pragma once
#include "attention.cuh"

namespace ratplus {

// Shared tiles are rows of DIM 16-bit elements, in chunks of sixteen bytes; chunks of one number
// in eight consecutive rows lie in different banks.
template <i32 DIM>
RATPLUS_DEVICE i32 chunk_at(i32 row, i32 chunk) {
    return row * DIM + (chunk ^ (row & 7)) * 8;
}

// Scores in shared memory and fragments are products; this turns one into a power of two. A negative
// scale is in the queries' sign, so that the largest product has the largest score.
RATPLUS_DEVICE float score_scale(const AttentionParams& p) { return magnitude(p.scale) * LOG2_E; }
// Score of a key that a query does not see.
RATPLUS_DEVICE float masked() { return from_bits(0xff800000u); }
// The largest power of two that a score is taken from in one rounding with its scaling: past it the
// two would differ by more than a weight's rounding, and the difference comes first.
constexpr float FAR_SCORE = 1024.0f;

// Calls `put(first, place, there)` for the rows `own`, `own` + STEP, ... of a tile of keys: `first` counts
// from `own`, `place` is where the row's key and value are, or anything valid where it is not `there`.
template <typename T, i32 DIM, i32 KEYS, i32 STEP, class Keys, class Tile, class Put>
RATPLUS_DEVICE void each_key(const Keys& set, const HeadTensors<T>& at, const Tile& tile, i32 past, i32 own,
                             const Put& put) {
    const auto there = [&](i32 first) { return own + first < tile.count; };
    if (!set.even(tile)) {
        RATPLUS_UNROLL_2
        for (i32 first = 0; first < KEYS; first += STEP) {
            put(first, set.template place<T, DIM>(at, tile, there(first) ? own + first : 0, past), there(first));
        }
        return;
    }
    const KeyPlace<T> start = set.template place<T, DIM>(at, tile, 0, past);
    RATPLUS_UNROLL_2
    for (i32 first = 0; first < KEYS && tile.count < KEYS; first += STEP) {
        const i32 from = there(first) ? (own + first) * DIM : 0;
        put(first, KeyPlace<T>{start.key + from, start.value + from}, there(first));
    }
    const KeyPlace<T> from = {start.key + own * DIM, start.value + own * DIM};
    RATPLUS_UNROLL
    for (i32 first = 0; first < KEYS && tile.count == KEYS; first += STEP) {
        put(first, KeyPlace<T>{from.key + first * DIM, from.value + first * DIM}, true);
    }
}

// The queries of a tile on their way to shared memory, rotated and each scored against its own key.
// Each of THREADS threads, whole warps, has sixteen bytes of both halves of ROWS rows. They are loaded
// all at once, and first: the block has nothing else to do.
template <typename T, i32 DIM, i32 THREADS, i32 QUERIES>
struct Queries {
    static constexpr i32 HALF = DIM / 2;
    static constexpr i32 LANES = HALF / 8;
    static constexpr i32 STEP = THREADS / LANES;
    static constexpr i32 ROWS = QUERIES / STEP;
    static_assert(ROWS * STEP == QUERIES, "threads share the rows");
    i32 row;
    i32 lane;
    i32 count;
    Vec16 query[ROWS][2];
    Vec16 key[ROWS][2];
    float cos[ROWS][8];
    float sin[ROWS][8];

    // Of the tokens from `token` on, `count` of them.
    RATPLUS_DEVICE Queries(const AttentionParams& p, const HeadTensors<T>& at, i32 token, i32 past, i32 count_,
                           i32 thread)
        : row(thread / LANES), lane(thread % LANES), count(count_) {
        RATPLUS_UNROLL
        for (i32 i = 0; i < ROWS; ++i) {
            const i32 own = token + row + i * STEP;
            query[i][0] = query[i][1] = key[i][0] = key[i][1] = Vec16{};
            if (row + i * STEP < count) {
                const T* const of_query = at.query + own * at.query_stride + lane * 8;
                const i64 from = own * at.token_stride + lane * 8;
                query[i][0] = load16(of_query);
                query[i][1] = load16(of_query + HALF);
                key[i][0] = load16(at.key + from);
                key[i][1] = load16(at.key + from + HALF);
                const i64 table = static_cast<i64>(past + own) * HALF + lane * 8;
                load_floats(p.cos + table, cos[i]);
                load_floats(p.sin + table, sin[i]);
            }
        }
    }

    // `queries` gets QUERIES rows, zero from `count` on, with the scale's sign; `scores` gets one
    // product a row, zero likewise. `place(row, chunk)` is where sixteen bytes go.
    template <typename Place>
    RATPLUS_DEVICE void store(const AttentionParams& p, T* queries, float* scores, const Place& place) const {
        // Flips the sign of both elements of a word.
        const u32 sign = p.scale < 0.0f ? 0x80008000u : 0u;
        float sum[ROWS];
        RATPLUS_UNROLL
        for (i32 i = 0; i < ROWS; ++i) {
            Vec16 half[2] = {};
            sum[i] = 0.0f;
            if (row + i * STEP < count) {
                Vec16 own[2];
                rotate<T>(query[i][0], query[i][1], cos[i], sin[i], half[0], half[1]);
                rotate<T>(key[i][0], key[i][1], cos[i], sin[i], own[0], own[1]);
                RATPLUS_UNROLL
                for (i32 h = 0; h < 2; ++h) {
                    float x[8], y[8];
                    RATPLUS_UNROLL
                    for (i32 w = 0; w < 4; ++w) {
                        half[h].word[w] ^= sign;
                    }
                    unpack<T>(half[h], x);
                    unpack<T>(own[h], y);
                    RATPLUS_UNROLL
                    for (i32 d = 0; d < 8; ++d) {
                        sum[i] = fma(x[d], y[d], sum[i]);
                    }
                }
            }
            store16(queries + place(row + i * STEP, lane), half[0]);
            store16(queries + place(row + i * STEP, lane + LANES), half[1]);
        }
        RATPLUS_UNROLL
        for (i32 i = 0; i < ROWS; ++i) {
            RATPLUS_UNROLL
            for (u32 mask = LANES / 2; mask > 0; mask /= 2) {
                sum[i] += shuffle_xor(sum[i], mask);
            }
            if (lane == 0) {
                scores[row + i * STEP] = sum[i];
            }
        }
    }
};

// The values of a thread's two rows of a fragment, eight apart: two columns of every eight, as they lie
// in memory.
template <typename T, i32 DIM>
struct OwnValues {
    u32 word[2][DIM / 8];

    // `row` counts the rows from `token` on, of which `count` are there; others get the last one's.
    RATPLUS_DEVICE void load(const HeadTensors<T>& at, i32 token, i32 row, i32 count, i32 column) {
        RATPLUS_UNROLL
        for (i32 half = 0; half < 2; ++half) {
            const i32 own = token + minimum(row + 8 * half, count - 1);
            const T* const value = at.value + own * at.token_stride + column;
            RATPLUS_UNROLL
            for (i32 n = 0; n < DIM / 8; ++n) {
                word[half][n] = *reinterpret_cast<const u32*>(value + 8 * n);
            }
        }
    }
};

}  // namespace ratplus
