// The keys of DilatedAttention, as a set of keys: what the attention kernels know of which keys a
// query sees, its own apart, and where they are. Another set is another struct with these members:
//
// - `of(query)`: the keys of one query in an order of their own. `count` of them; `row(i)` is the
//   cache row of key i, counted from the head's first, or, where the chunk has it, `token(i, past)`
//   is its token of the chunk, negative where it has not.
// - `tiles<KEYS>(first, count)`: tiles of up to KEYS keys, that the queries `first .. first + count`
//   see: `count` of them, and `tile(index)`, in whose `count` keys
// - `visible(tile, query)` is the range that one query sees,
// - `all_visible<KEYS>(tile, first, last)` whether the queries from `first` to `last` all see KEYS,
// - `place<T, DIM>(at, tile, index, past)` where key `index` and its value are;
// - `each_row_of(position, f)`: calls `f` with each cache row that keeps the token at `position`.
//
// The rows are those of ratplus_graphs::cache; a test compares the two over every small pattern.
// A query at position q sees
// - its own key,
// - a prefix of the packed keys: the initial tokens, then the dilated tokens from I on, in the
//   order of their cache rows. `packed_limit` says how many: those before q and, of the dilated
//   ones, those that have left q's window;
// - the band of positions from `band_start` up to q, not counting q: its window but for the
//   initial tokens.
#pragma once
#include "attention.cuh"

namespace ratplus {

RATPLUS_DEVICE i32 packed_limit(const HeadPattern& head, i32 query) {
    if (query < head.initial) {
        return query;
    }
    const i32 left = maximum(query - head.window, 0);
    return head.initial + maximum(dilated_below(head, left) - dilated_below(head, head.initial), 0);
}

RATPLUS_DEVICE i32 band_start(const HeadPattern& head, i32 query) {
    return maximum(query - head.window, head.initial);
}

// A tile of keys: consecutive packed keys, or consecutive positions of the band.
struct DilatedTile {
    bool packed;
    // First packed index, or first position.
    i32 first;
    // How many keys there are from `first` on; fewer than a tile at the end of a run.
    i32 count;
};

// Packed ones, then the band.
template <i32 KEYS>
struct DilatedTiles {
    i32 packed_keys;
    i32 band_first;
    i32 band_keys;
    i32 packed_tiles;
    i32 count;

    RATPLUS_DEVICE DilatedTile tile(i32 index) const {
        const bool packed = index < packed_tiles;
        const i32 first = (packed ? index : index - packed_tiles) * KEYS;
        const i32 keys = packed ? packed_keys : band_keys;
        return {packed, packed ? first : band_first + first, minimum(keys - first, KEYS)};
    }
};

// Packed keys, then the ring from the window's oldest token on.
struct DilatedRows {
    i32 initial;
    i32 window;
    i32 packed;
    // First position of the band.
    i32 first;
    i32 count;
    // Rows between the initial tokens' and those of the dilated ones.
    i32 skipped;
    i32 ring_start;

    RATPLUS_DEVICE i32 row(i32 i) const {
        i32 row = i < initial ? i : i + skipped;
        if (i >= packed) {
            const i32 turn = ring_start + i - packed;
            row = initial + (turn < window ? turn : turn - window);
        }
        return row;
    }

    RATPLUS_DEVICE i32 token(i32 i, i32 past) const { return i >= packed ? first + i - packed - past : -1; }
};

struct DilatedKeys {
    HeadPattern head;

    // Of the block's head.
    RATPLUS_DEVICE explicit DilatedKeys(const AttentionParams& p) : head(p.heads[block_y()]) {}

    RATPLUS_DEVICE DilatedRows of(i32 query) const {
        const i32 packed = packed_limit(head, query);
        const i32 first = band_start(head, query);
        return {
            head.initial,
            head.window,
            packed,
            first,
            packed + maximum(query - first, 0),
            packed_row(head, head.initial) - head.initial,
            head.window > 0 ? first % head.window : 0,
        };
    }

    template <i32 KEYS>
    RATPLUS_DEVICE DilatedTiles<KEYS> tiles(i32 first, i32 count) const {
        const i32 last = first + count - 1;
        const i32 packed_keys = packed_limit(head, last);
        const i32 band_first = band_start(head, first);
        // Without a window nobody sees another's own key.
        const i32 band_keys = head.window > 0 ? maximum(last - band_first, 0) : 0;
        const i32 packed_tiles = (packed_keys + KEYS - 1) / KEYS;
        return {packed_keys, band_first, band_keys, packed_tiles, packed_tiles + (band_keys + KEYS - 1) / KEYS};
    }

    RATPLUS_DEVICE Visible visible(const DilatedTile& tile, i32 query) const {
        if (tile.packed) {
            return {0, packed_limit(head, query) - tile.first};
        }
        return {band_start(head, query) - tile.first, query - tile.first};
    }

    template <i32 KEYS>
    RATPLUS_DEVICE bool all_visible(const DilatedTile& tile, i32 first, i32 last) const {
        return visible(tile, first).high >= KEYS && visible(tile, last).low <= 0;
    }

    template <typename T, i32 DIM>
    RATPLUS_DEVICE KeyPlace<T> place(const HeadTensors<T>& at, const DilatedTile& tile, i32 index, i32 past) const {
        const i32 number = tile.first + index;
        if (!tile.packed && number >= past) {
            const i64 token = number - past;
            return {at.rotated + token * DIM, at.value + token * at.token_stride};
        }
        const i64 row = static_cast<i64>(tile.packed ? packed_row(head, number) : ring_row(head, number)) * DIM;
        return {at.cache_key + row, at.cache_value + row};
    }

    template <class F>
    RATPLUS_DEVICE void each_row_of(i32 position, const F& f) const {
        const i32 kept = kept_row(head, position);
        if (kept >= 0) {
            f(kept);
        }
        if (head.window > 0 && position >= head.initial) {
            f(ring_row(head, position));
        }
    }
};

}  // namespace ratplus
