// One token a sequence, in one launch: rotary embedding, attention over the cache rows that the
// query sees, and the token's own rows.
//
// A block has a share of the rows that one query head of one slot reads. Sixteen bytes a lane: a group of
// lanes holds a row, each group every GROUPS-th row, and keeps its own online softmax. Shares are merged in
// their order by the block that arrives last, so that bits do not depend on timing. Of the query heads that
// read the same rows, which they find in the cache that all multiprocessors share, the one that is done last
// writes the new rows, because until then other blocks read the row that leaves the ring.
#pragma once
#include "attention.cuh"

namespace ratplus {

constexpr i32 DECODE_THREADS = 128;
constexpr i32 DECODE_WARPS = DECODE_THREADS / static_cast<i32>(WARP);
// Rows of a group that are loaded before the first is used.
constexpr i32 DECODE_AHEAD = 4;
// Shares are a multiple of this many rows, and no share but the last is smaller.
constexpr i32 SHARE_ROWS = 256;
// Two numbers a warp, a row a warp, two rows of the token itself.
template <i32 DIM>
constexpr i32 DECODE_SHARED_FLOATS = 2 * DECODE_WARPS + (DECODE_WARPS + 2) * DIM;

// This block's query head, of those of all slots in this launch.
RATPLUS_DEVICE i64 launched_query(const AttentionParams& p) {
    return static_cast<i64>(block_z()) * p.launch_heads * p.group + block_y();
}

// Counts the blocks of a query head, or the query heads of a key-value head, that are done, in memory that
// holds anything at the start: its upper 56 bits are a mark, and where they are not, the first block to look
// puts it there. No block counts before it has looked, and the last one leaves a count of zero. As f32 and in
// its first halves the mark is a NaN that no instruction makes: what a kernel computed is not taken for a
// count.
struct Arrivals {
    static constexpr u64 MARK = 0x7fb9ffe37fb9ff00ull;
    u64* const at;

    RATPLUS_DEVICE explicit Arrivals(u64* at_) : at(at_) {}
    // Of the blocks of this block's query head.
    RATPLUS_DEVICE static Arrivals of_blocks(const AttentionParams& p) { return Arrivals(p.arrived + launched_query(p)); }
    // Of the query heads of this block's key-value head.
    RATPLUS_DEVICE static Arrivals of_heads(const AttentionParams& p) {
        const i64 queries = static_cast<i64>(p.batch) * p.launch_heads * p.group;
        return Arrivals(p.arrived + queries + static_cast<i64>(block_z()) * p.launch_heads + block_kv_head(p));
    }

