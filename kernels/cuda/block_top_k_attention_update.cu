// What becomes of a chunk's keys and values: `keep` writes their cache rows, `summary` then the summaries of
// the blocks that they are in.
#include "block_top_k.cuh"
#include "rows.cuh"

namespace ratplus {

template <typename T>
RATPLUS_DEVICE void block_keep(const BlockTopKParams& p) {
    const Slot s = read_slot(p.lengths, block_z(), block_x() == 0 && block_y() == 0 && thread_index() == 0);
    const i32 token = static_cast<i32>((block_x() * block_threads() + thread_index()) / ROW_LANES);
    const i32 lane = static_cast<i32>(thread_index() % ROW_LANES);
    if (token >= s.tokens) {
        return;
    }
    const i32 head = static_cast<i32>(block_y());
    const i32 dim = p.head_dim;
    const i64 position = s.past + token;
    const i64 table = position * (dim / 2);
    const i64 from = token_row(p, block_z(), token, kv_heads(p), head);
    const i64 to = cache_row(p, block_z(), head) + position * dim;
    rotate_row(static_cast<T*>(p.cache_key) + to, static_cast<const T*>(p.key) + from, p.cos + table, p.sin + table,
               dim, lane);
    copy_row(static_cast<T*>(p.cache_value) + to, static_cast<const T*>(p.value) + from, dim, lane);
}

// A block a block of keys that the chunk writes to, a thread a channel.
template <typename T>
RATPLUS_DEVICE void block_summary(const BlockTopKParams& p) {
    const Slot s = read_slot(p.lengths, block_z(), false);
    const i32 past = static_cast<i32>(s.past);
    const i32 block = past / p.block_size + static_cast<i32>(block_x());
    const i64 begins = static_cast<i64>(block) * p.block_size;
    const i64 end = minimum(begins + p.block_size, s.past + s.tokens);
    if (s.tokens == 0 || begins >= end) {
        return;
    }
    const i32 head = static_cast<i32>(block_y());
    const i64 dim = p.head_dim;
    const i64 first = maximum(begins, s.past);
    const bool continues = first > begins;
    const T* const keys = static_cast<const T*>(p.cache_key) + cache_row(p, block_z(), head);
    float* const rows = p.summary + summary_row(p, block_z(), head) + static_cast<i64>(block) * p.parts * dim;
    for (i64 d = thread_index(); d < dim; d += block_threads()) {
        const T* key = keys + first * dim + d;
        const float start = widen(*key);
        if (p.parts == 1) {
            float sum = continues ? rows[d] + start : start;
            for (i64 position = first + 1; position < end; ++position) {
                key += dim;
                sum += widen(*key);
            }
            rows[d] = sum;
        } else {
            float least = continues ? smaller(rows[d], start) : start;
            float greatest = continues ? larger(rows[dim + d], start) : start;
            for (i64 position = first + 1; position < end; ++position) {
                key += dim;
                const float next = widen(*key);
                least = smaller(least, next);
                greatest = larger(greatest, next);
            }
            rows[d] = least;
            rows[dim + d] = greatest;
        }
    }
}

}  // namespace ratplus

#define RATPLUS_UPDATE(T, name)                                                                               \
    RATPLUS_KERNEL(ratplus_block_top_k_attention_update_keep_##name, ratplus::BlockTopKParams, 128, 8) {    \
        ratplus::block_keep<T>(p);                                                                            \
    }                                                                                                         \
    RATPLUS_KERNEL(ratplus_block_top_k_attention_update_summary_##name, ratplus::BlockTopKParams, 128, 8) { \
        ratplus::block_summary<T>(p);                                                                         \
    }

RATPLUS_UPDATE(float, f32)
RATPLUS_UPDATE(ratplus::bf16, bf16)
RATPLUS_UPDATE(ratplus::f16, f16)
