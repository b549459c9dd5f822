// RecurrenceScan.
//
// Three ways, chosen on the host:
// - serial: a thread carries its channels through all tokens. Decoding and short chunks.
// - three launches: `summary` reduces every tile of tokens to an affine map, `carry` runs through
//   the maps, `replay` goes over the tokens again from the right state. 16 bytes an element.
// - single pass: one launch that keeps a tile's tokens in registers while it waits for the state
//   before it. 10 bytes an element, the least possible.
//
// Tiles come in groups of GROUP_TILES. In the single pass a tile waits for the maps of the
// tiles before it in its group, which depend on nothing, and for the state before the group, which
// the last tile of the group before publishes, and the slot's first tile for the first group. So
// the chain of waits has one link a group, and every sum is formed in one order whatever the
// timing. Blocks take their tile by a ticket, time slowest: who waits, waits for a block that
// already runs.
#include "scan_tile.cuh"

namespace ratplus {

constexpr i32 GROUP_TILES = 8;

// --- serial -----------------------------------------------------------------------------------------

// Tokens loaded before the first is used.
constexpr i32 SERIAL_AHEAD = 4;

// Channels of one thread as they lie in memory: sixteen bytes, or one element.
template <typename T, i32 WIDTH>
struct Lane {
    using Raw = Vec16;
    static RATPLUS_DEVICE Raw load(const T* from) { return load16_once(from); }
    static RATPLUS_DEVICE void widen_all(const Raw& raw, float (&out)[WIDTH]) { unpack<T>(raw, out); }
    static RATPLUS_DEVICE void store(T* to, const float (&in)[WIDTH]) { store16(to, pack<T>(in)); }
};
template <typename T>
struct Lane<T, 1> {
    using Raw = T;
    static RATPLUS_DEVICE Raw load(const T* from) { return *from; }
    static RATPLUS_DEVICE void widen_all(const Raw& raw, float (&out)[1]) { out[0] = widen(raw); }
    static RATPLUS_DEVICE void store(T* to, const float (&in)[1]) { *to = narrow<T>(in[0]); }
};

// WIDTH channels a thread: 1, or as many as sixteen bytes hold.
template <typename T, i32 WIDTH>
RATPLUS_DEVICE void scan_serial(const ScanParams& p) {
    using Channels = Lane<T, WIDTH>;
    const i32 lanes = p.channels / WIDTH;
    const i64 index = static_cast<i64>(block_x()) * block_threads() + thread_index();
    if (index >= static_cast<i64>(p.batch) * lanes) {
        return;
    }
    const u32 slot = static_cast<u32>(index / lanes);
    const i32 channel = static_cast<i32>(index % lanes) * WIDTH;
    const Slot s = read_slot(p.lengths, slot, channel == 0);
    const i32 length = p.lengths.seq_len;
    const i64 state_at = static_cast<i64>(slot) * p.channels + channel;
    float key[WIDTH];
    float value[WIDTH];
    const bool carried = s.past > 0 || s.tokens == 0;
    RATPLUS_UNROLL
    for (i32 i = 0; i < WIDTH; ++i) {
        key[i] = carried ? p.state_key[state_at + i] : 0.0f;
        value[i] = carried ? p.state_value[state_at + i] : 0.0f;
    }
    const i64 slot_at = static_cast<i64>(slot) * length * p.channels + channel;
    const T* const in_key = static_cast<const T*>(p.key) + slot_at;
    const T* const in_value = static_cast<const T*>(p.value) + slot_at;
    const T* const in_gate = static_cast<const T*>(p.gate) + slot_at;
    T* out_key = static_cast<T*>(p.gated_key) + slot_at;
    T* out_value = static_cast<T*>(p.gated_value) + slot_at;
    for (i32 first = 0; first < s.tokens; first += SERIAL_AHEAD) {
        typename Channels::Raw raw[3][SERIAL_AHEAD];
        RATPLUS_UNROLL
        for (i32 a = 0; a < SERIAL_AHEAD; ++a) {
            if (first + a < s.tokens) {
                const i64 at = static_cast<i64>(first + a) * p.channels;
                raw[0][a] = Channels::load(in_key + at);
                raw[1][a] = Channels::load(in_value + at);
                raw[2][a] = Channels::load(in_gate + at);
            }
        }
        RATPLUS_UNROLL
        for (i32 a = 0; a < SERIAL_AHEAD; ++a) {
            if (first + a < s.tokens) {
                float k[WIDTH], v[WIDTH], z[WIDTH];
                Channels::widen_all(raw[0][a], k);
                Channels::widen_all(raw[1][a], v);
                Channels::widen_all(raw[2][a], z);
                RATPLUS_UNROLL
                for (i32 i = 0; i < WIDTH; ++i) {
                    const float share = smaller_share(z[i]);
                    key[i] = gate_blend(z[i], share, key[i], k[i]);
                    value[i] = gate_blend(z[i], share, value[i], v[i]);
                }
                Channels::store(out_key, key);
                Channels::store(out_value, value);
                out_key += p.channels;
                out_value += p.channels;
            }
        }
    }
    const float zero[WIDTH] = {};
    for (i32 t = s.tokens; t < length; ++t) {
        Channels::store(out_key, zero);
        Channels::store(out_value, zero);
        out_key += p.channels;
        out_value += p.channels;
    }
    RATPLUS_UNROLL
    for (i32 i = 0; i < WIDTH; ++i) {
        p.new_state_key[state_at + i] = key[i];
        p.new_state_value[state_at + i] = value[i];
    }
}

// --- three launches -------------------------------------------------------------------------------

template <typename T>
RATPLUS_DEVICE void scan_summary(const ScanParams& p) {
    float* const shared = reinterpret_cast<float*>(shared_memory());
    Tile<T> tile(p, block_z(), static_cast<i32>(block_y()), static_cast<i32>(block_x()) * TILE_CHANNELS<T>);
    if (!tile.lives()) {
        return;
    }
    tile.load(p);
    tile.reduce(shared);
    write_summary(p, tile, Column<T>(), shared);
}

// One thread a channel; here every tile is a group of its own.
RATPLUS_DEVICE void scan_carry(const ScanParams& p) {
    const u32 slot = block_y();
    const i32 channel = static_cast<i32>(block_x() * block_threads() + thread_index());
    if (channel >= p.channels) {
        return;
    }
    const Slot s = read_slot(p.lengths, slot, false);
    const i64 state_at = static_cast<i64>(slot) * p.channels + channel;
    float key = s.past > 0 ? p.state_key[state_at] : 0.0f;
    float value = s.past > 0 ? p.state_value[state_at] : 0.0f;
    const i32 live = (s.tokens + TILE_TOKENS - 1) / TILE_TOKENS;
    for (i32 tile = 0; tile < live; ++tile) {
        float* const to = p.carry + carry_at(p, slot, tile) + channel;
        to[0] = key;
        to[p.channels] = value;
        const float* const from = p.summary + summary_at(p, slot, tile) + channel;
        key = apply(from[0], from[p.channels], key);
        value = apply(from[0], from[2 * p.channels], value);
    }
}

template <typename T>
RATPLUS_DEVICE void scan_replay(const ScanParams& p) {
    float* const shared = reinterpret_cast<float*>(shared_memory());
    Tile<T> tile(p, block_z(), static_cast<i32>(block_y()), static_cast<i32>(block_x()) * TILE_CHANNELS<T>);
    const Column<T> column;
    tile.load(p);
    float state = 0.0f;
    if (tile.lives() && tile.has(p, column)) {
        state = p.carry[carry_at(p, tile.slot, tile.index) + column.part * p.channels + tile.block + column.number];
    }
    tile.reduce(shared);
    if (tile.has(p, column)) {
        tile.walk(shared, column, state);
    }
    block_barrier();
    tile.replay(p, shared);
    tile.pass_state(p);
}

// --- single pass ----------------------------------------------------------------------------------

RATPLUS_DEVICE void wait_for(const u32* flag) {
    while (load_acquire(flag) == 0) {
        spin_pause();
    }
}

template <typename T>
RATPLUS_DEVICE void scan_single_pass(const ScanParams& p) {
    constexpr i32 SPAN = TILE_CHANNELS<T>;
    float* const shared = reinterpret_cast<float*>(shared_memory());
    const u32 blocks = static_cast<u32>((p.channels + SPAN - 1) / SPAN);
    const u32 chains = static_cast<u32>(p.batch) * blocks;
    const bool speaker = thread_index() == 0;
    if (speaker) {
        reinterpret_cast<u32*>(shared)[0] = atomic_increment(p.flags);
    }
    block_barrier();
    const u32 ticket = reinterpret_cast<u32*>(shared)[0];
    block_barrier();
    const u32 chain = ticket % chains;
    Tile<T> tile(p, chain / blocks, static_cast<i32>(ticket / chains), static_cast<i32>(chain % blocks) * SPAN);
    u32* const carry_flags = p.flags + 1 + static_cast<u64>(chain) * p.groups;
    u32* const summary_flags =
        p.flags + 1 + static_cast<u64>(chains) * p.groups + static_cast<u64>(chain) * p.tiles;
    const i32 group = tile.index / GROUP_TILES;
    const i32 first = group * GROUP_TILES;
    // The last tile of its group tells the next group, if that has a token.
    const bool publishes =
        tile.index == first + GROUP_TILES - 1 && (group + 1) * GROUP_TILES * TILE_TOKENS < tile.lengths.tokens;

    // What a block writes for others, one thread releases behind a barrier.
    const Column<T> column;
    const bool owns = tile.has(p, column);
    const auto carry = [&](i32 of_group) {
        return p.carry + carry_at(p, tile.slot, of_group) + column.part * p.channels + tile.block + column.number;
    };
    tile.load(p);
    if (tile.index == 0) {
        // The incoming state goes through the first carry: it may be the memory of the new state,
        // which the last tile writes as soon as it has what it waits for.
        if (owns) {
            const float* const from = column.part == 0 ? p.state_key : p.state_value;
            const i64 at = static_cast<i64>(tile.slot) * p.channels + tile.block + column.number;
            *carry(0) = tile.lengths.past > 0 ? from[at] : 0.0f;
        }
        block_barrier();
        if (speaker) {
            store_release(carry_flags, 1);
        }
    }
    tile.reduce(shared);
    if (!tile.lives()) {
        tile.replay(p, shared);
        tile.pass_state(p);
        return;
    }
    if (!publishes) {
        // The last tile's map has no reader.
        write_summary(p, tile, column, shared);
        block_barrier();
        if (speaker) {
            store_release(summary_flags + tile.index, 1);
        }
    }
    const i32 c = static_cast<i32>(thread_index());
    if (c < tile.index - first) {
        wait_for(summary_flags + first + c);
    } else if (c == GROUP_TILES && tile.index > 0) {
        wait_for(carry_flags + group);
    }
    block_barrier();
    float state = 0.0f;
    if (owns) {
        state = load_shared_by_blocks(carry(group));
        // Half of the group's maps at a time: there are no registers for more.
        constexpr i32 HALF = GROUP_TILES / 2;
        const float* loss = p.summary + summary_at(p, tile.slot, first) + tile.block + column.number;
        const float* gain = loss + (1 + column.part) * p.channels;
        RATPLUS_UNROLL
        for (i32 begin = 0; begin < GROUP_TILES; begin += HALF) {
            Step maps[HALF];
            RATPLUS_UNROLL
            for (i32 i = 0; i < HALF; ++i) {
                if (first + begin + i < tile.index) {
                    maps[i] = {load_shared_by_blocks(loss), load_shared_by_blocks(gain)};
                }
                loss += 3 * p.channels;
                gain += 3 * p.channels;
            }
            RATPLUS_UNROLL
            for (i32 i = 0; i < HALF; ++i) {
                if (first + begin + i < tile.index) {
                    state = apply(maps[i].loss, maps[i].gain, state);
                }
            }
        }
        if (publishes) {
            const Step sum = tile.total(shared, column);
            *carry(group + 1) = apply(sum.loss, sum.gain, state);
        }
    }
    if (publishes) {
        block_barrier();
        if (speaker) {
            store_release(carry_flags + group + 1, 1);
        }
    }
    if (owns) {
        tile.walk(shared, column, state);
    }
    block_barrier();
    tile.replay(p, shared);
}

}  // namespace ratplus

