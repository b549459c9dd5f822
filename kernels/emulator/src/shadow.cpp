#include "shadow.h"

#include <algorithm>

#include "schedule.h"

namespace ratplus::emulator {

namespace {

void join(Clock& to, const Clock& from) {
    if (to.size() < from.size()) {
        to.resize(from.size());
    }
    for (u64 i = 0; i < from.size(); ++i) {
        to[i] = std::max(to[i], from[i]);
    }
}

}  // namespace

void Shadow::reset(u32 threads, u32 shared_bytes) {
    threads_ = threads;
    now_ = floor_ = 0;
    for (u32 piece : touched_) {
        pieces_[piece] = Piece{};
    }
    touched_.clear();
    pieces_.resize(std::max<u64>(pieces_.size(), shared_bytes / PIECE + 1));
    clocks_.clear();
    unfenced_.resize(threads);
    for (auto& pieces : unfenced_) {
        pieces.clear();
    }
    shared_.clear();
    for (NamedBarrier& barrier : named) {
        barrier = NamedBarrier{};
    }
}

Clock& Shadow::clock(u32 thread) {
    // Most kernels never ask.
    if (clocks_.empty()) {
        clocks_.assign(threads_, Clock(threads_));
    }
    return clocks_[thread];
}

u32 Shadow::known(u32 thread, u32 other) const {
    if (thread == other) {
        return now_;
    }
    return std::max(floor_, clocks_.empty() ? 0 : clocks_[thread][other]);
}

void Shadow::meet(u32 first, u32 members) {
    if (clocks_.empty()) {
        return;
    }
    Clock all = clocks_[first];
    for (u32 i = first + 1; i < first + members; ++i) {
        join(all, clocks_[i]);
    }
    std::fill_n(all.begin() + first, members, ++now_);
    std::fill_n(clocks_.begin() + first, members, all);
}

void Shadow::give(u32 thread, Clock& to) {
    Clock& own = clock(thread);
    own[thread] = ++now_;
    join(to, own);
}

void Shadow::take(u32 thread, const Clock& from) { join(clock(thread), from); }

Shadow::Shared& Shadow::shared(u64 offset) {
    const auto found =
        std::find_if(shared_.begin(), shared_.end(), [&](const Shared& barrier) { return barrier.offset == offset; });
    return found != shared_.end() ? *found : shared_.emplace_back(Shared{offset, {}, {}});
}

void Shadow::write(u64 offset, bool done, Site site) {
    const u32 self = current->index;
    const u32 number = static_cast<u32>(offset / PIECE);
    Piece& piece = pieces_[number];
    if (piece.readers > 0) {
        fault(Status::launch_failed, site, "writes to byte %llu of shared memory, which a product under way reads",
              offset);
    }
    for (const auto& [reader, time] : piece.reads) {
        if (known(self, reader) < time) {
            fault(Status::launch_failed, site,
                  "writes to byte %llu of shared memory, and no barrier told it that thread %u waited for its product",
                  offset, reader);
        }
    }
    if (piece.written == 0) {
        touched_.push_back(number);
    }
    piece.reads.clear();
    piece.listed = done && piece.listed && piece.writer == self;
    piece.writer = self;
    piece.written = ++now_;
    piece.fenced = 0;
    if (done && !piece.listed) {
        piece.listed = true;
        unfenced_[self].push_back(number);
    }
}

void Shadow::fence() {
    const u32 self = current->index;
    ++now_;
    for (u32 number : unfenced_[self]) {
        Piece& piece = pieces_[number];
        if (piece.writer == self && piece.listed) {
            piece.fenced = now_;
            piece.listed = false;
        }
    }
    unfenced_[self].clear();
}

void Shadow::begin_read(u64 offset, Site site) {
    Piece& piece = pieces_[offset / PIECE];
    if (piece.written == 0) {
        fault(Status::launch_failed, site, "a product reads byte %llu of shared memory, which nobody wrote", offset);
    }
    if (piece.fenced == 0) {
        fault(Status::launch_failed, site,
              "a product reads byte %llu of shared memory, which thread %u wrote without a fence_for_products after it",
              offset, piece.writer);
    }
    if (known(current->index, piece.writer) < piece.fenced) {
        fault(Status::launch_failed, site,
              "a product reads byte %llu of shared memory, and no barrier told it of the fence of thread %u, which wrote it",
              offset, piece.writer);
    }
    ++piece.readers;
}

void Shadow::end_read(u64 offset) {
    Piece& piece = pieces_[offset / PIECE];
    --piece.readers;
    const u32 self = current->index;
    const auto same = [&](const auto& read) { return read.first / WARP == self / WARP; };
    const auto found = std::find_if(piece.reads.begin(), piece.reads.end(), same);
    const std::pair<u32, u32> read{self, ++now_};
    if (found != piece.reads.end()) {
        *found = read;
    } else {
        piece.reads.push_back(read);
    }
}

}  // namespace ratplus::emulator
