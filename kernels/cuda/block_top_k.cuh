// Where the tensors of BlockTopKAttention are.
#pragma once
#include "block_top_k_attention.h"
#include "rotary.cuh"
#include "slot.cuh"

namespace ratplus {

RATPLUS_DEVICE i32 kv_heads(const BlockTopKParams& p) { return p.num_heads / p.group; }

// A token's row of `head`, of tensors whose tokens have `heads` heads.
RATPLUS_DEVICE i64 token_row(const BlockTopKParams& p, u32 slot, i32 token, i32 heads, i32 head) {
    const i64 tokens = static_cast<i64>(slot) * p.lengths.seq_len + token;
    return (tokens * heads + head) * p.head_dim;
}

// The cache row of a key-value head's first position.
RATPLUS_DEVICE i64 cache_row(const BlockTopKParams& p, u32 slot, i32 kv_head) {
    return (static_cast<i64>(slot) * kv_heads(p) + kv_head) * p.lengths.max_seq_len * p.head_dim;
}

// The first summary row of a key-value head.
RATPLUS_DEVICE i64 summary_row(const BlockTopKParams& p, u32 slot, i32 kv_head) {
    return (static_cast<i64>(slot) * kv_heads(p) + kv_head) * p.blocks * p.parts * p.head_dim;
}

// Of a query, as `BlockTopKParams::score` and `chosen` have them: [B, H, tokens].
RATPLUS_DEVICE i64 query_index(const BlockTopKParams& p, u32 slot, i32 head, i32 token, i32 tokens) {
    return (static_cast<i64>(slot) * p.num_heads + head) * tokens + token;
}

}  // namespace ratplus
