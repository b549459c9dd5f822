// The driver API: modules, functions, launches.
#include <algorithm>
#include <cstring>

#include "driver.h"

namespace ratplus::emulator {

namespace {

const Kernel*& first_kernel() {
    static const Kernel* first = nullptr;
    return first;
}

Function* find_function(const void* handle) {
    Driver& d = driver();
    const std::lock_guard lock(d.mutex);
    return d.functions.find(handle);
}

Result load_module(void** module, const void* image) {
    if (const Result result = check_unsafe(); result != SUCCESS) {
        return result;
    }
    if (module == nullptr || image == nullptr) {
        return INVALID_VALUE;
    }
    Driver& d = driver();
    const std::lock_guard lock(d.mutex);
    *module = d.modules.add(std::make_unique<Module>());
    return SUCCESS;
}

}  // namespace

Kernel::Kernel(const char* kernel_name, const char* kernel_source, const char* kernel_params, u32 bytes, u32 most_threads,
               u32 least_blocks, Entry function)
    : name(kernel_name),
      source(kernel_source),
      params(kernel_params),
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
        const Module* const found = d.modules.find(module);
        if (found == nullptr) {
            return INVALID_HANDLE;
        }
        for (const auto& function : found->functions) {
            d.functions.remove(function.second);
        }
        d.modules.remove(module);
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
        Module* const found = d.modules.find(module);
        if (found == nullptr) {
            return INVALID_HANDLE;
        }
        const Kernel* const kernel = find_kernel(name);
        if (kernel == nullptr) {
            return NOT_FOUND;
        }
        const auto [entry, made] = found->functions.try_emplace(kernel, nullptr);
        if (made) {
            entry->second = d.functions.add(std::make_unique<Function>(Function{kernel}));
        }
        *function = entry->second;
        return SUCCESS;
    });
}

// --- functions ------------------------------------------------------------------------------------

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

// --- launches -------------------------------------------------------------------------------------

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
