// Attention over the keys that a query sees. They are cut into shares of SHARE_KEYS; a warp computes the softmax
// of a share, and shares are joined in their order. `whole` has a warp a query, `share` a warp a share, whose
// results `join` joins: both have the same bits.
#include "block_top_k_keys.cuh"

namespace ratplus {

constexpr i32 ATTEND_WARPS = 4;
constexpr i32 SHARE_KEYS = 64;
constexpr i32 JOIN_THREADS = 128;

// A row of DIM channels: sixteen bytes a lane, so that a warp may have more than one row.
template <typename T, i32 DIM>
struct WideRow {
    static constexpr i32 EACH = LANE_ELEMENTS<T>;
    static constexpr i32 LANES = DIM / EACH;
    // Rows of a group of lanes that are loaded before the first is used.
    static constexpr i32 AHEAD = 4;
    using Raw = Vec16;
    static_assert(LANES <= static_cast<i32>(WARP) && LANES >= 4, "a row fits a warp");

    i32 first;

    RATPLUS_DEVICE explicit WideRow(const BlockTopKParams&)
        : first(static_cast<i32>(thread_index() % WARP) % LANES * EACH) {}
    RATPLUS_DEVICE i32 dim() const { return DIM; }
    RATPLUS_DEVICE Raw nothing() const { return Vec16{}; }
    RATPLUS_DEVICE Raw load(const T* row) const { return load16(row + first); }
    RATPLUS_DEVICE void unpack_row(const Raw& raw, float (&to)[EACH]) const { unpack<T>(raw, to); }
    RATPLUS_DEVICE void store(T* row, const float (&from)[EACH]) const { store16(row + first, pack<T>(from)); }
    RATPLUS_DEVICE void store_sums(float* row, const float (&from)[EACH]) const {
        RATPLUS_UNROLL
        for (i32 i = 0; i < EACH; ++i) {
            row[first + i] = from[i];
        }
    }
    RATPLUS_DEVICE void rotated(const T* row, const float* cos, const float* sin, float (&to)[EACH]) const {
        constexpr i32 HALF = DIM / 2;
        const bool low = first < HALF;
        const i32 d = low ? first : first - HALF;
        float c[EACH], s[EACH];
        load_floats(cos + d, c);
        load_floats(sin + d, s);
        unpack<T>(load16(row + first), to);
        RATPLUS_UNROLL
        for (i32 i = 0; i < EACH; ++i) {
            const float other = shuffle_xor(to[i], LANES / 2);
            to[i] = low ? rotate_low(to[i], other, c[i], s[i]) : rotate_high(other, to[i], c[i], s[i]);
        }
    }
};

// A row of up to 32 * COUNT channels; channel d lies with lane d % 32.
template <typename T, i32 COUNT>
struct AnyRow {
    static constexpr i32 EACH = COUNT;
    static constexpr i32 LANES = static_cast<i32>(WARP);
    static constexpr i32 AHEAD = COUNT <= 4 ? 4 : 1;
    struct Raw {
        T value[COUNT];
    };

    i32 channels;
    i32 lane;

