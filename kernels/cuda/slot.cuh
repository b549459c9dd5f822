// One sequence of the batch.
#pragma once
#include "device.cuh"
#include "lengths.h"

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

}  // namespace ratplus
