// The driver API: device, context, modules.
#include <pthread.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "driver.h"

namespace ratplus::emulator {

namespace {

const Kernel*& first_kernel() {
    static const Kernel* first = nullptr;
    return first;
}

// Freed at the thread's end; made anew where its destructors still call the driver.
pthread_key_t thread_key() {
    static const pthread_key_t key = [] {
        pthread_key_t made;
        if (pthread_key_create(&made, [](void* state) { delete static_cast<ThreadState*>(state); }) != 0) {
            throw std::bad_alloc();
        }
        return made;
    }();
    return key;
}

}  // namespace

Kernel::Kernel(const char* kernel_name, u32 bytes, u32 most_threads, u32 least_blocks, Entry function)
    : name(kernel_name),
      params_bytes(bytes),
      max_threads(most_threads),
      min_blocks(least_blocks),
      entry(function),
      next(first_kernel()) {
    first_kernel() = this;
}

const Kernel* kernels() { return first_kernel(); }

const Kernel* find_kernel(const std::string& name) {
    const Kernel* kernel = kernels();
    while (kernel != nullptr && name != kernel->name) {
        kernel = kernel->next;
    }
    return kernel;
}

Driver& driver() {
    static Driver* const state = new Driver;
    return *state;
}

ThreadState& thread_state() {
    const pthread_key_t key = thread_key();
    auto* state = static_cast<ThreadState*>(pthread_getspecific(key));
    if (state == nullptr) {
        state = new ThreadState;
        if (pthread_setspecific(key, state) != 0) {
            delete state;
            throw std::bad_alloc();
        }
    }
    return *state;
}

Result failed(Result result, std::string why) {
    std::fprintf(stderr, "ratplus emulator: %s\n", why.c_str());
    thread_state().error = std::move(why);
    return result;
}

Result check_context() {
    Driver& d = driver();
    const std::lock_guard lock(d.mutex);
    if (!d.initialized) {
        return NOT_INITIALIZED;
    }
    const ThreadState& t = thread_state();
    if (t.contexts.empty() || t.contexts.back() == nullptr) {
        return INVALID_CONTEXT;
    }
    return t.contexts.back()->alive ? SUCCESS : CONTEXT_IS_DESTROYED;
}

namespace {

bool initialized() {
    Driver& d = driver();
    const std::lock_guard lock(d.mutex);
    return d.initialized;
}

Result check_device(int device) {
    return !initialized() ? NOT_INITIALIZED : device != 0 ? INVALID_DEVICE : SUCCESS;
}

// The H200's, but for what can be configured.
bool device_attribute(int attribute, int& value) {
    const ThreadState& t = thread_state();
    switch (attribute) {
        case 1: value = MAX_THREADS; return true;
        case 2:
        case 3: value = 1024; return true;
        case 4: value = 64; return true;
        case 5: value = 0x7fffffff; return true;
        case 6:
        case 7: value = 65535; return true;
        case 8: value = 48 << 10; return true;
        case 9: value = 64 << 10; return true;
        case 10: value = WARP; return true;
        case 12: value = 65536; return true;
        case 13: value = 1980000; return true;
        case 15: value = 1; return true;
        case 16: value = static_cast<int>(t.multiprocessors); return true;
        case 17: value = 0; return true;
        case 18: value = 0; return true;
        case 19: value = 1; return true;
        case 20: value = 0; return true;
        case 31: value = 1; return true;
        case 36: value = 3201000; return true;
        case 37: value = 6144; return true;
        case 38: value = 50 << 20; return true;
        case 39: value = 2048; return true;
        case 41: value = 1; return true;
        case 75: value = static_cast<int>(t.major); return true;
        case 76: value = static_cast<int>(t.minor); return true;
        case 81: value = 228 << 10; return true;
        case 82: value = 65536; return true;
        case 83: value = 1; return true;
        case 84: value = 0; return true;
        case 88: value = driver().pageable_memory ? 1 : 0; return true;
        case 89: value = 0; return true;
        case 95: value = 1; return true;
        case 97: value = MAX_SHARED_BYTES; return true;
        case 106: value = 32; return true;
        case 111: value = 1024; return true;
        case 115: value = 0; return true;
        default: return false;
    }
}

Function* find_function(void* handle) {
    Driver& d = driver();
    const std::lock_guard lock(d.mutex);
    const auto found = d.functions.find(handle);
    return found == d.functions.end() ? nullptr : found->second;
}

Result load_module(void** module, const void* image) {
    if (const Result result = check_unsafe(); result != SUCCESS) {
        return result;
    }
    if (module == nullptr || image == nullptr) {
        return INVALID_VALUE;
    }
    auto made = std::make_unique<Module>();
    *module = made.get();
    Driver& d = driver();
    const std::lock_guard lock(d.mutex);
    d.modules.emplace(*module, std::move(made));
    return SUCCESS;
}

}  // namespace

// --- device ---------------------------------------------------------------------------------------

RATPLUS_API cuInit(unsigned flags) {
    return guarded([&] {
        if (flags != 0) {
            return INVALID_VALUE;
        }
        Driver& d = driver();
        const std::lock_guard lock(d.mutex);
        d.initialized = true;
        return SUCCESS;
    });
}

RATPLUS_API cuDriverGetVersion(int* version) {
    if (version == nullptr) {
        return INVALID_VALUE;
    }
    *version = 13000;
    return SUCCESS;
}

RATPLUS_API cuDeviceGetCount(int* count) {
    return guarded([&] {
        if (!initialized()) {
            return NOT_INITIALIZED;
        }
        if (count == nullptr) {
            return INVALID_VALUE;
        }
        *count = 1;
        return SUCCESS;
    });
}

RATPLUS_API cuDeviceGet(int* device, int ordinal) {
    return guarded([&] {
        if (device == nullptr) {
            return INVALID_VALUE;
        }
        *device = 0;
        return check_device(ordinal);
    });
}

RATPLUS_API cuDeviceGetName(char* name, int length, int device) {
    return guarded([&] {
        if (name == nullptr || length <= 0) {
            return INVALID_VALUE;
        }
        std::snprintf(name, static_cast<u64>(length), "ratplus emulator");
        return check_device(device);
    });
}

RATPLUS_API cuDeviceGetAttribute(int* value, int attribute, int device) {
    return guarded([&] {
        if (const Result result = check_device(device); result != SUCCESS) {
            return result;
        }
        return value != nullptr && device_attribute(attribute, *value) ? SUCCESS : INVALID_VALUE;
    });
}

RATPLUS_API cuDeviceTotalMem_v2(u64* bytes, int device) {
    return guarded([&] {
        if (bytes == nullptr) {
            return INVALID_VALUE;
        }
        *bytes = u64{4} << 30;
        return check_device(device);
    });
}

// --- contexts -------------------------------------------------------------------------------------

RATPLUS_API cuDevicePrimaryCtxRetain(void** context, int device) {
    return guarded([&] {
        if (const Result result = check_device(device); result != SUCCESS) {
            return result;
        }
        if (context == nullptr) {
            return INVALID_VALUE;
        }
        Driver& d = driver();
        const std::lock_guard lock(d.mutex);
        ++d.context.retained;
        d.context.alive = true;
        *context = &d.context;
        return SUCCESS;
    });
}

RATPLUS_API cuDevicePrimaryCtxRelease_v2(int device) {
    return guarded([&] {
        if (const Result result = check_device(device); result != SUCCESS) {
            return result;
        }
        Driver& d = driver();
        const std::lock_guard lock(d.mutex);
        if (d.context.retained == 0) {
            return INVALID_CONTEXT;
        }
        d.context.alive = --d.context.retained > 0;
        return SUCCESS;
    });
}

RATPLUS_API cuCtxGetCurrent(void** context) {
    return guarded([&] {
        if (context == nullptr) {
            return INVALID_VALUE;
        }
        const ThreadState& t = thread_state();
        *context = t.contexts.empty() ? nullptr : t.contexts.back();
        return initialized() ? SUCCESS : NOT_INITIALIZED;
    });
}

RATPLUS_API cuCtxSetCurrent(void* context) {
    return guarded([&] {
        if (!initialized()) {
            return NOT_INITIALIZED;
        }
        if (context != nullptr && context != &driver().context) {
            return INVALID_CONTEXT;
        }
        ThreadState& t = thread_state();
        if (!t.contexts.empty()) {
            t.contexts.pop_back();
        }
        if (context != nullptr) {
            t.contexts.push_back(static_cast<PrimaryContext*>(context));
        }
        return SUCCESS;
    });
}

RATPLUS_API cuCtxPushCurrent_v2(void* context) {
    return guarded([&] {
        if (!initialized()) {
            return NOT_INITIALIZED;
        }
        if (context != &driver().context) {
            return INVALID_CONTEXT;
        }
        thread_state().contexts.push_back(static_cast<PrimaryContext*>(context));
        return SUCCESS;
    });
}

RATPLUS_API cuCtxPopCurrent_v2(void** context) {
    return guarded([&] {
        ThreadState& t = thread_state();
        if (!initialized()) {
            return NOT_INITIALIZED;
        }
        if (t.contexts.empty()) {
            return INVALID_CONTEXT;
        }
        if (context != nullptr) {
            *context = t.contexts.back();
        }
        t.contexts.pop_back();
        return SUCCESS;
    });
}

RATPLUS_API cuCtxGetDevice(int* device) {
    return guarded([&] {
        if (device == nullptr) {
            return INVALID_VALUE;
        }
        *device = 0;
        return check_context();
    });
}

RATPLUS_API cuCtxGetId(void* context, u64* id) {
    return guarded([&] {
        if (!initialized()) {
            return NOT_INITIALIZED;
        }
        if (id == nullptr) {
            return INVALID_VALUE;
        }
        if (context != nullptr && context != &driver().context) {
            return INVALID_CONTEXT;
        }
        *id = 1;
        return SUCCESS;
    });
}

RATPLUS_API cuCtxSynchronize() {
    return guarded([] { return check_unsafe(); });
}

// --- modules --------------------------------------------------------------------------------------

RATPLUS_API cuModuleLoadData(void** module, const void* image) {
    return guarded([&] { return load_module(module, image); });
}

RATPLUS_API cuModuleLoadDataEx(void** module, const void* image, unsigned, int*, void**) {
    return guarded([&] { return load_module(module, image); });
}

RATPLUS_API cuModuleUnload(void* module) {
    return guarded([&] {
        if (const Result result = check_unsafe(); result != SUCCESS) {
            return result;
        }
        Driver& d = driver();
        const std::lock_guard lock(d.mutex);
        const auto found = d.modules.find(module);
        if (found == d.modules.end()) {
            return INVALID_HANDLE;
        }
        for (const auto& function : found->second->functions) {
            d.functions.erase(function.second.get());
        }
        d.modules.erase(found);
        return SUCCESS;
    });
}

RATPLUS_API cuModuleGetFunction(void** function, void* module, const char* name) {
    return guarded([&] {
        if (const Result result = check_context(); result != SUCCESS) {
            return result;
        }
        if (function == nullptr || name == nullptr) {
            return INVALID_VALUE;
        }
        Driver& d = driver();
        const std::lock_guard lock(d.mutex);
        const auto found = d.modules.find(module);
        if (found == d.modules.end()) {
            return INVALID_HANDLE;
        }
        const Kernel* const kernel = find_kernel(name);
        if (kernel == nullptr) {
            return NOT_FOUND;
        }
        auto& made = found->second->functions[kernel];
        if (made == nullptr) {
            made = std::make_unique<Function>(Function{kernel, found->second.get()});
            d.functions[made.get()] = made.get();
        }
        *function = made.get();
        return SUCCESS;
    });
}

RATPLUS_API cuFuncSetAttribute(void* handle, int attribute, int value) {
    return guarded([&] {
        if (const Result result = check_context(); result != SUCCESS) {
            return result;
        }
        Function* const function = find_function(handle);
        if (function == nullptr) {
            return INVALID_HANDLE;
        }
        switch (attribute) {
            case 8:
                if (value < 0 || value > static_cast<int>(MAX_SHARED_BYTES)) {
                    return failed(INVALID_VALUE, std::string("cuFuncSetAttribute: ") + function->kernel->name +
                                                     " cannot have " + std::to_string(value) + " bytes of shared memory");
                }
                function->max_shared_bytes = static_cast<u32>(value);
                return SUCCESS;
            case 9: return value >= -1 && value <= 100 ? SUCCESS : INVALID_VALUE;
            default: return INVALID_VALUE;
        }
    });
}

RATPLUS_API cuFuncGetAttribute(int* value, int attribute, void* handle) {
    return guarded([&] {
        if (const Result result = check_context(); result != SUCCESS) {
            return result;
        }
        const Function* const function = find_function(handle);
        if (function == nullptr) {
            return INVALID_HANDLE;
        }
        if (value == nullptr) {
            return INVALID_VALUE;
        }
        const Kernel& kernel = *function->kernel;
        switch (attribute) {
            case 0: *value = static_cast<int>(kernel.max_threads); return SUCCESS;
            case 1:
            case 2:
            case 3: *value = 0; return SUCCESS;
            // As many registers as the launch bounds leave.
            case 4: *value = static_cast<int>(std::min(255u, 65536 / (kernel.max_threads * kernel.min_blocks))); return SUCCESS;
            case 5:
            case 6: *value = static_cast<int>(10 * thread_state().major + thread_state().minor); return SUCCESS;
            case 8: *value = static_cast<int>(function->max_shared_bytes); return SUCCESS;
            default: return INVALID_VALUE;
        }
    });
}

RATPLUS_API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void* handle, int threads, u64 shared_bytes) {
    return guarded([&] {
        if (const Result result = check_context(); result != SUCCESS) {
            return result;
        }
        const Function* const function = find_function(handle);
        if (function == nullptr) {
            return INVALID_HANDLE;
        }
        if (blocks == nullptr || threads <= 0) {
            return INVALID_VALUE;
        }
        const u32 rounded = (static_cast<u32>(threads) + WARP - 1) / WARP * WARP;
        if (rounded > function->kernel->max_threads || shared_bytes > function->max_shared_bytes) {
            *blocks = 0;
            return SUCCESS;
        }
        const u64 by_shared = (228 << 10) / (shared_bytes + 1024);
        *blocks = static_cast<int>(std::min({u64{2048 / rounded}, by_shared, u64{32}}));
        return SUCCESS;
    });
}