#define RATPLUS_SCAN(T, name)                                                                                            \
    RATPLUS_KERNEL(ratplus_recurrence_scan_serial_##name, ratplus::ScanParams, 128, 4) {                                 \
        ratplus::scan_serial<T, ratplus::LANE_ELEMENTS<T>>(p);                                                           \
    }                                                                                                                    \
    RATPLUS_KERNEL(ratplus_recurrence_scan_any_##name, ratplus::ScanParams, 128, 4) { ratplus::scan_serial<T, 1>(p); }   \
    RATPLUS_KERNEL(ratplus_recurrence_scan_summary_##name, ratplus::ScanParams, 256, 2) { ratplus::scan_summary<T>(p); } \
    RATPLUS_KERNEL(ratplus_recurrence_scan_replay_##name, ratplus::ScanParams, 256, 2) { ratplus::scan_replay<T>(p); }   \
    RATPLUS_KERNEL(ratplus_recurrence_scan_single_pass_##name, ratplus::ScanParams, 256, 2) {                            \
        ratplus::scan_single_pass<T>(p);                                                                                 \
    }

RATPLUS_SCAN(float, f32)
RATPLUS_SCAN(ratplus::bf16, bf16)
RATPLUS_SCAN(ratplus::f16, f16)
RATPLUS_KERNEL(ratplus_recurrence_scan_carry, ratplus::ScanParams, 128, 4) { ratplus::scan_carry(p); }
