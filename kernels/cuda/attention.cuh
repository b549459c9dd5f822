// Where the tensors of one query head of one slot are, and which cache rows keep which tokens.
#pragma once
#include "dilated_attention.h"
#include "rotary.cuh"
#include "slot.cuh"

namespace ratplus {

// The dilated tokens below `position`.
RATPLUS_DEVICE i32 dilated_below(const HeadPattern& head, i32 position) {
    return head.dilation > 0 ? position / head.dilation : 0;
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

// The key-value head, of those of this launch, that a block of one query head reads; and which of its query heads
// that is.
RATPLUS_DEVICE u32 block_kv_head(const AttentionParams& p) { return block_y() / static_cast<u32>(p.group); }
RATPLUS_DEVICE u32 block_member(const AttentionParams& p) { return block_y() % static_cast<u32>(p.group); }

template <typename T>
struct HeadTensors {
    // Tokens of the chunk: queries and outputs `query_stride` elements apart, keys and values `token_stride`.
    const T* query;
    const T* key;
    const T* value;
    T* output;
    // The key-value head's first cache row; rows are head_dim elements.
    T* cache_key;
    T* cache_value;
    // The chunk's rotated keys, tokens head_dim elements apart; not used without a window.
    T* rotated;
    i64 query_stride;
    i64 token_stride;

    // `index` counts the key-value heads of this launch, `member` the query heads of that one.
    RATPLUS_DEVICE HeadTensors(const AttentionParams& p, u32 slot, u32 index, u32 member) {
        const i64 head = p.first_head + static_cast<i32>(index);
        const i64 tokens = static_cast<i64>(slot) * p.lengths.seq_len;
        query_stride = static_cast<i64>(p.num_heads) * p.head_dim;
        token_stride = static_cast<i64>(p.num_heads / p.group) * p.head_dim;
        const i64 of_query = tokens * query_stride + (head * p.group + member) * p.head_dim;
        const i64 at = tokens * token_stride + head * p.head_dim;
        query = static_cast<const T*>(p.query) + of_query;
        key = static_cast<const T*>(p.key) + at;
        value = static_cast<const T*>(p.value) + at;
        output = static_cast<T*>(p.output) + of_query;
        const i64 row = (static_cast<i64>(slot) * p.rows + p.heads[index].row_offset) * p.head_dim;
        cache_key = static_cast<T*>(p.cache_key) + row;
        cache_value = static_cast<T*>(p.cache_value) + row;
        rotated = static_cast<T*>(p.rotated) +
                  (static_cast<i64>(slot) * p.launch_heads + index) * p.lengths.seq_len * p.head_dim;
    }
};

// Where a key and its value are.
template <typename T>
struct KeyPlace {
    const T* key;
    const T* value;
};

// The keys of a tile that one query sees: those from `low` up to, but not including, `high`.
struct Visible {
    i32 low;
    i32 high;
};

}  // namespace ratplus