RATPLUS_API cuLaunchKernel(void* handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                           unsigned block_z, unsigned shared_bytes, void* stream, void** params, void** extra) {
    return guarded([&] {
        if (const Result result = check_context(); result != SUCCESS) {
            return result;
        }
        const Function* const function = find_function(handle);
        if (function == nullptr) {
            return INVALID_HANDLE;
        }
        const Kernel& kernel = *function->kernel;
        const auto refused = [&](const std::string& why) {
            return failed(INVALID_VALUE, std::string("cuLaunchKernel: ") + kernel.name + ": " + why);
        };
        if (grid_x == 0 || grid_y == 0 || grid_z == 0 || grid_x > 0x7fffffffu || grid_y > 65535 || grid_z > 65535) {
            return refused("a grid of " + std::to_string(grid_x) + " x " + std::to_string(grid_y) + " x " +
                           std::to_string(grid_z) + " blocks");
        }
        if (block_x == 0 || block_y != 1 || block_z != 1 || block_x > kernel.max_threads) {
            return refused("a block of " + std::to_string(block_x) + " x " + std::to_string(block_y) + " x " +
                           std::to_string(block_z) + " threads; it takes up to " + std::to_string(kernel.max_threads) +
                           " x 1 x 1");
        }
        if (shared_bytes > function->max_shared_bytes) {
            return refused(std::to_string(shared_bytes) + " bytes of shared memory; it may have " +
                           std::to_string(function->max_shared_bytes));
        }
        const void* values = params != nullptr ? params[0] : nullptr;
        if (params == nullptr && extra != nullptr) {
            // Pairs of 1, the buffer's address and 2, the address of its size; 0 ends them.
            u64 bytes = 0;
            for (; *extra != nullptr; extra += 2) {
                if (extra[0] == reinterpret_cast<void*>(1)) {
                    values = extra[1];
                } else if (extra[0] == reinterpret_cast<void*>(2)) {
                    bytes = *static_cast<const u64*>(extra[1]);
                } else {
                    return INVALID_VALUE;
                }
            }
            if (bytes != kernel.params_bytes) {
                return refused(std::to_string(bytes) + " bytes of parameters; it takes " +
                               std::to_string(kernel.params_bytes));
            }
        }
        if (values == nullptr) {
            return refused("no parameters");
        }
        Operation operation{Operation::Kind::launch};
        operation.kernel = &kernel;
        operation.grid[0] = grid_x;
        operation.grid[1] = grid_y;
        operation.grid[2] = grid_z;
        operation.threads = block_x;
        operation.shared_bytes = shared_bytes;
        operation.params.resize((kernel.params_bytes + 63) / 64);
        std::memcpy(operation.params.data(), values, kernel.params_bytes);
        return submit(stream, std::move(operation));
    });
}

}  // namespace ratplus::emulator
