// The driver API: device and contexts.
#include <pthread.h>

#include <cstdio>

#include "driver.h"

namespace ratplus::emulator {

namespace {

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

}  // namespace ratplus::emulator
