// What the kernels for tiles of queries share: which keys a tile sees, and the token's own key.
#pragma once
#include "attention.cuh"

namespace ratplus {

// A tile of keys: consecutive packed keys, or consecutive positions of the band.
struct KeyTile {
    bool packed;
    // First packed index, or first position.
    i32 first;
    // How many keys there are from `first` on; fewer than a tile at the end of a run.
    i32 count;
};

// The tiles of KEYS keys that the queries `first .. first + count` see: packed ones, then the band.
template <i32 KEYS>
struct KeyTiles {
    i32 packed_keys;
    i32 band_first;
    i32 band_keys;
    i32 packed_tiles;
    i32 tiles;

    RATPLUS_DEVICE KeyTiles(const HeadPattern& head, i32 first, i32 count) {
        const i32 last = first + count - 1;
        packed_keys = packed_limit(head, last);
        band_first = band_start(head, first);
        // Without a window nobody sees another's own key.
        band_keys = head.window > 0 ? maximum(last - band_first, 0) : 0;
        packed_tiles = (packed_keys + KEYS - 1) / KEYS;
        tiles = packed_tiles + (band_keys + KEYS - 1) / KEYS;
    }

    RATPLUS_DEVICE KeyTile tile(i32 index) const {
        const bool packed = index < packed_tiles;
        const i32 first = (packed ? index : index - packed_tiles) * KEYS;
        const i32 keys = packed ? packed_keys : band_keys;
        return {packed, packed ? first : band_first + first, minimum(keys - first, KEYS)};
    }
};

// The keys of a tile that one query sees: those from `low` up to, but not including, `high`.
struct Visible {
    i32 low;
    i32 high;
};

RATPLUS_DEVICE Visible visible(const HeadPattern& head, const KeyTile& tile, i32 query) {
    if (tile.packed) {
        return {0, packed_limit(head, query) - tile.first};
    }
    return {band_start(head, query) - tile.first, query - tile.first};
}

// Whether every query from `first` to `last` sees all KEYS keys of the tile.
template <i32 KEYS>
RATPLUS_DEVICE bool all_visible(const HeadPattern& head, const KeyTile& tile, i32 first, i32 last) {
    return visible(head, tile, first).high >= KEYS && visible(head, tile, last).low <= 0;
}

// Where the key and the value of the tile's key `index` are.
template <typename T>
struct KeyRow {
    const T* key;
    const T* value;
};

template <typename T, i32 DIM>
RATPLUS_DEVICE KeyRow<T> key_row(const HeadPattern& head, const HeadTensors<T>& at, const KeyTile& tile, i32 index,
                                 i32 past) {
    const i32 number = tile.first + index;
    if (!tile.packed && number >= past) {
        const i64 token = number - past;
        return {at.rotated + token * DIM, at.value + token * at.token_stride};
    }
    const i64 row = static_cast<i64>(tile.packed ? packed_row(head, number) : ring_row(head, number)) * DIM;
    return {at.cache_key + row, at.cache_value + row};
}

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
