// What the kernels of DilatedAttention are launched with, by value.
// kernels/src/cuda/dilated_attention has the Rust twins; tests compare them field by field.
#pragma once
#include "lengths.h"

namespace ratplus {

// One key-value head's pattern, as ratplus_graphs::pattern.
struct HeadPattern {
    // D; 0 where the head keeps no dilated keys.
    i32 dilation;
    // W
    i32 window;
    // I
    i32 initial;
    // First row of the head in the layer's cache.
    i32 row_offset;
};

// Key-value heads of one launch; layers with more launch more than once.
constexpr i32 MAX_LAUNCH_HEADS = 64;

// DilatedAttention. The cache is updated in place: `past` has been copied to `present` before
// where they are not the same memory.
struct AttentionParams {
    Lengths lengths;
    // [B, L, H * dh] of T, before rotary embedding.
    const void* query;
    // [B, L, H / group * dh] of T, before rotary embedding.
    const void* key;
    const void* value;
    // [B, R, dh] of T
    void* cache_key;
    void* cache_value;
    // [M, dh / 2]
    const float* cos;
    const float* sin;
    // [B, L, H * dh] of T
    void* output;
    // L > 1 and a window only: [B, key-value heads of this launch, L, dh] of T, the chunk's rotated keys.
    void* rotated;
    // Split decode only: [B, query heads of this launch, splits, dh + 2] f32.
    float* partial;
    // Decode only, with splits or grouped heads: [B, query heads of this launch], then [B, key-value heads of
    // this launch], anything at the start.
    u64* arrived;
    // R
    i64 rows;
    float scale;
    i32 batch;
    // H
    i32 num_heads;
    i32 head_dim;
    // Key-value heads of this launch: `first_head` and the `launch_heads - 1` after it.
    i32 first_head;
    i32 launch_heads;
    i32 splits;
    // Query heads a key-value head.
    i32 group;
    HeadPattern heads[MAX_LAUNCH_HEADS];
};

}  // namespace ratplus