    RATPLUS_DEVICE u64 look() const { return load_relaxed(at); }
    RATPLUS_DEVICE static bool is_marked(u64 seen) { return (seen ^ MARK) <= 0xff; }
    // Unless another block did since `seen` was there.
    RATPLUS_DEVICE void mark(u64 seen) const { compare_and_store(at, seen, MARK); }
    // How many have come before; between two `block_barrier`s.
    RATPLUS_DEVICE i32 count() const { return static_cast<i32>(atomic_increment_ordered(at) & 0xff); }
    RATPLUS_DEVICE void reset() const { store_relaxed(at, MARK); }
};

// A softmax over some keys: the largest score, the sum of the weights relative to it, and this
// lane's channels of the weighted values.
template <i32 WIDTH>
struct Partial {
    float top;
    float total;
    float sum[WIDTH];
};

template <typename T, i32 DIM, class Keys>
RATPLUS_DEVICE void attention_decode(const AttentionParams& p, const Keys& set) {
    constexpr i32 WIDTH = LANE_ELEMENTS<T>;
    constexpr i32 LANES = DIM / WIDTH;
    constexpr i32 GROUPS = DECODE_THREADS / LANES;
    constexpr i32 HALF = DIM / 2;
    static_assert(LANES <= 32 && LANES >= 4, "a row fits a warp");
    const i32 share = static_cast<i32>(block_x());
    const u32 slot = block_z();
    const Slot s = read_slot(p.lengths, slot, share == 0 && block_y() == 0 && thread_index() == 0);
    const HeadTensors<T> at(p, slot, block_kv_head(p), block_member(p));
    const i32 thread = static_cast<i32>(thread_index());
    const i32 group = thread / LANES;
    const i32 d = thread % LANES * WIDTH;
    if (s.tokens == 0) {
        if (share == 0 && group == 0) {
            store16(at.output + d, Vec16{});
        }
        return;
    }

    u64 seen = Arrivals::MARK;
    if (p.splits > 1 && thread == 0) {
        seen = Arrivals::of_blocks(p).look();
    }
    if (p.group > 1 && thread == 0) {
        const Arrivals heads = Arrivals::of_heads(p);
        const u64 before = heads.look();
        if (!Arrivals::is_marked(before)) {
            heads.mark(before);
        }
    }

    // The token itself: every group has it.
    const i32 query = static_cast<i32>(s.past);
    float* const shared = reinterpret_cast<float*>(shared_memory());
    float* const sums = shared + 2 * DECODE_WARPS;
    // What the first group writes at the end waits here, not in registers: key, value.
    float* const own = sums + DECODE_WARPS * DIM + d;
    const Vec16 raw[3] = {load16(at.query + d), load16(at.key + d), load16(at.value + d)};
    const bool low = d < HALF;
    const i64 table = static_cast<i64>(query) * HALF + (low ? d : d - HALF);
    float cos[WIDTH], sin[WIDTH];
    load_floats(p.cos + table, cos);
    load_floats(p.sin + table, sin);

    // This block's rows; what has to be divided is divided while the loads are under way.
    const auto keys = set.of(query);
    const i32 rows = keys.count;
    const i32 each = (rows + p.splits - 1) / p.splits;
    const i32 stride = (maximum(each, 1) + SHARE_ROWS - 1) / SHARE_ROWS * SHARE_ROWS;
    const i64 begin = static_cast<i64>(share) * stride;
    const i32 end = static_cast<i32>(minimum(begin + stride, static_cast<i64>(rows)));

    float q[WIDTH], key[WIDTH], value[WIDTH];
    unpack<T>(raw[0], q);
    unpack<T>(raw[1], key);
    unpack<T>(raw[2], value);
    {
        const float scale = p.scale * LOG2_E;
        RATPLUS_UNROLL
        for (i32 i = 0; i < WIDTH; ++i) {
            const float other_q = shuffle_xor(q[i], LANES / 2);
            const float other_key = shuffle_xor(key[i], LANES / 2);
            q[i] = scale * (low ? rotate_low(q[i], other_q, cos[i], sin[i]) : rotate_high(other_q, q[i], cos[i], sin[i]));
            key[i] = rounded<T>(low ? rotate_low(key[i], other_key, cos[i], sin[i])
                                    : rotate_high(other_key, key[i], cos[i], sin[i]));
        }
    }
    if (group == 0) {
        store_floats(own, key);
        store_floats(own + DIM, value);
    }
    if (!Arrivals::is_marked(seen)) {
        Arrivals::of_blocks(p).mark(seen);
    }
    const auto dot = [&](const float (&row)[WIDTH]) {
        float sum = 0.0f;
        RATPLUS_UNROLL
        for (i32 i = 0; i < WIDTH; ++i) {
            sum = fma(q[i], row[i], sum);
        }
        RATPLUS_UNROLL
        for (u32 mask = LANES / 2; mask > 0; mask /= 2) {
            sum += shuffle_xor(sum, mask);
        }
        return sum;
    };

    Partial<WIDTH> part;
    {
        const float score = dot(key);
        const bool mine = share == 0 && group == 0;
        part.top = mine ? score : LOWEST;
        part.total = mine ? 1.0f : 0.0f;
        RATPLUS_UNROLL
        for (i32 i = 0; i < WIDTH; ++i) {
            part.sum[i] = mine ? value[i] : 0.0f;
        }
    }

    const T* const cache_key = at.cache_key + d;
    const T* const cache_value = at.cache_value + d;
    for (i32 base = static_cast<i32>(minimum(begin, static_cast<i64>(rows))); base < end;
         base += GROUPS * DECODE_AHEAD) {
        Vec16 k[DECODE_AHEAD], v[DECODE_AHEAD];
        RATPLUS_UNROLL
        for (i32 a = 0; a < DECODE_AHEAD; ++a) {
            const i32 i = base + a * GROUPS + group;
            k[a] = Vec16{};
            v[a] = Vec16{};
            if (i < end) {
                const i64 row = static_cast<i64>(keys.row(i)) * DIM;
                k[a] = load16_once(cache_key + row);
                v[a] = load16_once(cache_value + row);
            }
        }
        float score[DECODE_AHEAD];
        float top = part.top;
        RATPLUS_UNROLL
        for (i32 a = 0; a < DECODE_AHEAD; ++a) {
            float row[WIDTH];
            unpack<T>(k[a], row);
            score[a] = dot(row);
            if (base + a * GROUPS + group < end) {
                top = larger(top, score[a]);
            }
        }
        const float keep = exp2_fast(part.top - top);
        part.total *= keep;
        RATPLUS_UNROLL
        for (i32 i = 0; i < WIDTH; ++i) {
            part.sum[i] *= keep;
        }
        RATPLUS_UNROLL
        for (i32 a = 0; a < DECODE_AHEAD; ++a) {
            const float weight = base + a * GROUPS + group < end ? exp2_fast(score[a] - top) : 0.0f;
            float row[WIDTH];
            unpack<T>(v[a], row);
            part.total += weight;
            RATPLUS_UNROLL
            for (i32 i = 0; i < WIDTH; ++i) {
                part.sum[i] = fma(weight, row[i], part.sum[i]);
            }
        }
        part.top = top;
    }

    // Groups of a warp, then warps.
    RATPLUS_UNROLL
    for (u32 mask = LANES; mask < WARP; mask *= 2) {
        const float top = larger(part.top, shuffle_xor(part.top, mask));
        const float keep = exp2_fast(part.top - top);
        part.total *= keep;
        part.total += shuffle_xor(part.total, mask);
        RATPLUS_UNROLL
        for (i32 i = 0; i < WIDTH; ++i) {
            part.sum[i] *= keep;
            part.sum[i] += shuffle_xor(part.sum[i], mask);
        }
        part.top = top;
    }
    const i32 warp = thread / static_cast<i32>(WARP);
    if (thread % static_cast<i32>(WARP) < LANES) {
        store_floats(sums + warp * DIM + d, part.sum);
        if (d == 0) {
            shared[warp] = part.top;
            shared[DECODE_WARPS + warp] = part.total;
        }
    }
    block_barrier();
    float top = shared[0];
    RATPLUS_UNROLL
    for (i32 w = 1; w < DECODE_WARPS; ++w) {
        top = larger(top, shared[w]);
    }
    float total = 0.0f;
    float sum = 0.0f;
    if (thread < DIM) {
        RATPLUS_UNROLL
        for (i32 w = 0; w < DECODE_WARPS; ++w) {
            const float keep = exp2_fast(shared[w] - top);
            total = fma(keep, shared[DECODE_WARPS + w], total);
            sum = fma(keep, sums[w * DIM + thread], sum);
        }
    }
    if (p.splits > 1) {
        const Arrivals arrivals = Arrivals::of_blocks(p);
        float* const partials = p.partial + launched_query(p) * p.splits * (DIM + 2);
        if (thread < DIM) {
            float* const partial = partials + static_cast<i64>(share) * (DIM + 2);
            partial[2 + thread] = sum;
            if (thread == 0) {
                partial[0] = top;
                partial[1] = total;
            }
        }
        block_barrier();
        i32* const before = reinterpret_cast<i32*>(shared);
        if (thread == 0) {
            *before = arrivals.count();
        }
        block_barrier();
        if (*before != p.splits - 1) {
            return;
        }
        if (thread == 0) {
            arrivals.reset();
        }
        if (thread < DIM) {
            top = LOWEST;
            for (i32 i = 0; i < p.splits; ++i) {
                top = larger(top, load_shared_by_blocks(partials + static_cast<i64>(i) * (DIM + 2)));
            }
            total = 0.0f;
            sum = 0.0f;
            for (i32 i = 0; i < p.splits; ++i) {
                const float* const other = partials + static_cast<i64>(i) * (DIM + 2);
                const float keep = exp2_fast(load_shared_by_blocks(other) - top);
                total = fma(keep, load_shared_by_blocks(other + 1), total);
                sum = fma(keep, load_shared_by_blocks(other + 2 + thread), sum);
            }
        }
    }
    if (thread < DIM) {
        at.output[thread] = narrow<T>(divide(sum, total));
    }
    if (p.group > 1) {
        const Arrivals heads = Arrivals::of_heads(p);
        i32* const before = reinterpret_cast<i32*>(shared);
        block_barrier();
        if (thread == 0) {
            *before = heads.count();
        }
        block_barrier();
        if (*before != p.group - 1) {
            return;
        }
        if (thread == 0) {
            heads.reset();
        }
    }
    if (group == 0) {
        float row[WIDTH];
        load_floats(own, row);
        const Vec16 new_key = pack<T>(row);
        load_floats(own + DIM, row);
        const Vec16 new_value = pack<T>(row);
        set.each_row_of(query, [&](i32 kept) {
            const i64 to = static_cast<i64>(kept) * DIM + d;
            store16(at.cache_key + to, new_key);
            store16(at.cache_value + to, new_value);
        });
    }
}

}  // namespace ratplus