    RATPLUS_DEVICE explicit AnyRow(const BlockTopKParams& p)
        : channels(p.head_dim), lane(static_cast<i32>(thread_index() % WARP)) {}
    RATPLUS_DEVICE i32 dim() const { return channels; }
    RATPLUS_DEVICE i32 channel(i32 index) const { return lane + index * LANES; }
    RATPLUS_DEVICE Raw nothing() const { return Raw{}; }
    RATPLUS_DEVICE Raw load(const T* row) const {
        Raw raw{};
        RATPLUS_UNROLL
        for (i32 i = 0; i < COUNT; ++i) {
            if (channel(i) < channels) {
                raw.value[i] = row[channel(i)];
            }
        }
        return raw;
    }
    RATPLUS_DEVICE void unpack_row(const Raw& raw, float (&to)[COUNT]) const {
        RATPLUS_UNROLL
        for (i32 i = 0; i < COUNT; ++i) {
            to[i] = widen(raw.value[i]);
        }
    }
    RATPLUS_DEVICE void store(T* row, const float (&from)[COUNT]) const {
        RATPLUS_UNROLL
        for (i32 i = 0; i < COUNT; ++i) {
            if (channel(i) < channels) {
                row[channel(i)] = narrow<T>(from[i]);
            }
        }
    }
    RATPLUS_DEVICE void store_sums(float* row, const float (&from)[COUNT]) const {
        RATPLUS_UNROLL
        for (i32 i = 0; i < COUNT; ++i) {
            if (channel(i) < channels) {
                row[channel(i)] = from[i];
            }
        }
    }
    RATPLUS_DEVICE void rotated(const T* row, const float* cos, const float* sin, float (&to)[COUNT]) const {
        const i32 half = channels / 2;
        RATPLUS_UNROLL
        for (i32 i = 0; i < COUNT; ++i) {
            const i32 d = channel(i);
            to[i] = 0.0f;
            if (d < channels) {
                const i32 pair = d < half ? d : d - half;
                const float x = widen(row[pair]);
                const float y = widen(row[pair + half]);
                to[i] = d < half ? rotate_low(x, y, cos[pair], sin[pair]) : rotate_high(x, y, cos[pair], sin[pair]);
            }
        }
    }
};

// The largest score, and how much of two softmaxes counts beside it.
struct Joined {
    float top;
    float one;
    float other;

    RATPLUS_DEVICE Joined(float top_one, float top_other) : top(larger(top_one, top_other)) {
        one = exp2_fast(top_one - top);
        other = exp2_fast(top_other - top);
    }
    // One rounding after the product of the first, the same in every kernel.
    RATPLUS_DEVICE float of(float a, float b) const { return fma(other, b, a * one); }
};

// A softmax over some keys: the largest score, the sum of the weights relative to it, and this lane's channels
// of the weighted values. Of no keys all are lowest.
template <i32 EACH>
struct Softmax {
    float top;
    float total;
    float sum[EACH];

    RATPLUS_DEVICE void clear() {
        top = LOWEST;
        total = 0.0f;
        RATPLUS_UNROLL
        for (i32 i = 0; i < EACH; ++i) {
            sum[i] = 0.0f;
        }
    }
    RATPLUS_DEVICE void join(const Softmax& later) {
        const Joined joined(top, later.top);
        top = joined.top;
        total = joined.of(total, later.total);
        RATPLUS_UNROLL
        for (i32 i = 0; i < EACH; ++i) {
            sum[i] = joined.of(sum[i], later.sum[i]);
        }
    }
};

// What a warp has of one query.
template <typename T, class Row>
struct Query {
    static constexpr i32 EACH = Row::EACH;
    static constexpr i32 LANES = Row::LANES;
    static constexpr i32 GROUPS = static_cast<i32>(WARP) / LANES;

    Row row;
    i32 group;
    BlockKeys keys;
    const T* key;
    const T* value;
    float query[EACH];

    RATPLUS_DEVICE Query(const BlockTopKParams& p, const Slot& s, u32 slot, i32 head, i32 token)
        : row(p),
          group(static_cast<i32>(thread_index() % WARP) / LANES),
          keys(p, slot, head, token, static_cast<i32>(s.past) + token) {
        const i64 rows = cache_row(p, slot, head / p.group);
        key = static_cast<const T*>(p.cache_key) + rows;
        value = static_cast<const T*>(p.cache_value) + rows;
        const i64 table = (s.past + token) * (row.dim() / 2);
        row.rotated(static_cast<const T*>(p.query) + token_row(p, slot, token, p.num_heads, head), p.cos + table,
                    p.sin + table, query);
        const float scale = p.scale * LOG2_E;
        RATPLUS_UNROLL
        for (i32 i = 0; i < EACH; ++i) {
            query[i] *= scale;
        }
    }

    RATPLUS_DEVICE i32 shares() const { return (keys.count + SHARE_KEYS - 1) / SHARE_KEYS; }

