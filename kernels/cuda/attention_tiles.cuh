// What the kernels for tiles of queries share: the queries, and their scores against their own keys.
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

// Rotates the queries of a tile into shared memory and scores each against its own key.
//
// `queries` gets `rows` rows, zero from `count` on, with the scale's sign; `scores` gets one power
// of two a row, zero likewise. `place(row, chunk)` is where sixteen bytes go. Reached by whole warps,
// of which there are `threads` threads.
template <typename T, i32 DIM, typename Place>
RATPLUS_DEVICE void load_queries(const AttentionParams& p, const HeadTensors<T>& at, i32 token, i32 past, i32 rows,
                                 i32 count, i32 thread, i32 threads, T* queries, float* scores, const Place& place) {
    constexpr i32 HALF = DIM / 2;
    constexpr i32 LANES = HALF / 8;
    const i32 lane = thread % LANES;
    // Flips the sign of both elements of a word.
    const u32 sign = p.scale < 0.0f ? 0x80008000u : 0u;
    for (i32 row = thread / LANES; row < rows; row += threads / LANES) {
        float sum = 0.0f;
        Vec16 low = {};
        Vec16 high = {};
        if (row < count) {
            const i64 table = static_cast<i64>(past + token + row) * HALF;
            const i64 from = (token + row) * at.token_stride;
            Vec16 key_low, key_high;
            rotate_lane(at.query + from, p.cos + table, p.sin + table, HALF, lane * 8, low, high);
            rotate_lane(at.key + from, p.cos + table, p.sin + table, HALF, lane * 8, key_low, key_high);
            RATPLUS_UNROLL
            for (i32 i = 0; i < 4; ++i) {
                low.word[i] ^= sign;
                high.word[i] ^= sign;
            }
            const auto add = [&](const Vec16& a, const Vec16& b) {
                float x[8], y[8];
                unpack<T>(a, x);
                unpack<T>(b, y);
                RATPLUS_UNROLL
                for (i32 i = 0; i < 8; ++i) {
                    sum = fma(x[i], y[i], sum);
                }
            };
            add(low, key_low);
            add(high, key_high);
        }
        RATPLUS_UNROLL
        for (u32 mask = LANES / 2; mask > 0; mask /= 2) {
            sum += shuffle_xor(sum, mask);
        }
        store16(queries + place(row, lane), low);
        store16(queries + place(row, lane + LANES), high);
        if (lane == 0) {
            scores[row] = sum * score_scale(p);
        }
    }
}

}  // namespace ratplus
