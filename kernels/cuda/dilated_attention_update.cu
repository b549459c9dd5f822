// What becomes of a chunk's keys and values besides attention.
//
// `keep` runs before the attention: it writes the initial and the dilated tokens to the rows that
// keep them for good, where the attention reads them, and the rotated keys of heads with a window
// to the workspace. No query of the chunk reads what those rows held before.
// `ring` runs after it: the ring's old rows are read by the chunk's first queries.
#include "attention.cuh"
#include "rows.cuh"

namespace ratplus {

template <typename T>
RATPLUS_DEVICE void attention_keep(const AttentionParams& p) {
    const HeadPattern head = p.heads[block_y()];
    const Slot s = read_slot(p.lengths, block_z(), block_x() == 0 && block_y() == 0 && thread_index() == 0);
    const i32 past = static_cast<i32>(s.past);
    const i32 end = past + s.tokens;
    const i32 item = static_cast<i32>((block_x() * block_threads() + thread_index()) / ROW_LANES);
    const i32 lane = static_cast<i32>(thread_index() % ROW_LANES);
    // The item's position: with a window every token's key is wanted, without one only those
    // that are kept.
    i32 position;
    if (head.window > 0) {
        position = past + item;
    } else {
        const i32 initial = maximum(minimum(head.initial, end) - past, 0);
        if (item < initial) {
            position = past + item;
        } else if (head.dilation > 0) {
            const i64 slot = static_cast<i64>(dilated_below(head, maximum(past, head.initial))) + item - initial;
            position = static_cast<i32>(minimum((slot + 1) * head.dilation - 1, static_cast<i64>(end)));
        } else {
            return;
        }
    }
    if (position >= end) {
        return;
    }
    const HeadTensors<T> at(p, block_z(), block_y(), 0);
    const i32 dim = p.head_dim;
    const i32 half = dim / 2;
    const i32 token = position - past;
    const T* const key = at.key + token * at.token_stride;
    const T* const value = at.value + token * at.token_stride;
    const float* const cos = p.cos + static_cast<i64>(position) * half;
    const float* const sin = p.sin + static_cast<i64>(position) * half;
    const i32 row = kept_row(head, position);
    T* const kept = row < 0 ? nullptr : at.cache_key + static_cast<i64>(row) * dim;
    T* const rotated = head.window > 0 ? at.rotated + static_cast<i64>(token) * dim : nullptr;
    constexpr i32 WIDTH = LANE_ELEMENTS<T>;
    if (half % WIDTH == 0) {
        for (i32 d = lane * WIDTH; d < half; d += ROW_LANES * WIDTH) {
            Vec16 low, high;
            rotate_lane(key, cos, sin, half, d, low, high);
            if (kept != nullptr) {
                store16(kept + d, low);
                store16(kept + d + half, high);
            }
            if (rotated != nullptr) {
                store16(rotated + d, low);
                store16(rotated + d + half, high);
            }
        }
    } else {
        for (i32 d = lane; d < half; d += ROW_LANES) {
            const float x = widen(key[d]);
            const float y = widen(key[d + half]);
            const T low = narrow<T>(rotate_low(x, y, cos[d], sin[d]));
            const T high = narrow<T>(rotate_high(x, y, cos[d], sin[d]));
            if (kept != nullptr) {
                kept[d] = low;
                kept[d + half] = high;
            }
            if (rotated != nullptr) {
                rotated[d] = low;
                rotated[d + half] = high;
            }
        }
    }
    if (row >= 0) {
        copy_row(at.cache_value + static_cast<i64>(row) * dim, value, dim, lane);
    }
}

template <typename T>
RATPLUS_DEVICE void attention_ring(const AttentionParams& p) {
    const HeadPattern head = p.heads[block_y()];
    const Slot s = read_slot(p.lengths, block_z(), false);
    // Only the last W tokens: earlier ones would be overwritten by the same chunk.
    const i32 item = static_cast<i32>((block_x() * block_threads() + thread_index()) / ROW_LANES);
    const i32 lane = static_cast<i32>(thread_index() % ROW_LANES);
    const i32 token = maximum(s.tokens - head.window, 0) + item;
    const i32 position = static_cast<i32>(s.past) + token;
    if (head.window == 0 || token >= s.tokens || position < head.initial) {
        return;
    }
    const HeadTensors<T> at(p, block_z(), block_y(), 0);
    const i64 row = static_cast<i64>(ring_row(head, position)) * p.head_dim;
    copy_row(at.cache_key + row, at.rotated + static_cast<i64>(token) * p.head_dim, p.head_dim, lane);
    copy_row(at.cache_value + row, at.value + token * at.token_stride, p.head_dim, lane);
}

}  // namespace ratplus

#define RATPLUS_UPDATE(T, name)                                                                      \
    RATPLUS_KERNEL(ratplus_dilated_attention_update_keep_##name, ratplus::AttentionParams, 128, 8) { \
        ratplus::attention_keep<T>(p);                                                               \
    }                                                                                                \
    RATPLUS_KERNEL(ratplus_dilated_attention_update_ring_##name, ratplus::AttentionParams, 128, 8) { \
        ratplus::attention_ring<T>(p);                                                               \
    }

RATPLUS_UPDATE(float, f32)
RATPLUS_UPDATE(ratplus::bf16, bf16)
RATPLUS_UPDATE(ratplus::f16, f16)
