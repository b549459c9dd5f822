// One sequence of the batch, and which of its keys a query sees.
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
#include "device.cuh"
#include "params.h"

namespace ratplus {

struct Slot {
    i64 past;
    i32 tokens;
};

// Reads and checks a slot's lengths; one thread of the launch should be the `reporter`.
RATPLUS_DEVICE Slot read_slot(const Lengths& lengths, u32 slot, bool reporter) {
    const i64 past = lengths.past_length[slot];
    const i64 tokens = lengths.seq_length[slot];
    const bool fits = past >= 0 && tokens >= 0 && tokens <= lengths.seq_len && past <= lengths.max_seq_len - tokens;
    if (fits) {
        return {past, static_cast<i32>(tokens)};
    }
    if (reporter && lengths.error != nullptr) {
        store_to_host(lengths.error, 1ull << 63 | static_cast<u64>(lengths.node) << 32 | slot);
    }
    return {0, 0};
}

// The dilated tokens below `position`.
RATPLUS_DEVICE i32 dilated_below(const HeadPattern& head, i32 position) {
    return head.dilation > 0 ? position / head.dilation : 0;
}

RATPLUS_DEVICE i32 packed_limit(const HeadPattern& head, i32 query) {
    if (query < head.initial) {
        return query;
    }
    const i32 left = maximum(query - head.window, 0);
    return head.initial + maximum(dilated_below(head, left) - dilated_below(head, head.initial), 0);
}

// Row of a packed key, counted from the head's first.
RATPLUS_DEVICE i32 packed_row(const HeadPattern& head, i32 packed) {
    return packed < head.initial ? packed : packed + head.window + dilated_below(head, head.initial);
}

RATPLUS_DEVICE i32 band_start(const HeadPattern& head, i32 query) {
    return maximum(query - head.window, head.initial);
}

// Row of the ring that keeps `position`, at or past I, in a head with a window.
RATPLUS_DEVICE i32 ring_row(const HeadPattern& head, i32 position) {
    return head.initial + position % head.window;
}

// Row that keeps `position` for good; -1 where none does.
RATPLUS_DEVICE i32 kept_row(const HeadPattern& head, i32 position) {
    if (position < head.initial) {
        return position;
    }
    if (head.dilation > 0 && (position + 1) % head.dilation == 0) {
        return head.initial + head.window + (position + 1) / head.dilation - 1;
    }
    return -1;
}

}  // namespace ratplus
