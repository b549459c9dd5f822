// Which thread runs next. Every exchange between threads goes through here, so all of it is inline.
#pragma once
#include "block.h"

namespace ratplus::emulator {

// Rounds in which threads did nothing but spin before the launch counts as stuck.
constexpr u32 IDLE_ROUNDS = 1000;
// No choice yet.
constexpr u32 NONE = ~0u;

inline Fiber& running() { return *static_cast<Fiber*>(current); }

// The lanes of the warp whose threads are below `end`.
inline u32 lanes_of(u32 warp, u32 end) {
    const u32 lanes = end - warp * WARP;
    return lanes >= WARP ? ~0u : (1u << lanes) - 1;
}

// 32 bits.
inline u32 Engine::random() {
    random_state_ ^= random_state_ >> 12;
    random_state_ ^= random_state_ << 25;
    random_state_ ^= random_state_ >> 27;
    return static_cast<u32>(random_state_ * 0x2545f4914f6cdd1dull >> 32);
}

// One of the set bits; in random order as eight random bits say. That mostly stays with the `last`
// choice, so that some threads run far ahead of others.
inline u32 Engine::choose(u32 mask, u32 last, u32 bits) const {
    if (settings.order == Order::forward) {
        return static_cast<u32>(__builtin_ctz(mask));
    }
    if (settings.order == Order::reverse) {
        return 31u - static_cast<u32>(__builtin_clz(mask));
    }
    if (last != NONE && (mask >> last & 1) != 0 && bits % 8 != 0) {
        return last;
    }
    const u32 turn = bits / 8 % 32;
    const u32 turned = turn == 0 ? mask : mask >> turn | mask << (32 - turn);
    return (static_cast<u32>(__builtin_ctz(turned)) + turn) % 32;
}

// Takes a thread to run; null where there is none.
__attribute__((always_inline)) inline Fiber* Engine::next() {
    const u32 bits = settings.order == Order::random ? random() : ~0u;
    if (bits >> 27 == 0) {
        wake_one();
    }
    if (runnable_blocks_ == 0) {
        if (++idle_rounds_ > IDLE_ROUNDS) {
            return nullptr;
        }
        wake_spinners();
        if (runnable_blocks_ == 0) {
            return nullptr;
        }
    }
    last_block_ = choose(runnable_blocks_, last_block_, bits);
    Block& block = *blocks_[last_block_];
    const u32 warp = block.last_warp = choose(block.runnable_warps, block.last_warp, bits >> 8);
    const u32 lane = choose(block.runnable[warp], NONE, bits >> 16);
    take(block, warp, lane);
    return block.fibers[warp * WARP + lane].get();
}

inline void Engine::make_runnable(Block& block, u32 warp, u32 lanes) {
    block.runnable[warp] |= lanes;
    block.runnable_warps |= 1u << warp;
    runnable_blocks_ |= 1u << block.slot;
}

// No longer runnable, as it runs.
inline void Engine::take(Block& block, u32 warp, u32 lane) {
    block.runnable[warp] &= ~(1u << lane);
    if (block.runnable[warp] == 0) {
        block.runnable_warps &= ~(1u << warp);
        if (block.runnable_warps == 0) {
            runnable_blocks_ &= ~(1u << block.slot);
        }
    }
}

// From the running fiber to another, or to `run` where there is none.
inline void Engine::suspend() {
    Fiber& self = running();
    Fiber* const other = next();
    if (other == &self) {
        return;
    }
    current = other;
    looks_ = 0;
    switch_context(self.context, other != nullptr ? other->context : main_);
}

inline bool Engine::arrive(Meeting& meeting, u32 first, u32 members, Call call, Site site) {
    Fiber& self = running();
    self.call = call;
    self.site = site;
    if (meeting.arrived == 0) {
        meeting.call = call;
        meeting.site = site;
    } else if (members <= WARP && (meeting.call != call || meeting.site.line != site.line)) {
        diverge(meeting, first, members, call, site);
    }
    if (++meeting.arrived == members) {
        return true;
    }
    suspend();
    return false;
}

inline void Engine::release(Meeting& meeting, u32 first, u32 members) {
    const Fiber& self = running();
    Block& block = *self.owner;
    meeting.arrived = 0;
    for (u32 warp = first / WARP; warp * WARP < first + members; ++warp) {
        make_runnable(block, warp, lanes_of(warp, first + members));
    }
    // The caller runs already.
    take(block, self.index / WARP, self.index % WARP);
}

}  // namespace ratplus::emulator
