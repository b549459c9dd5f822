// What the parts of the driver share. Types and numbers are those of the CUDA driver API.
#pragma once
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "block.h"

namespace ratplus::emulator {

enum Result : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_OUT_OF_RESOURCES = 701,
    CONTEXT_IS_DESTROYED = 709,
    MISALIGNED_ADDRESS = 716,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    STREAM_CAPTURE_UNSUPPORTED = 900,
    STREAM_CAPTURE_INVALIDATED = 901,
    STREAM_CAPTURE_UNMATCHED = 903,
    STREAM_CAPTURE_IMPLICIT = 906,
    CAPTURED_EVENT = 907,
    STREAM_CAPTURE_WRONG_THREAD = 908,
    UNKNOWN = 999,
};

using DevicePointer = u64;

// A kernel as a module's user sees it.
struct Function {
    const Kernel* kernel;
    // Above it a launch is refused.
    u32 max_shared_bytes = 48 << 10;
};

struct Module {
    // Their handles.
    std::map<const Kernel*, void*> functions;
};

// What a stream does, or a graph later.
struct Operation {
    enum class Kind : u8 { launch, copy, fill8, fill32 } kind;
    // launch
    const Kernel* kernel = nullptr;
    u32 grid[3] = {};
    u32 threads = 0;
    u32 shared_bytes = 0;
    struct alignas(64) Line {
        u8 bytes[64];
    };
    std::vector<Line> params = {};
    // copy, fill8, fill32
    u64 to = 0;
    u64 from = 0;
    u64 count = 0;
    u32 value = 0;
};

struct Graph {
    std::vector<Operation> operations;
};

// A capture under way; streams that join it share it.
struct Capture {
    Graph graph;
    bool invalid = false;
    // CU_STREAM_CAPTURE_MODE_RELAXED
    bool relaxed = false;
    // Who began it.
    const void* thread = nullptr;
};

struct Stream {
    // Does not wait for the null stream.
    bool non_blocking = false;
    // Began the capture, and did not join it.
    bool origin = false;
    std::shared_ptr<Capture> capture;
};

struct Event {
    bool timing = true;
    bool recorded = false;
    double milliseconds = 0;
    // Where it was last recorded on a capturing stream.
    std::weak_ptr<Capture> capture;
    bool captured = false;
};

struct Allocation {
    u64 bytes;
    bool host;
    // All that was mapped, guard pages included.
    u8* base;
    u64 mapped;
};

struct PrimaryContext {
    u32 retained = 0;
    // Comes with the first `retain`, goes with the last `release`.
    bool alive = false;
};

// Objects by their handles. No handle comes twice, so that one kept too long is noticed.
template <typename T>
class Handles {
public:
    void* add(std::unique_ptr<T> object) {
        last_ += 16;
        void* const handle = reinterpret_cast<void*>(last_);
        objects_.emplace(handle, std::move(object));
        return handle;
    }
    T* find(const void* handle) const {
        const auto found = objects_.find(handle);
        return found == objects_.end() ? nullptr : found->second.get();
    }
    bool remove(const void* handle) { return objects_.erase(handle) == 1; }
    const std::map<const void*, std::unique_ptr<T>>& all() const { return objects_; }

private:
    std::map<const void*, std::unique_ptr<T>> objects_;
    u64 last_ = 4096;
};

// The state of the process.
struct Driver {
    std::mutex mutex;
    bool initialized = false;
    // Copies and fills may take memory that the driver did not allocate.
    std::atomic<bool> pageable_memory = false;
    PrimaryContext context;
    std::map<u64, Allocation> allocations;
    Handles<Module> modules;
    Handles<Function> functions;
    Handles<Stream> streams;
    Handles<Event> events;
    Handles<Graph> graphs;
    Handles<Graph> executables;
};
Driver& driver();

// The state of an OS thread.
struct ThreadState {
    std::vector<PrimaryContext*> contexts;
    Engine engine;
    std::string error;
    u32 major = 9;
    u32 minor = 0;
    u32 multiprocessors = 4;
    std::map<std::string, u64> launches;
    std::vector<std::weak_ptr<Capture>> captures;
};
ThreadState& thread_state();

// The kernels of this library.
const Kernel* kernels();
const Kernel* find_kernel(const std::string& name);

// Notes why a call fails, for `ratplusEmulatorLastError`.
Result failed(Result result, std::string why);
// Whether the calling thread has a context to work in.
Result check_context();
// The same, and that no capture forbids what would wait or allocate.
Result check_unsafe();
// The bytes from `address` on lie in one allocation.
bool in_allocation(u64 address, u64 bytes);

// The address in terms of the allocation it belongs to.
std::string describe(u64 address);

// Runs the operation, or records it where the stream captures.
Result submit(void* stream, Operation operation);
Result run(const Operation& operation);

// The driver's boundary: no exception gets out.
template <typename Body>
int guarded(Body body) noexcept {
    try {
        return body();
    } catch (const std::bad_alloc&) {
        return OUT_OF_MEMORY;
    } catch (...) {
        return UNKNOWN;
    }
}

#define RATPLUS_API extern "C" __attribute__((visibility("default"))) int

}  // namespace ratplus::emulator
