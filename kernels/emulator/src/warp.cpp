// What the lanes of a warp do together.
#include <cstring>

#include "conversions.h"
#include "schedule.h"

namespace ratplus::emulator {

namespace {

// The calling thread's place in its warp.
struct Lane {
    Block& block;
    u32 first;
    u32 number;
    Meeting& meeting;
    Exchange& exchange;
};

Lane lane() {
    const Fiber& self = *static_cast<Fiber*>(current);
    const u32 warp = self.index / WARP;
    return {*self.owner, warp * WARP, self.index % WARP, self.owner->warps[warp], self.owner->exchange[warp]};
}

// The lane whose value `lane` receives.
u32 source(Call call, u32 lane, u32 operand) {
    switch (call) {
        case Call::shuffle_xor: return (lane ^ operand) < WARP ? lane ^ operand : lane;
        case Call::shuffle_up: return operand <= lane ? lane - operand : lane;
        default: return operand % WARP;
    }
}

// The compiler keeps these apart from the functions that most lanes only pass through.
__attribute__((noinline)) void exchange_values(Exchange& e, Call call) {
    for (u32 l = 0; l < WARP; ++l) {
        e.result[l] = e.value[source(call, l, e.operand[l])];
    }
}

// Lane l's row l / 4 of each of the four blocks, columns 2 (l % 4) and the next; rows and
// columns swapped where `transposed`.
__attribute__((noinline)) void distribute_blocks(Exchange& e, bool transposed) {
    for (u32 i = 0; i < 4; ++i) {
        u16 block[8][8];
        for (u32 row = 0; row < 8; ++row) {
            std::memcpy(block[row], e.row[i * 8 + row], sizeof block[row]);
        }
        for (u32 l = 0; l < WARP; ++l) {
            const u32 row = l / 4;
            const u32 column = l % 4 * 2;
            const u32 low = transposed ? block[column][row] : block[row][column];
            const u32 high = transposed ? block[column + 1][row] : block[row][column + 1];
            e.block[l][i] = low | high << 16;
        }
    }
}

// The fragments of mma.m16n8k16 put together, multiplied and taken apart.
template <typename T>
__attribute__((noinline)) void multiply(Exchange& e) {
    T narrow_a[16][16];
    T narrow_b[16][8];
    float c[16][8];
    for (u32 l = 0; l < WARP; ++l) {
        const u32 group = l / 4;
        const u32 pair = l % 4 * 2;
        for (u32 i = 0; i < 4; ++i) {
            std::memcpy(&narrow_a[group + i % 2 * 8][pair + i / 2 * 8], &e.a[l][i], sizeof(u32));
        }
        for (u32 i = 0; i < 2; ++i) {
            narrow_b[pair + i * 8][group] = T{static_cast<u16>(e.b[l][i])};
            narrow_b[pair + i * 8 + 1][group] = T{static_cast<u16>(e.b[l][i] >> 16)};
            std::memcpy(&c[group + i * 8][pair], e.c[l] + 2 * i, 2 * sizeof(float));
        }
    }
    float a[16][16];
    float b[16][8];
    for (u32 k = 0; k < 16; ++k) {
        for (u32 i = 0; i < 16; ++i) {
            a[k][i] = widen(narrow_a[k][i]);
        }
        for (u32 i = 0; i < 8; ++i) {
            b[k][i] = widen(narrow_b[k][i]);
        }
    }
    for (u32 row = 0; row < 16; ++row) {
        for (u32 k = 0; k < 16; ++k) {
            for (u32 column = 0; column < 8; ++column) {
                c[row][column] += a[row][k] * b[k][column];
            }
        }
    }
    for (u32 l = 0; l < WARP; ++l) {
        for (u32 i = 0; i < 2; ++i) {
            std::memcpy(e.c[l] + 2 * i, &c[l / 4 + i * 8][l % 4 * 2], 2 * sizeof(float));
        }
    }
}

}  // namespace

void warp_barrier(Site site) {
    const Lane self = lane();
    if (engine->arrive(self.meeting, self.first, WARP, Call::warp_barrier, site)) {
        self.block.shadow.meet(self.first, WARP);
        engine->release(self.meeting, self.first, WARP);
    }
}

u32 exchange(Call call, u32 value, u32 operand, Site site) {
    const Lane self = lane();
    Exchange& e = self.exchange;
    e.value[self.number] = value;
    e.operand[self.number] = operand;
    if (engine->arrive(self.meeting, self.first, WARP, call, site)) {
        exchange_values(e, call);
        engine->release(self.meeting, self.first, WARP);
    }
    return e.result[self.number];
}

void load_blocks(Call call, u32* block, const void* row, Site site) {
    const Lane self = lane();
    const u64 offset = reinterpret_cast<u64>(row) - reinterpret_cast<u64>(current->shared);
    if (offset % 16 != 0) {
        fault(Status::misaligned_address, site, "%s of a row at byte %lld of shared memory, no multiple of 16",
              name_of(call), static_cast<i64>(offset));
    }
    if (offset >= current->shared_bytes || current->shared_bytes - offset < 16) {
        fault(Status::illegal_address, site, "%s of a row at byte %lld of a shared memory of %u", name_of(call),
              static_cast<i64>(offset), current->shared_bytes);
    }
    self.exchange.row[self.number] = row;
    self.exchange.block[self.number] = block;
    if (engine->arrive(self.meeting, self.first, WARP, call, site)) {
        distribute_blocks(self.exchange, call == Call::load_blocks_transposed);
        engine->release(self.meeting, self.first, WARP);
    }
}

void multiply_blocks(Call call, float* c, const u32* a, u32 b0, u32 b1, Site site) {
    const Lane self = lane();
    Exchange& e = self.exchange;
    e.c[self.number] = c;
    e.a[self.number] = a;
    e.b[self.number][0] = b0;
    e.b[self.number][1] = b1;
    if (engine->arrive(self.meeting, self.first, WARP, call, site)) {
        if (call == Call::multiply_bf16) {
            multiply<bf16>(e);
        } else {
            multiply<f16>(e);
        }
        engine->release(self.meeting, self.first, WARP);
    }
}

}  // namespace ratplus::emulator
