// What the kernels of BlockTopKAttention are launched with, by value.
// kernels/src/cuda/block_top_k_attention has the Rust twin; a test compares the two field by field.
#pragma once
#include "lengths.h"

namespace ratplus {

// Cache and summaries are updated in place: `past` has been copied to `present` before where they are not the
// same memory. Sizes beyond M are cut to what means the same.
struct BlockTopKParams {
    Lengths lengths;
    // [B, L, H * dh] of T, before rotary embedding.
    const void* query;
    // [B, L, H / group * dh] of T, before rotary embedding.
    const void* key;
    const void* value;
    // [B, H / group * M, dh] of T.
    void* cache_key;
    void* cache_value;
    // [B, H / group * blocks * parts, dh]
    float* summary;
    // [M, dh / 2]
    const float* cos;
    const float* sin;
    // [B, L, H * dh] of T.
    void* output;
    // Scores of tokens `first_token .. first_token + slice` in their order: [B, H, slice, blocks], see `score_order`.
    u32* score;
    // [B, H, L, most_chosen]: of each query that has more earlier blocks, those that it chose, from the lowest on.
    i32* chosen;
    // [B, H, L, shares, dh + 2]: of each share of a query's keys its softmax.
    float* partial;
    float scale;
    // H
    i32 num_heads;
    // Query heads a key-value head.
    i32 group;
    i32 head_dim;
    // S, and how many of them M has.
    i32 block_size;
    i32 blocks;
    // Rows of a summary: 2 for bounds, the least and the greatest; 1 for the sum.
    i32 parts;
    // K - 1, fewer where there are not as many earlier blocks.
    i32 most_chosen;
    // What is seen of blocks that were not chosen: D, or 0 for none, W and I.
    i32 dilation;
    i32 window;
    i32 initial;
    // Tokens of a launch that scores or chooses.
    i32 first_token;
    i32 slice;
    // Shares that the query with the most keys has.
    i32 shares;
};

}  // namespace ratplus
