// What the host passes to the kernels: one struct each, by value. kernels/src/cuda/params.rs is
// its Rust twin; a test compares the two field by field.
#pragma once
#include "types.cuh"

namespace ratplus {

// Where each sequence of the batch stands. Kernels check it themselves: it may be written on the
// device after the launch was prepared. A slot whose lengths do not fit counts as idle
// (seq_length 0) and reports itself in `error`.
struct Lengths {
    // [B], tokens before this chunk.
    const i64* past_length;
    // [B], valid tokens of this chunk.
    const i64* seq_length;
    // Host memory mapped to the device, or null: 1 << 63 | node << 32 | slot of an error.
    u64* error;
    // Number of the node, for `error`.
    u32 node;
    // L.
    i32 seq_len;
    // M; the largest i64 where there is no bound.
    i64 max_seq_len;
};

// RecurrenceScan.
struct ScanParams {
    Lengths lengths;
    // [B, L, N] of T
    const void* key;
    const void* value;
    // Logits.
    const void* gate;
    // [B, N]
    const float* state_key;
    const float* state_value;
    // [B, L, N] of T
    void* gated_key;
    void* gated_value;
    // [B, N]; may be the incoming state.
    float* new_state_key;
    float* new_state_value;
    // Tiled scans only: [B, tiles, 3, N], see scan.cuh.
    float* summary;
    // Tiled scans only: [B, groups, 2, N], the state before each group of tiles.
    float* carry;
    // Single-pass scan only, zero at the start: one ticket, [B, blocks, groups] carry flags,
    // [B, blocks, tiles] summary flags.
    u32* flags;
    i32 batch;
    // N
    i32 channels;
    i32 tiles;
    i32 groups;
};

// One head's pattern, as ratplus_graphs::pattern.
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

// Heads of one launch; layers with more launch more than once.
constexpr i32 MAX_LAUNCH_HEADS = 64;

// DilatedAttention. The cache is updated in place: `past` has been copied to `present` before
// where they are not the same memory.
struct AttentionParams {
    Lengths lengths;
    // [B, L, H * dh] of T, before rotary embedding.
    const void* query;
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
    // L > 1 and a window only: [B, heads of this launch, L, dh] of T, the chunk's rotated keys.
    void* rotated;
    // Split decode only: [B, heads of this launch, splits, dh + 2] f32.
    float* partial;
    // Split decode only: [B, heads of this launch], zero at the start.
    u32* arrived;
    // R
    i64 rows;
    float scale;
    i32 batch;
    // H
    i32 num_heads;
    i32 head_dim;
    // Heads of this launch: `first_head` and the `launch_heads - 1` after it.
    i32 first_head;
    i32 launch_heads;
    i32 splits;
    i32 reserved;
    HeadPattern heads[MAX_LAUNCH_HEADS];
};

}  // namespace ratplus
