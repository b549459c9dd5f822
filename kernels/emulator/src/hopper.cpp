// Warpgroup products and barriers in shared memory.
//
// Products are late: they read shared memory when they are waited for, and until then what they
// add to is NaN. What they read has to be there when they begin, and to stay: see shadow.h.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "conversions.h"
#include "device_hopper_host.h"
#include "schedule.h"

namespace ratplus::emulator {

namespace {

constexpr u32 GROUP_WARPS = 4;
constexpr u32 GROUP_THREADS = GROUP_WARPS * WARP;

// Fields of the matrix descriptor, PTX ISA.
constexpr u64 SWIZZLE_128 = 1ull << 62;
u32 start_of(u64 descriptor) { return static_cast<u32>(descriptor & 0x3fff) << 4; }
u32 leading_of(u64 descriptor) { return static_cast<u32>(descriptor >> 16 & 0x3fff) << 4; }
u32 stride_of(u64 descriptor) { return static_cast<u32>(descriptor >> 32 & 0x3fff) << 4; }

// Barriers: arrivals still to come, arrivals of a phase, the phase's parity.
constexpr u64 COUNT_MASK = 0xfffff;
constexpr u32 EXPECTED_SHIFT = 20;
constexpr u64 PHASE = 1ull << 63;

void check_barrier(const u64* barrier, Site site) {
    const u64 offset = reinterpret_cast<u64>(barrier) - reinterpret_cast<u64>(current->shared);
    if (offset % 8 != 0 || offset >= current->shared_bytes || current->shared_bytes - offset < 8) {
        fault(Status::illegal_address, site, "a barrier at byte %lld of a shared memory of %u", static_cast<i64>(offset),
              current->shared_bytes);
    }
}

// Where a byte of shared memory before the swizzle is, and sixteen bytes from there, or part of them.
u32 swizzled(u32 byte) { return byte ^ (byte >> 7 & 7) << 4; }
const u8* unswizzled(u32 byte) { return current->shared + swizzled(byte); }

// The operand `a`: this thread's row of the first eight or the second.
template <typename T>
void left(const Product& product, const u32 (&quad)[4][4], u32 half, T (&a)[16]) {
    const u32 row = current->index % GROUP_THREADS / WARP * 16 + current->index % WARP / 4 + 8 * half;
    const u32 start = start_of(product.a) + row / 8 * stride_of(product.a) + row % 8 * 128;
    for (u32 k = 0; k < 16; k += 2) {
        // Word `half + k / 8 * 2` of the lane that has the pair of columns.
        const void* const pair = product.columns ? reinterpret_cast<const u8*>(&quad[k % 8 / 2][half + k / 8 * 2])
                                                 : unswizzled(start + k * 2);
        std::memcpy(a + k, pair, 2 * sizeof(T));
    }
}

// Most columns of a thread: two of each eight.
constexpr u32 MAX_COLUMNS = 32;

// The operand `b`: this thread's columns.
template <typename T>
void right(const Product& product, T (&b)[16][MAX_COLUMNS]) {
    const u32 start = start_of(product.b);
    const u32 stride = stride_of(product.b);
    const u32 pair = current->index % 4 * 2;
    if (product.columns) {
        for (u32 k = 0; k < 16; ++k) {
            for (u32 n = pair; n < product.width; n += 8) {
                const u32 byte = start + n / 64 * leading_of(product.b) + k / 8 * stride + k % 8 * 128 + n % 64 * 2;
                std::memcpy(&b[k][n / 8 * 2], unswizzled(byte), 2 * sizeof(T));
            }
        }
        return;
    }
    for (u32 column = 0; column < product.width / 4; ++column) {
        const u32 n = column / 2 * 8 + pair + column % 2;
        for (u32 k = 0; k < 16; k += 8) {
            T row[8];
            std::memcpy(row, unswizzled(start + n / 8 * stride + n % 8 * 128 + k * 2), sizeof row);
            for (u32 i = 0; i < 8; ++i) {
                b[k + i][column] = row[i];
            }
        }
    }
}

// The pieces of shared memory that the product reads: of `a` the warp's rows, of `b` all; a lane has every
// thirty-second of them.
void note_reads(PendingProduct& pending, Site site) {
    const Product& product = pending.product;
    Fiber& self = running();
    const u32 warp = self.index % GROUP_THREADS / WARP;
    const u32 lane = self.index % WARP;
    const auto note = [&](u32 byte) {
        PendingProduct::Read read;
        read.offset = swizzled(byte) / PIECE * PIECE;
        self.owner->shadow.begin_read(read.offset, site);
        std::memcpy(read.bytes, current->shared + read.offset, PIECE);
        pending.reads.push_back(read);
    };
    if (!product.columns) {
        const u32 row = warp * 16 + lane / 2;
        note(start_of(product.a) + row / 8 * stride_of(product.a) + row % 8 * 128 + lane % 2 * PIECE);
    }
    const u32 start = start_of(product.b);
    const u32 stride = stride_of(product.b);
    for (u32 i = lane; i < 2 * product.width; i += WARP) {
        if (product.columns) {
            const u32 k = i / (product.width / 8);
            const u32 n = i % (product.width / 8) * 8;
            note(start + n / 64 * leading_of(product.b) + k / 8 * stride + k % 8 * 128 + n % 64 * 2);
        } else {
            note(start + i / 16 * stride + i / 2 % 8 * 128 + i % 2 * PIECE);
        }
    }
}

// Nothing that the product read may have changed.
void check_reads(const PendingProduct& pending) {
    Fiber& self = running();
    if (pending.fragment != nullptr && std::memcmp(pending.fragment, pending.own, sizeof pending.own) != 0) {
        fault(Status::launch_failed, pending.site, "the fragment of a product changed before the product was waited for");
    }
    for (const PendingProduct::Read& read : pending.reads) {
        if (std::memcmp(current->shared + read.offset, read.bytes, PIECE) != 0) {
            fault(Status::launch_failed, pending.site,
                  "byte %u of shared memory changed before the product that reads it was waited for", read.offset);
        }
        self.owner->shadow.end_read(read.offset);
    }
}

// Of columns that the product does not have, the results are not used.
template <typename T>
void compute(const PendingProduct& pending, float* sum) {
    const Product& product = pending.product;
    const u32 columns = product.width / 4;
    T narrow_b[16][MAX_COLUMNS] = {};
    right(product, narrow_b);
    float b[16][MAX_COLUMNS];
    for (u32 k = 0; k < 16; ++k) {
        for (u32 column = 0; column < MAX_COLUMNS; ++column) {
            b[k][column] = widen(narrow_b[k][column]);
        }
    }
    for (u32 half = 0; half < 2; ++half) {
        T a[16];
        left(product, pending.quad, half, a);
        float row[MAX_COLUMNS] = {};
        for (u32 column = 0; product.add && column < columns; ++column) {
            row[column] = sum[column / 2 * 4 + 2 * half + column % 2];
        }
        for (u32 k = 0; k < 16; ++k) {
            for (u32 column = 0; column < MAX_COLUMNS; ++column) {
                row[column] += widen(a[k]) * b[k][column];
            }
        }
        for (u32 column = 0; column < columns; ++column) {
            sum[column / 2 * 4 + 2 * half + column % 2] = row[column];
        }
    }
}

// The barrier `id`, which is always of as many threads, and of one warpgroup where that has it to itself.
NamedBarrier& named(u32 id, u32 count, u32 group, Site site) {
    if (id == 0 || id >= NAMED_BARRIERS) {
        fault(Status::launch_failed, site, "barrier %u: expected one from 1 to %u", id, NAMED_BARRIERS - 1);
    }
    NamedBarrier& barrier = running().owner->shadow.named[id];
    if (barrier.count == 0) {
        barrier.count = count;
        barrier.group = group;
    }
    if (barrier.count != count || barrier.group != group) {
        fault(Status::launch_failed, site, "barrier %u is another's already", id);
    }
    return barrier;
}

u64 offset_of(const u64* barrier) { return reinterpret_cast<u64>(barrier) - reinterpret_cast<u64>(current->shared); }

}  // namespace

void warpgroup_barrier(u32 id, Site site) {
    const Fiber& self = running();
    Block& block = *self.owner;
    const u32 group = self.index / GROUP_THREADS;
    named(id, GROUP_THREADS, group, site);
    Meeting& meeting = block.groups[group];
    if (engine->arrive(meeting, group * GROUP_THREADS, GROUP_THREADS, Call::warpgroup_barrier, site)) {
        block.shadow.meet(group * GROUP_THREADS, GROUP_THREADS);
        engine->release(meeting, group * GROUP_THREADS, GROUP_THREADS);
    }
}

void turn_give(u32 id, u32 threads, Site site) {
    NamedBarrier& barrier = named(id, threads, NONE, site);
    running().owner->shadow.give(current->index, barrier.arriving);
    if (++barrier.arrived == barrier.count) {
        barrier.arrived = 0;
        ++barrier.phase;
        barrier.complete = barrier.arriving;
    }
    note_progress();
}

void turn_wait(u32 id, u32 threads, Site site) {
    NamedBarrier& barrier = named(id, threads, NONE, site);
    const u32 phase = barrier.phase;
    turn_give(id, threads, site);
    while (static_cast<volatile u32&>(barrier.phase) == phase) {
        spin(site);
    }
    running().owner->shadow.take(current->index, barrier.complete);
}

void barrier_init(u64* barrier, u32 count, Site site) {
    check_barrier(barrier, site);
    *barrier = count | static_cast<u64>(count) << EXPECTED_SHIFT;
}

void barrier_arrive(u64* barrier, Site site) {
    check_barrier(barrier, site);
    if ((*barrier & COUNT_MASK) == 0) {
        fault(Status::launch_failed, site, "more arrivals at a barrier than it was made for");
    }
    Shadow& shadow = running().owner->shadow;
    Shadow::Shared& clocks = shadow.shared(offset_of(barrier));
    shadow.give(current->index, clocks.arriving);
    if ((--*barrier & COUNT_MASK) == 0) {
        *barrier = (*barrier ^ PHASE) | (*barrier >> EXPECTED_SHIFT & COUNT_MASK);
        clocks.complete = clocks.arriving;
    }
    note_progress();
}

void barrier_wait(u64* barrier, u32 parity, Site site) {
    check_barrier(barrier, site);
    while (*static_cast<volatile u64*>(barrier) >> 63 == parity) {
        spin(site);
    }
    Shadow& shadow = running().owner->shadow;
    shadow.take(current->index, shadow.shared(offset_of(barrier)).complete);
}

void fence_for_products() { running().owner->shadow.fence(); }

u64 tile_descriptor(const void* start, u32 leading, u32 stride, Site site) {
    const u64 offset = reinterpret_cast<u64>(start) - reinterpret_cast<u64>(current->shared);
    if (offset % 16 != 0 || offset >= current->shared_bytes || leading % 16 != 0 || stride % 16 != 0) {
        fault(Status::misaligned_address, site, "a tile at byte %lld of shared memory, %u and %u bytes apart",
              static_cast<i64>(offset), leading, stride);
    }
    return (offset >> 4 & 0x3fff) | static_cast<u64>(leading >> 4) << 16 | static_cast<u64>(stride >> 4) << 32 | SWIZZLE_128;
}

void product(const Product& product, const u32* fragment, Site site) {
    Fiber& self = running();
    if (!self.products_begun) {
        fault(Status::launch_failed, site, "a product without products_begin before its batch");
    }
    PendingProduct pending{product, site, fragment, {}, {}, {}};
    if (fragment != nullptr) {
        std::memcpy(pending.own, fragment, sizeof pending.own);
    }
    note_reads(pending, site);
    // Every lane of the warp is here; fragments of a row lie with four of them.
    const u32 warp = self.index / WARP;
    Exchange& e = self.owner->exchange[warp];
    const u32 lane = self.index % WARP;
    e.a[lane] = fragment;
    const Call call = product.columns ? Call::product_columns : Call::product_rows;
    Meeting& meeting = self.owner->warps[warp];
    if (engine->arrive(meeting, warp * WARP, WARP, call, site)) {
        for (u32 l = 0; product.columns && l < WARP; ++l) {
            for (u32 other = 0; other < 4; ++other) {
                std::memcpy(e.quad[l][other], e.a[l / 4 * 4 + other], sizeof e.quad[l][other]);
            }
        }
        engine->release(meeting, warp * WARP, WARP);
    }
    std::memcpy(pending.quad, e.quad[lane], sizeof pending.quad);
    auto& sums = self.pending_sums;
    const auto found = std::find_if(sums.begin(), sums.end(), [&](const auto& sum) { return sum.at == product.sum; });
    if (found == sums.end()) {
        PendingSum sum{product.sum, product.width / 2, {}};
        std::copy_n(product.sum, sum.count, sum.value);
        std::fill_n(product.sum, sum.count, NAN);
        sums.push_back(sum);
    }
    self.products.push_back(pending);
}

void products_begin() { running().products_begun = true; }

void products_commit() {
    Fiber& self = running();
    self.products_begun = false;
    self.product_ends.push_back(self.products.size());
}

void products_wait(u32 pending) {
    Fiber& self = running();
    if (self.product_ends.size() <= pending) {
        return;
    }
    const u64 groups = self.product_ends.size() - pending;
    const u64 done = self.product_ends[groups - 1];
    const auto sum_of = [&](const Product& product) {
        return std::find_if(self.pending_sums.begin(), self.pending_sums.end(),
                            [&](const auto& sum) { return sum.at == product.sum; });
    };
    for (u64 i = 0; i < done; ++i) {
        const PendingProduct& next = self.products[i];
        check_reads(next);
        float* const sum = sum_of(next.product)->value;
        if (next.product.bf16) {
            compute<bf16>(next, sum);
        } else {
            compute<f16>(next, sum);
        }
    }
    self.products.erase(self.products.begin(), self.products.begin() + static_cast<i64>(done));
    self.product_ends.erase(self.product_ends.begin(), self.product_ends.begin() + static_cast<i64>(groups));
    for (u64& end : self.product_ends) {
        end -= done;
    }
    const auto finished = [&](const PendingSum& sum) {
        const bool used = std::any_of(self.products.begin(), self.products.end(),
                                      [&](const PendingProduct& other) { return other.product.sum == sum.at; });
        if (!used) {
            std::copy_n(sum.value, sum.count, sum.at);
        }
        return !used;
    };
    auto& sums = self.pending_sums;
    sums.erase(std::remove_if(sums.begin(), sums.end(), finished), sums.end());
}

}  // namespace ratplus::emulator
