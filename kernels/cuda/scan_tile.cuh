// A tile of tokens and channels of RecurrenceScan, and what tiles tell one another.
#pragma once
#include "gate.cuh"
#include "recurrence_scan.h"
#include "slot.cuh"

namespace ratplus {

// Tokens of one thread, and threads along time and across channels.
constexpr i32 THREAD_TOKENS = 4;
constexpr i32 TIME_THREADS = 32;
constexpr i32 CHANNEL_THREADS = 8;
constexpr i32 TILE_THREADS = TIME_THREADS * CHANNEL_THREADS;
constexpr i32 TILE_TOKENS = THREAD_TOKENS * TIME_THREADS;
constexpr i32 TILE_WARPS = TILE_THREADS / static_cast<i32>(WARP);
template <typename T>
constexpr i32 TILE_CHANNELS = CHANNEL_THREADS * LANE_ELEMENTS<T>;

// Three numbers of each channel of the tile, for each warp; then the state before the tile.
template <typename T>
constexpr i32 TILE_SHARED_FLOATS = (TILE_WARPS * 3 + 2) * TILE_CHANNELS<T>;

// A tile, and this thread's tokens of it.
template <typename T>
struct Tile {
    static constexpr i32 WIDTH = LANE_ELEMENTS<T>;
    u32 slot;
    i32 index;
    // First channel of the tile.
    i32 block;
    Slot lengths;
    // This thread's first token and channel.
    i32 token;
    i32 channel;
    // Whether the channel exists.
    bool inside;
    Vec16 key[THREAD_TOKENS];
    Vec16 value[THREAD_TOKENS];
    Vec16 gate[THREAD_TOKENS];
    // Tokens before this thread's, from the tile's first on.
    Affine before[WIDTH];

    RATPLUS_DEVICE Tile(const ScanParams& p, u32 slot_, i32 index_, i32 block_)
        : slot(slot_), index(index_), block(block_) {
        const i32 lane = static_cast<i32>(thread_index() % WARP);
        const i32 warp = static_cast<i32>(thread_index() / WARP);
        // Eight lanes across channels, four along time, warps along time.
        token = index * TILE_TOKENS + (warp * 4 + lane / CHANNEL_THREADS) * THREAD_TOKENS;
        channel = block + lane % CHANNEL_THREADS * WIDTH;
        inside = channel < p.channels;
        lengths = read_slot(p.lengths, slot, index == 0 && block == 0 && thread_index() == 0);
    }

    // Whether the tile has a valid token.
    RATPLUS_DEVICE bool lives() const { return index * TILE_TOKENS < lengths.tokens; }
    // Whether it has the last valid one.
    RATPLUS_DEVICE bool last() const { return lives() && lengths.tokens <= (index + 1) * TILE_TOKENS; }
    RATPLUS_DEVICE bool valid(i32 t) const { return inside && token + t < lengths.tokens; }

    RATPLUS_DEVICE void load(const ScanParams& p) {
        const i64 at = (static_cast<i64>(slot) * p.lengths.seq_len + token) * p.channels + channel;
        RATPLUS_UNROLL
        for (i32 t = 0; t < THREAD_TOKENS; ++t) {
            if (valid(t)) {
                const i64 from = at + static_cast<i64>(t) * p.channels;
                key[t] = load16_once(static_cast<const T*>(p.key) + from);
                value[t] = load16_once(static_cast<const T*>(p.value) + from);
                gate[t] = load16_once(static_cast<const T*>(p.gate) + from);
            }
        }
    }

    // Fills `before`, and the tile's own maps at `totals` of shared memory: [3][TILE_CHANNELS].
    // Ends behind a barrier.
    RATPLUS_DEVICE void reduce(float* shared) {
        constexpr i32 SPAN = TILE_CHANNELS<T>;
        Affine own[WIDTH];
        RATPLUS_UNROLL
        for (i32 i = 0; i < WIDTH; ++i) {
            own[i] = {0.0f, 0.0f, 0.0f};
        }
        RATPLUS_UNROLL
        for (i32 t = 0; t < THREAD_TOKENS; ++t) {
            if (valid(t)) {
                float k[WIDTH], v[WIDTH], z[WIDTH];
                unpack<T>(key[t], k);
                unpack<T>(value[t], v);
                unpack<T>(gate[t], z);
                RATPLUS_UNROLL
                for (i32 i = 0; i < WIDTH; ++i) {
                    const float take = intake(z[i], smaller_share(z[i]));
                    own[i] = then(own[i], {take, take * k[i], take * v[i]});
                }
            }
        }
        // Along time within the warp: lanes 8 and 16 below.
        const u32 lane = thread_index() % WARP;
        const i32 warp = static_cast<i32>(thread_index() / WARP);
        const i32 column = static_cast<i32>(lane) % CHANNEL_THREADS * WIDTH;
        RATPLUS_UNROLL
        for (i32 i = 0; i < WIDTH; ++i) {
            Affine sum = own[i];
            RATPLUS_UNROLL
            for (u32 step = 8; step <= 16; step *= 2) {
                const Affine lower = {shuffle_up(sum.loss, step), shuffle_up(sum.key, step),
                                      shuffle_up(sum.value, step)};
                if (lane >= step) {
                    sum = then(lower, sum);
                }
            }
            Affine lower = {shuffle_up(sum.loss, 8), shuffle_up(sum.key, 8), shuffle_up(sum.value, 8)};
            if (lane < 8) {
                lower = {0.0f, 0.0f, 0.0f};
            }
            before[i] = lower;
            if (lane >= 24) {
                float* const at = shared + warp * 3 * SPAN + column + i;
                at[0] = sum.loss;
                at[SPAN] = sum.key;
                at[2 * SPAN] = sum.value;
            }
        }
        block_barrier();
        RATPLUS_UNROLL
        for (i32 i = 0; i < WIDTH; ++i) {
            Affine lower = {0.0f, 0.0f, 0.0f};
            for (i32 w = 0; w < warp; ++w) {
                const float* const at = shared + w * 3 * SPAN + column + i;
                lower = then(lower, {at[0], at[SPAN], at[2 * SPAN]});
            }
            before[i] = then(lower, before[i]);
        }
    }

