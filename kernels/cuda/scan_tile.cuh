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

// Shared memory has, of each warp, three numbers of each channel: the map of the warp's tokens, [loss,
// key, value]; `walk` puts the state before the warp in the place of the last two.
template <typename T>
constexpr i32 WARP_FLOATS = 3 * TILE_CHANNELS<T>;

// A column of the tile, and what its thread does of the tile's state.
template <typename T>
struct Column {
    static constexpr i32 SPAN = TILE_CHANNELS<T>;
    // Counted from the tile's first channel.
    i32 number;
    // 0: key, 1: value. Threads from 2 on have no column.
    i32 part;

    RATPLUS_DEVICE Column()
        : number(static_cast<i32>(thread_index()) % SPAN), part(static_cast<i32>(thread_index()) / SPAN) {}

    // Where a warp's map has its gain, and the walk the state before the warp.
    RATPLUS_DEVICE i32 gain_at(i32 warp) const { return warp * WARP_FLOATS<T> + (1 + part) * SPAN + number; }
    RATPLUS_DEVICE i32 loss_at(i32 warp) const { return warp * WARP_FLOATS<T> + number; }
};

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
    // Of each gate, after `reduce`: the smaller share, negative where the gate is closed.
    float share[THREAD_TOKENS][WIDTH];
    // Tokens before this thread's, from the warp's first on.
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
    RATPLUS_DEVICE bool valid(i32 t) const { return inside && token + t < lengths.tokens; }
    // Whether the thread has a column, and its channel exists.
    RATPLUS_DEVICE bool has(const ScanParams& p, const Column<T>& column) const {
        return column.part < 2 && block + column.number < p.channels;
    }

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

    // Fills `share` and `before`, and the warps' maps in shared memory. Ends behind a barrier.
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
                    share[t][i] = signed_share(z[i]);
                    const float take = intake(share[t][i]);
                    own[i].loss = fma(take, 1.0f - own[i].loss, own[i].loss);
                    own[i].key = fma(take, k[i], fma(-take, own[i].key, own[i].key));
                    own[i].value = fma(take, v[i], fma(-take, own[i].value, own[i].value));
                }
            }
        }
        // Along time within the warp: lanes 8 and 16 below.
        const u32 lane = thread_index() % WARP;
        const i32 warp = static_cast<i32>(thread_index() / WARP);
        const i32 column = static_cast<i32>(lane) % CHANNEL_THREADS * WIDTH;
        float* const to = shared + warp * WARP_FLOATS<T> + column;
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
                to[i] = sum.loss;
                to[SPAN + i] = sum.key;
                to[2 * SPAN + i] = sum.value;
            }
        }
        block_barrier();
    }

    // The map of the whole tile, after `reduce`.
    RATPLUS_DEVICE Step total(const float* shared, const Column<T>& column) const {
        Step sum = {0.0f, 0.0f};
        RATPLUS_UNROLL
        for (i32 w = 0; w < TILE_WARPS; ++w) {
            sum = then(sum, Step{shared[column.loss_at(w)], shared[column.gain_at(w)]});
        }
        return sum;
    }

    // From the state before the tile, those before its warps. A barrier has to follow.
    RATPLUS_DEVICE void walk(float* shared, const Column<T>& column, float state) const {
        RATPLUS_UNROLL
        for (i32 w = 0; w < TILE_WARPS; ++w) {
            float& gain = shared[column.gain_at(w)];
            const float next = apply(shared[column.loss_at(w)], gain, state);
            gain = state;
            state = next;
        }
    }

    // Writes the tile's rows, after `walk`.
    RATPLUS_DEVICE void replay(const ScanParams& p, const float* shared) const {
        constexpr i32 SPAN = TILE_CHANNELS<T>;
        if (!inside) {
            return;
        }
        const float* const state =
            shared + static_cast<i32>(thread_index() / WARP) * WARP_FLOATS<T> + SPAN + channel - block;
        float h_key[WIDTH], h_value[WIDTH];
        load_floats(state, h_key);
        load_floats(state + SPAN, h_value);
        RATPLUS_UNROLL
        for (i32 i = 0; i < WIDTH; ++i) {
            h_key[i] = apply(before[i].loss, before[i].key, h_key[i]);
            h_value[i] = apply(before[i].loss, before[i].value, h_value[i]);
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
                float k[WIDTH], v[WIDTH];
                unpack<T>(key[t], k);
                unpack<T>(value[t], v);
                RATPLUS_UNROLL
                for (i32 i = 0; i < WIDTH; ++i) {
                    h_key[i] = blend_signed(share[t][i], h_key[i], k[i]);
                    h_value[i] = blend_signed(share[t][i], h_value[i], v[i]);
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
RATPLUS_DEVICE void write_summary(const ScanParams& p, const Tile<T>& tile, const Column<T>& column,
                                  const float* shared) {
    if (tile.has(p, column)) {
        const Step sum = tile.total(shared, column);
        float* const to = p.summary + summary_at(p, tile.slot, tile.index) + tile.block + column.number;
        if (column.part == 0) {
            to[0] = sum.loss;
        }
        to[(1 + column.part) * p.channels] = sum.gain;
    }
}

}  // namespace ratplus