    // The softmax of one share, with the first group of lanes.
    RATPLUS_DEVICE void attend(i32 share, Softmax<EACH>& part) const {
        constexpr i32 AHEAD = Row::AHEAD;
        const i32 begin = share * SHARE_KEYS;
        const i32 end = minimum(begin + SHARE_KEYS, keys.count);
        part.clear();
        for (i32 base = begin; base < end; base += GROUPS * AHEAD) {
            typename Row::Raw k[AHEAD], v[AHEAD];
            bool seen[AHEAD];
            RATPLUS_UNROLL
            for (i32 a = 0; a < AHEAD; ++a) {
                const i32 index = base + a * GROUPS + group;
                const i32 position = index < end ? keys.position(index) : -1;
                seen[a] = position >= 0;
                k[a] = row.nothing();
                v[a] = row.nothing();
                if (seen[a]) {
                    const i64 at = static_cast<i64>(position) * row.dim();
                    k[a] = row.load(key + at);
                    v[a] = row.load(value + at);
                }
            }
            float score[AHEAD];
            float top = part.top;
            RATPLUS_UNROLL
            for (i32 a = 0; a < AHEAD; ++a) {
                float channel[EACH];
                row.unpack_row(k[a], channel);
                float sum = 0.0f;
                RATPLUS_UNROLL
                for (i32 i = 0; i < EACH; ++i) {
                    sum = fma(query[i], channel[i], sum);
                }
                RATPLUS_UNROLL
                for (u32 mask = LANES / 2; mask > 0; mask /= 2) {
                    sum += shuffle_xor(sum, mask);
                }
                score[a] = sum;
                if (seen[a]) {
                    top = larger(top, sum);
                }
            }
            const float keep = exp2_fast(part.top - top);
            RATPLUS_UNROLL
            for (i32 a = 0; a < AHEAD; ++a) {
                const float weight = seen[a] ? exp2_fast(score[a] - top) : 0.0f;
                const float before = a == 0 ? keep : 1.0f;
                float channel[EACH];
                row.unpack_row(v[a], channel);
                part.total = fma(part.total, before, weight);
                RATPLUS_UNROLL
                for (i32 i = 0; i < EACH; ++i) {
                    part.sum[i] = fma(weight, channel[i], part.sum[i] * before);
                }
            }
            part.top = top;
        }
        RATPLUS_UNROLL
        for (u32 mask = LANES; mask < WARP; mask *= 2) {
            Softmax<EACH> other;
            other.top = shuffle_xor(part.top, mask);
            other.total = shuffle_xor(part.total, mask);
            RATPLUS_UNROLL
            for (i32 i = 0; i < EACH; ++i) {
                other.sum[i] = shuffle_xor(part.sum[i], mask);
            }
            part.join(other);
        }
    }
};

RATPLUS_DEVICE i32 warp_of_block() { return static_cast<i32>(thread_index() / WARP); }

template <typename T, class Row>
RATPLUS_DEVICE void attend_whole(const BlockTopKParams& p) {
    const u32 slot = block_z();
    const i32 head = static_cast<i32>(block_y());
    const Slot s = read_slot(p.lengths, slot, false);
    const i32 token = static_cast<i32>(block_x()) * ATTEND_WARPS + warp_of_block();
    if (token >= p.lengths.seq_len) {
        return;
    }
    T* const output = static_cast<T*>(p.output) + token_row(p, slot, token, p.num_heads, head);
    Softmax<Row::EACH> all;
    all.clear();
    if (token >= s.tokens) {
        const Row row(p);
        if (static_cast<i32>(thread_index() % WARP) < Row::LANES) {
            row.store(output, all.sum);
        }
        return;
    }
    const Query<T, Row> query(p, s, slot, head, token);
    const i32 shares = query.shares();
    for (i32 share = 0; share < shares; ++share) {
        Softmax<Row::EACH> part;
        query.attend(share, part);
        all.join(part);
    }
    if (query.group == 0) {
        RATPLUS_UNROLL
        for (i32 i = 0; i < Row::EACH; ++i) {
            all.sum[i] = divide(all.sum[i], all.total);
        }
        query.row.store(output, all.sum);
    }
}

// Where `BlockTopKParams::partial` has a query's first share; each is head_dim + 2 long.
RATPLUS_DEVICE float* partial_of(const BlockTopKParams& p, u32 slot, i32 head, i32 token) {
    return p.partial + query_index(p, slot, head, token, p.lengths.seq_len) * p.shares * (p.head_dim + 2);
}

template <typename T, class Row>
RATPLUS_DEVICE void attend_share(const BlockTopKParams& p) {
    const u32 slot = block_z();
    const i32 head = static_cast<i32>(block_y());
    const Slot s = read_slot(p.lengths, slot, false);
    const i32 blocks = (p.shares + ATTEND_WARPS - 1) / ATTEND_WARPS;
    const i32 token = static_cast<i32>(block_x()) / blocks;
    const i32 share = static_cast<i32>(block_x()) % blocks * ATTEND_WARPS + warp_of_block();
    if (token >= s.tokens) {
        return;
    }
    const Query<T, Row> query(p, s, slot, head, token);
    if (share >= query.shares()) {
        return;
    }
    Softmax<Row::EACH> part;
    query.attend(share, part);
    float* const partial = partial_of(p, slot, head, token) + static_cast<i64>(share) * (p.head_dim + 2);
    if (query.group == 0) {
        query.row.store_sums(partial + 2, part.sum);
        if (thread_index() % WARP == 0) {
            partial[0] = part.top;
            partial[1] = part.total;
        }
    }
}

// A block a query, a thread a channel.
template <typename T>
RATPLUS_DEVICE void attend_join(const BlockTopKParams& p) {
    const u32 slot = block_z();
    const i32 head = static_cast<i32>(block_y());
    const Slot s = read_slot(p.lengths, slot, false);
    const i32 token = static_cast<i32>(block_x());
    T* const output = static_cast<T*>(p.output) + token_row(p, slot, token, p.num_heads, head);
    const bool valid = token < s.tokens;
    i32 shares = 0;
    if (valid) {
        const BlockKeys keys(p, slot, head, token, static_cast<i32>(s.past) + token);
        shares = (keys.count + SHARE_KEYS - 1) / SHARE_KEYS;
    }
    const float* const partial = partial_of(p, slot, head, token);
    for (i32 d = static_cast<i32>(thread_index()); d < p.head_dim; d += JOIN_THREADS) {
        Softmax<1> all;
        all.clear();
        for (i32 share = 0; share < shares; ++share) {
            const float* const at = partial + static_cast<i64>(share) * (p.head_dim + 2);
            Softmax<1> part;
            part.top = at[0];
            part.total = at[1];
            part.sum[0] = at[2 + d];
            all.join(part);
        }
        output[d] = narrow<T>(valid ? divide(all.sum[0], all.total) : 0.0f);
    }
}

}  // namespace ratplus