    // The map of the whole tile for column `c` of it, after `reduce`.
    RATPLUS_DEVICE Affine total(const float* shared, i32 c) const {
        constexpr i32 SPAN = TILE_CHANNELS<T>;
        Affine sum = {0.0f, 0.0f, 0.0f};
        RATPLUS_UNROLL
        for (i32 w = 0; w < TILE_WARPS; ++w) {
            const float* const at = shared + w * 3 * SPAN + c;
            sum = then(sum, {at[0], at[SPAN], at[2 * SPAN]});
        }
        return sum;
    }

    // Writes the tile's rows from the state before it, [2][TILE_CHANNELS].
    RATPLUS_DEVICE void replay(const ScanParams& p, const float* state) const {
        constexpr i32 SPAN = TILE_CHANNELS<T>;
        if (!inside) {
            return;
        }
        const i32 column = channel - block;
        float h_key[WIDTH], h_value[WIDTH];
        RATPLUS_UNROLL
        for (i32 i = 0; i < WIDTH; ++i) {
            h_key[i] = apply(before[i].loss, before[i].key, state[column + i]);
            h_value[i] = apply(before[i].loss, before[i].value, state[SPAN + column + i]);
        }
        const i64 at = (static_cast<i64>(slot) * p.lengths.seq_len + token) * p.channels + channel;
        RATPLUS_UNROLL
        for (i32 t = 0; t < THREAD_TOKENS; ++t) {
            if (token + t >= p.lengths.seq_len) {
                break;
            }
            Vec16 out_key = {};
            Vec16 out_value = {};
            if (valid(t)) {
                float k[WIDTH], v[WIDTH], z[WIDTH];
                unpack<T>(key[t], k);
                unpack<T>(value[t], v);
                unpack<T>(gate[t], z);
                RATPLUS_UNROLL
                for (i32 i = 0; i < WIDTH; ++i) {
                    const float share = smaller_share(z[i]);
                    h_key[i] = gate_blend(z[i], share, h_key[i], k[i]);
                    h_value[i] = gate_blend(z[i], share, h_value[i], v[i]);
                }
                out_key = pack<T>(h_key);
                out_value = pack<T>(h_value);
            }
            const i64 to = at + static_cast<i64>(t) * p.channels;
            store16_once(static_cast<T*>(p.gated_key) + to, out_key);
            store16_once(static_cast<T*>(p.gated_value) + to, out_value);
            if (token + t == lengths.tokens - 1) {
                const i64 state_at = static_cast<i64>(slot) * p.channels + channel;
                store_floats(p.new_state_key + state_at, h_key);
                store_floats(p.new_state_value + state_at, h_value);
            }
        }
    }

    // An idle slot's state passes through, whatever its past; one tile of the slot does that.
    RATPLUS_DEVICE void pass_state(const ScanParams& p) const {
        const i32 c = block + static_cast<i32>(thread_index());
        if (index == 0 && lengths.tokens == 0 && thread_index() < static_cast<u32>(TILE_CHANNELS<T>) &&
            c < p.channels) {
            const i64 at = static_cast<i64>(slot) * p.channels + c;
            p.new_state_key[at] = p.state_key[at];
            p.new_state_value[at] = p.state_value[at];
        }
    }
};

// Where a tile's map lies: [B, tiles, 3, N].
RATPLUS_DEVICE i64 summary_at(const ScanParams& p, u32 slot, i32 tile) {
    return (static_cast<i64>(slot) * p.tiles + tile) * 3 * p.channels;
}
// Where the state before a group of tiles lies: [B, groups, 2, N].
RATPLUS_DEVICE i64 carry_at(const ScanParams& p, u32 slot, i32 group) {
    return (static_cast<i64>(slot) * p.groups + group) * 2 * p.channels;
}

template <typename T>
RATPLUS_DEVICE void write_summary(const ScanParams& p, const Tile<T>& tile, const float* shared) {
    const i32 c = static_cast<i32>(thread_index());
    if (c < TILE_CHANNELS<T> && tile.block + c < p.channels) {
        const Affine sum = tile.total(shared, c);
        float* const to = p.summary + summary_at(p, tile.slot, tile.index) + tile.block + c;
        to[0] = sum.loss;
        to[p.channels] = sum.key;
        to[2 * p.channels] = sum.value;
    }
}

}  // namespace ratplus
