// Names of errors, and the emulator's own controls. Settings are the calling thread's but where
// they say otherwise.
#include "driver.h"

namespace ratplus::emulator {

namespace {

struct Name {
    Result result;
    const char* name;
    const char* text;
};
constexpr Name NAMES[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {CONTEXT_IS_DESTROYED, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {MISALIGNED_ADDRESS, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {STREAM_CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not initiated in this stream"},
    {STREAM_CAPTURE_IMPLICIT, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
    {STREAM_CAPTURE_WRONG_THREAD, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
     "attempt to terminate a thread-local capture sequence from another thread"},
    {UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

const Name* find_name(int result) {
    for (const Name& name : NAMES) {
        if (name.result == result) {
            return &name;
        }
    }
    return nullptr;
}

}  // namespace

RATPLUS_API cuGetErrorName(int result, const char** text) {
    const Name* const name = find_name(result);
    if (text != nullptr) {
        *text = name != nullptr ? name->name : nullptr;
    }
    return name != nullptr && text != nullptr ? SUCCESS : INVALID_VALUE;
}

RATPLUS_API cuGetErrorString(int result, const char** text) {
    const Name* const name = find_name(result);
    if (text != nullptr) {
        *text = name != nullptr ? name->text : nullptr;
    }
    return name != nullptr && text != nullptr ? SUCCESS : INVALID_VALUE;
}

// Tables of undocumented functions; each begins with its bytes. NVRTC asks for one wherever it
// finds a driver and takes it to be there: it gets one without functions.
RATPLUS_API cuGetExportTable(const void** table, const void* id) {
    static constexpr u64 EMPTY = sizeof EMPTY;
    if (table == nullptr || id == nullptr) {
        return INVALID_VALUE;
    }
    *table = &EMPTY;
    return SUCCESS;
}

// 0 forward, 1 reverse, 2 random; 1 to 4 resident blocks.
RATPLUS_API ratplusEmulatorConfigure(int order, u64 seed, unsigned resident_blocks) {
    return guarded([&] {
        if (order < 0 || order > 2 || resident_blocks < 1 || resident_blocks > MAX_RESIDENT) {
            return INVALID_VALUE;
        }
        thread_state().engine.settings = {static_cast<Order>(order), resident_blocks, seed};
        return SUCCESS;
    });
}

RATPLUS_API ratplusEmulatorSetDevice(unsigned major, unsigned minor, unsigned multiprocessors) {
    return guarded([&] {
        if (major > 99 || minor > 9 || multiprocessors < 1 || multiprocessors > 1024) {
            return INVALID_VALUE;
        }
        ThreadState& t = thread_state();
        t.major = major;
        t.minor = minor;
        t.multiprocessors = multiprocessors;
        return SUCCESS;
    });
}

// Of the process: whether the device reaches memory that the driver did not allocate.
RATPLUS_API ratplusEmulatorSetPageableMemory(int reachable) {
    driver().pageable_memory = reachable != 0;
    return SUCCESS;
}

// Bytes of the kernel's parameters; -1 where there is no such kernel.
RATPLUS_API ratplusEmulatorSizeof(const char* name) {
    int bytes = -1;
    guarded([&] {
        const Kernel* const kernel = name != nullptr ? find_kernel(name) : nullptr;
        bytes = kernel != nullptr ? static_cast<int>(kernel->params_bytes) : -1;
        return SUCCESS;
    });
    return bytes;
}

// What `RATPLUS_KERNEL` says of kernel `index`; NOT_FOUND past the last.
RATPLUS_API ratplusEmulatorKernel(unsigned index, const char** name, const char** source, const char** params,
                                  unsigned* params_bytes, unsigned* max_threads, unsigned* min_blocks) {
    const Kernel* kernel = kernels();
    for (; kernel != nullptr && index > 0; --index) {
        kernel = kernel->next;
    }
    if (kernel == nullptr) {
        return NOT_FOUND;
    }
    *name = kernel->name;
    *source = kernel->source;
    *params = kernel->params;
    *params_bytes = kernel->params_bytes;
    *max_threads = kernel->max_threads;
    *min_blocks = kernel->min_blocks;
    return SUCCESS;
}

// Launches of the kernel, of the calling thread or of the process; -1 where there is no such
// kernel.
extern "C" __attribute__((visibility("default"))) i64 ratplusEmulatorLaunches(const char* name, int of_process) {
    i64 count = -1;
    guarded([&] {
        const Kernel* const kernel = name != nullptr ? find_kernel(name) : nullptr;
        if (kernel == nullptr) {
            return NOT_FOUND;
        }
        const auto& launches = thread_state().launches;
        const auto found = launches.find(name);
        count = of_process != 0 ? static_cast<i64>(__atomic_load_n(&kernel->launches, __ATOMIC_RELAXED))
                : found == launches.end() ? 0 : static_cast<i64>(found->second);
        return SUCCESS;
    });
    return count;
}

// Why the last call of this thread that said why failed; valid until the next. Empty where none
// did.
extern "C" __attribute__((visibility("default"))) const char* ratplusEmulatorLastError() {
    const char* text = "";
    guarded([&] {
        text = thread_state().error.c_str();
        return SUCCESS;
    });
    return text;
}

// Bytes of memory that are allocated, by all threads.
extern "C" __attribute__((visibility("default"))) u64 ratplusEmulatorAllocatedBytes() {
    u64 bytes = 0;
    guarded([&] {
        Driver& d = driver();
        const std::lock_guard lock(d.mutex);
        for (const auto& [address, allocation] : d.allocations) {
            bytes += allocation.bytes;
        }
        return SUCCESS;
    });
    return bytes;
}

}  // namespace ratplus::emulator
