// The driver API: memory.
#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <iterator>

#include "driver.h"

namespace ratplus::emulator {

namespace {

constexpr u64 PAGE = 4096;
constexpr u8 GARBAGE = 0xff;
constexpr u8 CANARY = 0xa5;

using Found = std::map<u64, Allocation>::value_type;

// The allocation that has all of the bytes, or null; the driver is locked.
const Found* find_allocation(u64 address, u64 bytes) {
    Driver& d = driver();
    const auto after = d.allocations.upper_bound(address);
    if (after == d.allocations.begin()) {
        return nullptr;
    }
    const Found& found = *std::prev(after);
    const u64 offset = address - found.first;
    return offset <= found.second.bytes && bytes <= found.second.bytes - offset ? &found : nullptr;
}

u64 rounded_up(u64 bytes, u64 unit) { return (bytes + unit - 1) / unit * unit; }

// Guard page, canaries, the bytes, canaries up to a multiple of 16, guard page.
Result allocate(u64& address, u64 bytes, bool host) {
    if (const Result result = check_unsafe(); result != SUCCESS) {
        return result;
    }
    if (bytes == 0) {
        return INVALID_VALUE;
    }
    if (bytes > u64{1} << 40) {
        return OUT_OF_MEMORY;
    }
    const u64 room = rounded_up(bytes, PAGE);
    const u64 mapped = room + 2 * PAGE;
    void* const memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return OUT_OF_MEMORY;
    }
    u8* const base = static_cast<u8*>(memory);
    if (mprotect(base, PAGE, PROT_NONE) != 0 || mprotect(base + PAGE + room, PAGE, PROT_NONE) != 0) {
        munmap(memory, mapped);
        return OUT_OF_MEMORY;
    }
    u8* const start = base + PAGE + room - rounded_up(bytes, 16);
    std::memset(base + PAGE, CANARY, static_cast<u64>(start - base) - PAGE);
    std::memset(start, GARBAGE, bytes);
    std::memset(start + bytes, CANARY, rounded_up(bytes, 16) - bytes);
    address = reinterpret_cast<u64>(start);
    Driver& d = driver();
    const std::lock_guard lock(d.mutex);
    d.allocations[address] = {bytes, host, base, mapped};
    return SUCCESS;
}

Result free_allocation(u64 address, bool host) {
    if (address == 0) {
        return SUCCESS;
    }
    if (const Result result = check_unsafe(); result != SUCCESS) {
        return result;
    }
    Allocation allocation;
    {
        Driver& d = driver();
        const std::lock_guard lock(d.mutex);
        const auto found = d.allocations.find(address);
        if (found == d.allocations.end() || found->second.host != host) {
            return INVALID_VALUE;
        }
        allocation = found->second;
        d.allocations.erase(found);
    }
    const u8* const start = reinterpret_cast<const u8*>(address);
    const u8* const end = allocation.base + allocation.mapped - PAGE;
    const u8* bad = nullptr;
    for (const u8* byte = allocation.base + PAGE; byte < end; ++byte) {
        byte = byte == start ? start + allocation.bytes : byte;
        if (byte < end && *byte != CANARY) {
            bad = byte;
            break;
        }
    }
    const i64 offset = bad - start;
    munmap(allocation.base, allocation.mapped);
    if (bad != nullptr) {
        return failed(ILLEGAL_ADDRESS, "byte " + std::to_string(offset) + " of an allocation of " +
                                           std::to_string(allocation.bytes) + " bytes was written");
    }
    return SUCCESS;
}

// Memory of the device; any that no allocation begins in as well, where that was allowed.
bool reachable(u64 address, u64 bytes) {
    return in_allocation(address, bytes) || (driver().pageable_memory && !in_allocation(address, 0));
}

// `to` and `from` are checked where they have to be the device's.
Result copy(void* stream, u64 to, bool to_device, u64 from, bool from_device, u64 bytes) {
    if (bytes == 0) {
        return check_context();
    }
    if (to == 0 || from == 0 || (to_device && !reachable(to, bytes)) || (from_device && !reachable(from, bytes))) {
        return failed(INVALID_VALUE, "a copy of " + std::to_string(bytes) + " bytes does not lie in one allocation");
    }
    Operation operation{Operation::Kind::copy};
    operation.to = to;
    operation.from = from;
    operation.count = bytes;
    return submit(stream, std::move(operation));
}

Result copy_now(u64 to, bool to_device, u64 from, bool from_device, u64 bytes) {
    const Result result = check_unsafe();
    return result != SUCCESS ? result : copy(nullptr, to, to_device, from, from_device, bytes);
}

Result fill(void* stream, Operation::Kind kind, u64 to, u32 value, u64 count) {
    const u64 bytes = kind == Operation::Kind::fill32 ? 4 * count : count;
    if (count == 0) {
        return check_context();
    }
    if (!reachable(to, bytes) || (kind == Operation::Kind::fill32 && to % 4 != 0)) {
        return failed(INVALID_VALUE, "a memset of " + std::to_string(bytes) + " bytes does not lie in one allocation");
    }
    Operation operation{kind};
    operation.to = to;
    operation.value = value;
    operation.count = count;
    return submit(stream, std::move(operation));
}

u64 number(const void* pointer) { return reinterpret_cast<u64>(pointer); }

}  // namespace

