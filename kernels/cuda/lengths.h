// What every operator is launched with beside its own. kernels/src/cuda/params.rs has the Rust twin.
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

}  // namespace ratplus
