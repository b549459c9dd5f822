// The keys of DilatedAttention, as a set of keys: what the attention kernels know of which keys a
// query sees, its own apart, and where they are. Another set is another struct with these members:
//
// - `of(query)`: the keys of one query in an order of their own. `count` of them; `row(i)` is the
//   cache row of key i, counted from the head's first, or, where the chunk has it, `token(i, past)`
//   is its token of the chunk, negative where it has not.
// - `tiles<KEYS>(first, count)`: tiles of up to KEYS keys, that the queries `first .. first + count`
//   see: `count` of them, `tile(index)`, and `all_visible(tile)`, whether they all see KEYS of it;
// - `sight(query)`: what is worth keeping of a query from tile to tile, for `visible(tile, sight)`,
//   the range of a tile's `count` keys that the query sees;
// - `even(tile)`: whether the tile's keys lie in consecutive rows of the cache;
// - `place<T, DIM>(at, tile, index, past)` where key `index` and its value are. It runs for every
//   row, and divides nothing;
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
    // Of the band: where the ring keeps `first`, counted from the ring's start.
    i32 turn;
};

// What a query sees of the packed keys, and its position.
struct DilatedSight {
    i32 packed;
    i32 query;
};

// Packed ones, then the band.
template <i32 KEYS>
struct DilatedTiles {
    i32 packed_keys;
    i32 band_first;
    i32 band_keys;
    // Where the ring keeps `band_first`.
    i32 band_turn;
    i32 window;
    // Of the packed keys, those that the first query sees.
    i32 packed_by_all;
    // From where on the last query sees the band, and the first query.
    i32 band_by_last;
    i32 query;
    i32 packed_tiles;
    i32 count;

    RATPLUS_DEVICE DilatedTile tile(i32 index) const {
        const bool packed = index < packed_tiles;
        const i32 first = (packed ? index : index - packed_tiles) * KEYS;
        const i32 keys = packed ? packed_keys : band_keys;
        // Of what the ring still keeps, it turns at most once.
        const i32 turn = band_turn + first < window ? band_turn + first : band_turn + first - window;
        return {packed, packed ? first : band_first + first, minimum(keys - first, KEYS), turn};
    }

    RATPLUS_DEVICE bool all_visible(const DilatedTile& tile) const {
        return tile.packed ? tile.first + KEYS <= packed_by_all
                           : tile.first + KEYS <= query && band_by_last <= tile.first;
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
    // Rows between the initial tokens' and those of the dilated ones.
    i32 skipped;

    // Of a key-value head of this launch.
    RATPLUS_DEVICE DilatedKeys(const AttentionParams& p, u32 index)
        : head(p.heads[index]), skipped(head.window + dilated_below(head, head.initial)) {}

    RATPLUS_DEVICE DilatedRows of(i32 query) const {
        const i32 packed = packed_limit(head, query);
        const i32 first = band_start(head, query);
        return {
            head.initial,
            head.window,
            packed,
            first,
            packed + maximum(query - first, 0),
            skipped,
            head.window > 0 ? first % head.window : 0,
        };
    }

    template <i32 KEYS>
    RATPLUS_DEVICE DilatedTiles<KEYS> tiles(i32 first, i32 count) const {
        const i32 last = first + count - 1;
        const i32 packed_keys = packed_limit(head, last);
        const i32 band_first = band_start(head, first);
        // Without a window nobody sees another's own key.
        const bool banded = head.window > 0;
        const i32 band_keys = banded ? maximum(last - band_first, 0) : 0;
        const i32 packed_tiles = (packed_keys + KEYS - 1) / KEYS;
        return {
            packed_keys,
            band_first,
            band_keys,
            banded ? band_first % head.window : 0,
            head.window,
            packed_limit(head, first),
            band_start(head, last),
            first,
            packed_tiles,
            packed_tiles + (band_keys + KEYS - 1) / KEYS,
        };
    }

    RATPLUS_DEVICE DilatedSight sight(i32 query) const { return {packed_limit(head, query), query}; }

    RATPLUS_DEVICE Visible visible(const DilatedTile& tile, const DilatedSight& sight) const {
        if (tile.packed) {
            return {0, sight.packed - tile.first};
        }
        return {band_start(head, sight.query) - tile.first, sight.query - tile.first};
    }

    RATPLUS_DEVICE bool even(const DilatedTile& tile) const {
        return tile.packed &&
               (tile.first >= head.initial || skipped == 0 || tile.first + tile.count <= head.initial);
    }

    template <typename T, i32 DIM>
    RATPLUS_DEVICE KeyPlace<T> place(const HeadTensors<T>& at, const DilatedTile& tile, i32 index, i32 past) const {
        const i32 number = tile.first + index;
        if (!tile.packed && number >= past) {
            const i64 token = number - past;
            return {at.rotated + token * DIM, at.value + token * at.token_stride};
        }
        i32 row;
        if (tile.packed) {
            row = number < head.initial ? number : number + skipped;
        } else {
            const i32 turn = tile.turn + index;
            row = head.initial + (turn < head.window ? turn : turn - head.window);
        }
        const i64 from = static_cast<i64>(row) * DIM;
        return {at.cache_key + from, at.cache_value + from};
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
