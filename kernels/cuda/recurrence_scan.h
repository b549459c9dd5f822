// What the kernels of RecurrenceScan are launched with, by value.
// kernels/src/cuda/recurrence_scan.rs has the Rust twin; a test compares the two field by field.
#pragma once
#include "lengths.h"

namespace ratplus {

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
    // Tiled scans only: [B, tiles, 3, N], see scan_tile.cuh.
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

}  // namespace ratplus