#define RATPLUS_ATTEND_ROWS(T, name, end, ...)                                                                    \
    RATPLUS_KERNEL(ratplus_block_top_k_attention_attend_whole_##name##_##end, ratplus::BlockTopKParams, 128, 4) { \
        ratplus::attend_whole<T, ratplus::__VA_ARGS__>(p);                                                        \
    }                                                                                                             \
    RATPLUS_KERNEL(ratplus_block_top_k_attention_attend_share_##name##_##end, ratplus::BlockTopKParams, 128, 4) { \
        ratplus::attend_share<T, ratplus::__VA_ARGS__>(p);                                                        \
    }

// Rows of 64 and of 128 channels, and others of up to 128 and 512.
#define RATPLUS_ATTEND(T, name)                                                                                   \
    RATPLUS_ATTEND_ROWS(T, name, 64, WideRow<T, 64>)                                                              \
    RATPLUS_ATTEND_ROWS(T, name, 128, WideRow<T, 128>)                                                            \
    RATPLUS_ATTEND_ROWS(T, name, any_128, AnyRow<T, 4>)                                                           \
    RATPLUS_ATTEND_ROWS(T, name, any_512, AnyRow<T, 16>)                                                          \
    RATPLUS_KERNEL(ratplus_block_top_k_attention_attend_join_##name, ratplus::BlockTopKParams, 128, 8) {          \
        ratplus::attend_join<T>(p);                                                                               \
    }

RATPLUS_ATTEND(float, f32)
RATPLUS_ATTEND(ratplus::bf16, bf16)
RATPLUS_ATTEND(ratplus::f16, f16)
