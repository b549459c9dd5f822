// What is known of a block's shared memory, in pieces of sixteen bytes: who wrote it, whether warpgroup
// products may read it, and who still does.
//
// Every thread has a clock of what it knows of the others: barriers carry the clocks from who
// arrives to who waits. A product may read what was written, fenced (`fence_for_products`) by the writer, and made
// known to the reader by a barrier afterwards. Who writes again has to know that each reader's products are done.
#pragma once
#include <utility>
#include <vector>

#include "engine.h"

namespace ratplus::emulator {

// Bytes of a piece.
constexpr u32 PIECE = 16;
constexpr u32 NAMED_BARRIERS = 16;

// For each thread of the block, the last of its events that is known.
using Clock = std::vector<u32>;

// A barrier by its number: of one warpgroup, or of who waits and who only arrives.
struct NamedBarrier {
    // Threads of a phase; 0 before the first use.
    u32 count = 0;
    // The warpgroup that has it to itself; NONE where several meet.
    u32 group = 0;
    u32 arrived = 0;
    u32 phase = 0;
    Clock arriving;
    Clock complete;
};

class Shadow {
public:
    // A block begins.
    void reset(u32 threads, u32 shared_bytes);
    // Every thread has met every other.
    void meet_all() { floor_ = ++now_; }
    // Threads from `first` on have met.
    void meet(u32 first, u32 members);
    // What `thread` knows, for a barrier; what a barrier knows, for a thread.
    void give(u32 thread, Clock& to);
    void take(u32 thread, const Clock& from);

    // The running thread writes a piece, or has a copy under way to it, whose end is another call.
    void write(u64 offset, bool done, Site site);
    // The running thread makes what it wrote visible to products.
    void fence();
    // A product of the running thread reads a piece from now on; until it was waited for.
    void begin_read(u64 offset, Site site);
    void end_read(u64 offset);

    NamedBarrier named[NAMED_BARRIERS];
    // Barriers in shared memory, by their offsets.
    struct Shared {
        u64 offset;
        Clock arriving;
        Clock complete;
    };
    Shared& shared(u64 offset);

private:
    struct Piece {
        u32 writer = 0;
        // When it was written and fenced; 0: not.
        u32 written = 0;
        u32 fenced = 0;
        // Whether the writer's next fence will find it.
        bool listed = false;
        // Products that read it.
        u32 readers = 0;
        // Thread and time of the last end of a read, one a warp.
        std::vector<std::pair<u32, u32>> reads;
    };
    u32 known(u32 thread, u32 other) const;
    Clock& clock(u32 thread);

    u32 threads_ = 0;
    u32 now_ = 0;
    u32 floor_ = 0;
    std::vector<Piece> pieces_;
    // Pieces that were written since the last reset.
    std::vector<u32> touched_;
    std::vector<Clock> clocks_;
    // Pieces that each thread wrote and did not fence.
    std::vector<std::vector<u32>> unfenced_;
    std::vector<Shared> shared_;
};

}  // namespace ratplus::emulator