bool in_allocation(u64 address, u64 bytes) {
    Driver& d = driver();
    const std::lock_guard lock(d.mutex);
    return find_allocation(address, bytes) != nullptr;
}

std::string describe(u64 address) {
    Driver& d = driver();
    const std::lock_guard lock(d.mutex);
    for (const auto& [start, allocation] : d.allocations) {
        if (address - reinterpret_cast<u64>(allocation.base) < allocation.mapped) {
            return "byte " + std::to_string(static_cast<i64>(address - start)) + " of an allocation of " +
                   std::to_string(allocation.bytes) + " bytes";
        }
    }
    char text[64];
    std::snprintf(text, sizeof text, "address 0x%llx, which is in no allocation", address);
    return text;
}

RATPLUS_API cuMemAlloc_v2(DevicePointer* pointer, u64 bytes) {
    return guarded([&] { return pointer == nullptr ? INVALID_VALUE : allocate(*pointer, bytes, false); });
}

RATPLUS_API cuMemFree_v2(DevicePointer pointer) {
    return guarded([&] { return free_allocation(pointer, false); });
}

RATPLUS_API cuMemHostAlloc(void** pointer, u64 bytes, unsigned flags) {
    return guarded([&] {
        if (pointer == nullptr || flags > 7) {
            return INVALID_VALUE;
        }
        u64 address;
        const Result result = allocate(address, bytes, true);
        if (result == SUCCESS) {
            *pointer = reinterpret_cast<void*>(address);
        }
        return result;
    });
}

RATPLUS_API cuMemFreeHost(void* pointer) {
    return guarded([&] { return free_allocation(number(pointer), true); });
}

RATPLUS_API cuMemHostGetDevicePointer_v2(DevicePointer* pointer, void* host, unsigned flags) {
    return guarded([&] {
        if (const Result result = check_context(); result != SUCCESS) {
            return result;
        }
        if (pointer == nullptr || flags != 0 || !in_allocation(number(host), 1)) {
            return INVALID_VALUE;
        }
        *pointer = number(host);
        return SUCCESS;
    });
}

RATPLUS_API cuMemcpyHtoD_v2(DevicePointer to, const void* from, u64 bytes) {
    return guarded([&] { return copy_now(to, true, number(from), false, bytes); });
}

RATPLUS_API cuMemcpyDtoH_v2(void* to, DevicePointer from, u64 bytes) {
    return guarded([&] { return copy_now(number(to), false, from, true, bytes); });
}

RATPLUS_API cuMemcpyDtoD_v2(DevicePointer to, DevicePointer from, u64 bytes) {
    return guarded([&] { return copy_now(to, true, from, true, bytes); });
}

RATPLUS_API cuMemcpyHtoDAsync_v2(DevicePointer to, const void* from, u64 bytes, void* stream) {
    return guarded([&] { return copy(stream, to, true, number(from), false, bytes); });
}

RATPLUS_API cuMemcpyDtoHAsync_v2(void* to, DevicePointer from, u64 bytes, void* stream) {
    return guarded([&] { return copy(stream, number(to), false, from, true, bytes); });
}

RATPLUS_API cuMemcpyDtoDAsync_v2(DevicePointer to, DevicePointer from, u64 bytes, void* stream) {
    return guarded([&] { return copy(stream, to, true, from, true, bytes); });
}

RATPLUS_API cuMemsetD8Async(DevicePointer to, unsigned char value, u64 count, void* stream) {
    return guarded([&] { return fill(stream, Operation::Kind::fill8, to, value, count); });
}

RATPLUS_API cuMemsetD32Async(DevicePointer to, unsigned value, u64 count, void* stream) {
    return guarded([&] { return fill(stream, Operation::Kind::fill32, to, value, count); });
}

RATPLUS_API cuPointerGetAttribute(void* data, int attribute, DevicePointer pointer) {
    return guarded([&] {
        if (const Result result = check_context(); result != SUCCESS) {
            return result;
        }
        Driver& d = driver();
        const std::lock_guard lock(d.mutex);
        const Found* const found = find_allocation(pointer, 1);
        if (data == nullptr || found == nullptr) {
            return INVALID_VALUE;
        }
        const auto& [start, allocation] = *found;
        switch (attribute) {
            // CONTEXT, MEMORY_TYPE (host 1, device 2), DEVICE_POINTER, HOST_POINTER, IS_MANAGED,
            // DEVICE_ORDINAL, RANGE_START_ADDR, RANGE_SIZE
            case 1: *static_cast<void**>(data) = &d.context; return SUCCESS;
            case 2: *static_cast<u32*>(data) = allocation.host ? 1 : 2; return SUCCESS;
            case 3: *static_cast<u64*>(data) = pointer; return SUCCESS;
            case 4:
                *static_cast<u64*>(data) = pointer;
                return allocation.host ? SUCCESS : INVALID_VALUE;
            case 8: *static_cast<u32*>(data) = 0; return SUCCESS;
            case 9: *static_cast<int*>(data) = 0; return SUCCESS;
            case 11: *static_cast<u64*>(data) = start; return SUCCESS;
            case 12: *static_cast<u64*>(data) = allocation.bytes; return SUCCESS;
            default: return INVALID_VALUE;
        }
    });
}

}  // namespace ratplus::emulator
