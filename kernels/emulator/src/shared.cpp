// A block's shared memory and the copies on their way to it.
#include <sys/mman.h>

#include <cstring>
#include <new>

#include "schedule.h"

namespace ratplus::emulator {

namespace {

constexpr u64 PAGE = 4096;
constexpr u64 ROOM = 58 * PAGE;
// Bytes before and after shared memory that have to stay as they are.
constexpr u32 CANARY_BYTES = 1024;
constexpr u8 CANARY = 0xa5;
constexpr u8 GARBAGE = 0xff;
static_assert(ROOM >= MAX_SHARED_BYTES + CANARY_BYTES);

}  // namespace

SharedMemory::SharedMemory() {
    void* const memory =
        mmap(nullptr, ROOM + 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        throw std::bad_alloc();
    }
    base_ = static_cast<u8*>(memory);
    if (mprotect(base_, PAGE, PROT_NONE) != 0 || mprotect(base_ + PAGE + ROOM, PAGE, PROT_NONE) != 0) {
        munmap(memory, ROOM + 2 * PAGE);
        throw std::bad_alloc();
    }
}

SharedMemory::~SharedMemory() { munmap(base_, ROOM + 2 * PAGE); }

u8* SharedMemory::reset(u32 bytes) {
    u8* const end = base_ + PAGE + ROOM;
    // As near to the guard page as the alignment lets it.
    const u32 room = (bytes + 1023) / 1024 * 1024;
    start_ = end - room;
    bytes_ = bytes;
    std::memset(start_ - CANARY_BYTES, CANARY, CANARY_BYTES);
    std::memset(start_, GARBAGE, bytes);
    std::memset(start_ + bytes, CANARY, room - bytes);
    return start_;
}

bool SharedMemory::overwritten(i64& offset) const {
    const u8* const end = base_ + PAGE + ROOM;
    for (const u8* byte = start_ - CANARY_BYTES; byte < end; ++byte) {
        if (byte == start_) {
            byte += bytes_;
            if (byte == end) {
                break;
            }
        }
        if (*byte != CANARY) {
            offset = byte - start_;
            return true;
        }
    }
    return false;
}

bool SharedMemory::covers(u64 address, i64& offset) const {
    offset = static_cast<i64>(address - reinterpret_cast<u64>(start_));
    return address - reinterpret_cast<u64>(base_) < ROOM + 2 * PAGE;
}

void note_store16(u64 offset, Site site) { running().owner->shadow.write(offset, true, site); }

void copy_async16(void* to, const void* from, bool valid, Site site) {
    Fiber& self = running();
    const u64 address = reinterpret_cast<u64>(to);
    if (((address | reinterpret_cast<u64>(from)) & 15) != 0) {
        fault(Status::misaligned_address, site, "copy_async16 from %p to %p: not both multiples of 16", from, to);
    }
    const u64 offset = address - reinterpret_cast<u64>(self.shared);
    if (offset >= self.shared_bytes || self.shared_bytes - offset < 16) {
        fault(Status::illegal_address, site, "copy_async16 to byte %lld of a shared memory of %u", static_cast<i64>(offset),
              self.shared_bytes);
    }
    self.call = Call::copy_async16;
    self.site = site;
    // The source has to be there now, even where it is not read.
    static_cast<void>(*static_cast<const volatile u8*>(from));
    self.owner->shadow.write(offset, false, site);
    std::memset(to, GARBAGE, 16);
    self.copies.push_back({static_cast<u8*>(to), static_cast<const u8*>(from), valid, site});
}

void copy_async_commit() {
    Fiber& self = running();
    self.group_ends.push_back(self.copies.size());
}

void copy_async_wait(u32 pending) {
    Fiber& self = running();
    if (self.group_ends.size() <= pending) {
        return;
    }
    const u64 groups = self.group_ends.size() - pending;
    const u64 done = self.group_ends[groups - 1];
    for (u64 i = 0; i < done; ++i) {
        const Copy& copy = self.copies[i];
        self.call = Call::copy_async16;
        self.site = copy.site;
        if (copy.valid) {
            std::memcpy(copy.to, copy.from, 16);
        } else {
            std::memset(copy.to, 0, 16);
        }
        self.owner->shadow.write(static_cast<u64>(copy.to - self.shared), true, copy.site);
    }
    self.copies.erase(self.copies.begin(), self.copies.begin() + static_cast<i64>(done));
    self.group_ends.erase(self.group_ends.begin(), self.group_ends.begin() + static_cast<i64>(groups));
    for (u64& end : self.group_ends) {
        end -= done;
    }
}

}  // namespace ratplus::emulator
