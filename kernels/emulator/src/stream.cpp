// The driver API: streams, captures, graphs, events.
#include <time.h>

#include <algorithm>
#include <cstring>

#include "driver.h"

namespace ratplus::emulator {

namespace {

// The null stream, the legacy one and the one per thread have no object.
bool is_default(const void* stream) { return reinterpret_cast<u64>(stream) <= 2; }

double now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_nsec) * 1e-6;
}

// Ends the captures that the calling thread began, and that forbid what it does; the driver is
// locked. Real captures of the global mode forbid it to other threads too: here they do not, so
// that tests on different threads do not disturb each other.
Result invalidate_captures(Result why) {
    Result result = SUCCESS;
    auto& captures = thread_state().captures;
    for (const auto& weak : captures) {
        const auto capture = weak.lock();
        if (capture != nullptr && (!capture->relaxed || why == STREAM_CAPTURE_IMPLICIT)) {
            capture->invalid = true;
            result = why;
        }
    }
    return result;
}

// The stream's capture, or null; whether the stream can take work. The driver is locked.
Result look_up(void* stream, std::shared_ptr<Capture>& capture) {
    Driver& d = driver();
    if (is_default(stream)) {
        // It waits for all streams but the non-blocking ones, also for those that capture.
        for (const auto& [handle, other] : d.streams.all()) {
            if (!other->non_blocking && other->capture != nullptr && other->capture->thread == &thread_state()) {
                return invalidate_captures(STREAM_CAPTURE_IMPLICIT);
            }
        }
        return SUCCESS;
    }
    const Stream* const found = d.streams.find(stream);
    if (found == nullptr) {
        return INVALID_HANDLE;
    }
    capture = found->capture;
    return capture != nullptr && capture->invalid ? STREAM_CAPTURE_INVALIDATED : SUCCESS;
}

}  // namespace

Result check_unsafe() {
    if (const Result result = check_context(); result != SUCCESS) {
        return result;
    }
    Driver& d = driver();
    const std::lock_guard lock(d.mutex);
    return invalidate_captures(STREAM_CAPTURE_UNSUPPORTED);
}

Result run(const Operation& operation) {
    switch (operation.kind) {
        case Operation::Kind::copy:
            std::memmove(reinterpret_cast<void*>(operation.to), reinterpret_cast<const void*>(operation.from), operation.count);
            return SUCCESS;
        case Operation::Kind::fill8:
            std::memset(reinterpret_cast<void*>(operation.to), static_cast<int>(operation.value), operation.count);
            return SUCCESS;
        case Operation::Kind::fill32:
            std::fill_n(reinterpret_cast<u32*>(operation.to), operation.count, operation.value);
            return SUCCESS;
        case Operation::Kind::launch: break;
    }
    ThreadState& t = thread_state();
    const Kernel& kernel = *operation.kernel;
    ++t.launches[kernel.name];
    __atomic_fetch_add(&kernel.launches, 1, __ATOMIC_RELAXED);
    const Launch launch{&kernel,
                        {operation.grid[0], operation.grid[1], operation.grid[2]},
                        operation.threads,
                        operation.shared_bytes,
                        operation.params.data()};
    std::string error;
    const Status status = t.engine.run(launch, error);
    return status == Status::success ? SUCCESS : failed(static_cast<Result>(status), std::move(error));
}

Result submit(void* stream, Operation operation) {
    if (const Result result = check_context(); result != SUCCESS) {
        return result;
    }
    std::shared_ptr<Capture> capture;
    {
        Driver& d = driver();
        const std::lock_guard lock(d.mutex);
        if (const Result result = look_up(stream, capture); result != SUCCESS) {
            return result;
        }
        if (capture != nullptr) {
            capture->graph.operations.push_back(std::move(operation));
            return SUCCESS;
        }
    }
    return run(operation);
}

// --- streams --------------------------------------------------------------------------------------

RATPLUS_API cuStreamCreate(void** stream, unsigned flags) {
    return guarded([&] {
        if (const Result result = check_context(); result != SUCCESS) {
            return result;
        }
        if (stream == nullptr || flags > 1) {
            return INVALID_VALUE;
        }
        auto made = std::make_unique<Stream>();
        made->non_blocking = flags == 1;
        Driver& d = driver();
        const std::lock_guard lock(d.mutex);
        *stream = d.streams.add(std::move(made));
        return SUCCESS;
    });
}

RATPLUS_API cuStreamDestroy_v2(void* stream) {
    return guarded([&] {
        Driver& d = driver();
        const std::lock_guard lock(d.mutex);
        return d.streams.remove(stream) ? SUCCESS : INVALID_HANDLE;
    });
}

RATPLUS_API cuStreamSynchronize(void* stream) {
    return guarded([&] {
        if (const Result result = check_context(); result != SUCCESS) {
            return result;
        }
        Driver& d = driver();
        const std::lock_guard lock(d.mutex);
        std::shared_ptr<Capture> capture;
        const Result result = look_up(stream, capture);
        if (capture == nullptr) {
            return result;
        }
        capture->invalid = true;
        return STREAM_CAPTURE_UNSUPPORTED;
    });
}

RATPLUS_API cuStreamWaitEvent(void* stream, void* event, unsigned flags) {
    return guarded([&] {
        if (const Result result = check_context(); result != SUCCESS) {
            return result;
        }
        Driver& d = driver();
        const std::lock_guard lock(d.mutex);
        const Event* const found = d.events.find(event);
        if (found == nullptr || flags > 1) {
            return found == nullptr ? INVALID_HANDLE : INVALID_VALUE;
        }
        std::shared_ptr<Capture> capture;
        if (const Result result = look_up(stream, capture); result != SUCCESS) {
            return result;
        }
        if (!found->captured) {
            return SUCCESS;
        }
        const auto joined = found->capture.lock();
        if (joined == nullptr || is_default(stream) || (capture != nullptr && capture != joined)) {
            return STREAM_CAPTURE_UNMATCHED;
        }
        d.streams.find(stream)->capture = joined;
        return SUCCESS;
    });
}

RATPLUS_API cuStreamBeginCapture_v2(void* stream, int mode) {
    return guarded([&] {
        if (const Result result = check_context(); result != SUCCESS) {
            return result;
        }
        if (mode < 0 || mode > 2) {
            return INVALID_VALUE;
        }
        if (is_default(stream)) {
            return STREAM_CAPTURE_UNSUPPORTED;
        }
        Driver& d = driver();
        const std::lock_guard lock(d.mutex);
        Stream* const found = d.streams.find(stream);
        if (found == nullptr || found->capture != nullptr) {
            return found == nullptr ? INVALID_HANDLE : INVALID_VALUE;
        }
        found->capture = std::make_shared<Capture>();
        found->capture->relaxed = mode == 2;
        found->capture->thread = &thread_state();
        found->origin = true;
        auto& captures = thread_state().captures;
        captures.erase(std::remove_if(captures.begin(), captures.end(), [](const auto& c) { return c.expired(); }),
                       captures.end());
        captures.push_back(found->capture);
        return SUCCESS;
    });
}

RATPLUS_API cuStreamEndCapture(void* stream, void** graph) {
    return guarded([&] {
        if (const Result result = check_context(); result != SUCCESS) {
            return result;
        }
        if (graph == nullptr) {
            return INVALID_VALUE;
        }
        *graph = nullptr;
        Driver& d = driver();
        const std::lock_guard lock(d.mutex);
        Stream* const found = d.streams.find(stream);
        if (found == nullptr) {
            return is_default(stream) ? STREAM_CAPTURE_UNMATCHED : INVALID_HANDLE;
        }
        if (found->capture == nullptr || !found->origin) {
            return STREAM_CAPTURE_UNMATCHED;
        }
        if (!found->capture->relaxed && found->capture->thread != &thread_state()) {
            return STREAM_CAPTURE_WRONG_THREAD;
        }
        const std::shared_ptr<Capture> capture = found->capture;
        for (const auto& [handle, other] : d.streams.all()) {
            if (other->capture == capture) {
                other->capture = nullptr;
                other->origin = false;
            }
        }
        if (capture->invalid) {
            return STREAM_CAPTURE_INVALIDATED;
        }
        *graph = d.graphs.add(std::make_unique<Graph>(std::move(capture->graph)));
        return SUCCESS;
    });
}

RATPLUS_API cuStreamIsCapturing(void* stream, int* status) {
    return guarded([&] {
        if (const Result result = check_context(); result != SUCCESS) {
            return result;
        }
        if (status == nullptr) {
            return INVALID_VALUE;
        }
        Driver& d = driver();
        const std::lock_guard lock(d.mutex);
        std::shared_ptr<Capture> capture;
        const Result result = look_up(stream, capture);
        // None, active, invalidated.
        *status = capture == nullptr ? 0 : capture->invalid ? 2 : 1;
        return result == STREAM_CAPTURE_INVALIDATED ? SUCCESS : result;
    });
}

// --- graphs ---------------------------------------------------------------------------------------

RATPLUS_API cuGraphInstantiateWithFlags(void** executable, void* graph, u64 flags) {
    return guarded([&] {
        if (const Result result = check_context(); result != SUCCESS) {
            return result;
        }
        if (executable == nullptr || flags > 15) {
            return INVALID_VALUE;
        }
        Driver& d = driver();
        const std::lock_guard lock(d.mutex);
        const Graph* const found = d.graphs.find(graph);
        if (found == nullptr) {
            return INVALID_VALUE;
        }
        *executable = d.executables.add(std::make_unique<Graph>(*found));
        return SUCCESS;
    });
}

RATPLUS_API cuGraphLaunch(void* executable, void* stream) {
    return guarded([&] {
        std::vector<Operation> operations;
        {
            Driver& d = driver();
            const std::lock_guard lock(d.mutex);
            const Graph* const found = d.executables.find(executable);
            if (found == nullptr) {
                return INVALID_VALUE;
            }
            operations = found->operations;
        }
        for (Operation& operation : operations) {
            if (const Result result = submit(stream, std::move(operation)); result != SUCCESS) {
                return result;
            }
        }
        return SUCCESS;
    });
}

RATPLUS_API cuGraphDestroy(void* graph) {
    return guarded([&] {
        Driver& d = driver();
        const std::lock_guard lock(d.mutex);
        return d.graphs.remove(graph) ? SUCCESS : INVALID_VALUE;
    });
}

RATPLUS_API cuGraphExecDestroy(void* executable) {
    return guarded([&] {
        Driver& d = driver();
        const std::lock_guard lock(d.mutex);
        return d.executables.remove(executable) ? SUCCESS : INVALID_VALUE;
    });
}

// --- events ---------------------------------------------------------------------------------------

RATPLUS_API cuEventCreate(void** event, unsigned flags) {
    return guarded([&] {
        if (const Result result = check_context(); result != SUCCESS) {
            return result;
        }
        if (event == nullptr || flags > 7) {
            return INVALID_VALUE;
        }
        auto made = std::make_unique<Event>();
        made->timing = (flags & 2) == 0;
        Driver& d = driver();
        const std::lock_guard lock(d.mutex);
        *event = d.events.add(std::move(made));
        return SUCCESS;
    });
}

RATPLUS_API cuEventRecord(void* event, void* stream) {
    return guarded([&] {
        if (const Result result = check_context(); result != SUCCESS) {
            return result;
        }
        Driver& d = driver();
        const std::lock_guard lock(d.mutex);
        Event* const found = d.events.find(event);
        if (found == nullptr) {
            return INVALID_HANDLE;
        }
        std::shared_ptr<Capture> capture;
        if (const Result result = look_up(stream, capture); result != SUCCESS) {
            return result;
        }
        found->captured = capture != nullptr;
        found->capture = capture;
        if (capture == nullptr) {
            found->recorded = true;
            found->milliseconds = now();
        }
        return SUCCESS;
    });
}

RATPLUS_API cuEventSynchronize(void* event) {
    return guarded([&] {
        Driver& d = driver();
        const std::lock_guard lock(d.mutex);
        const Event* const found = d.events.find(event);
        return found == nullptr ? INVALID_HANDLE : found->captured ? CAPTURED_EVENT : SUCCESS;
    });
}

RATPLUS_API cuEventQuery(void* event) { return cuEventSynchronize(event); }

RATPLUS_API cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
    return guarded([&] {
        Driver& d = driver();
        const std::lock_guard lock(d.mutex);
        const Event* const first = d.events.find(start);
        const Event* const last = d.events.find(end);
        if (milliseconds == nullptr) {
            return INVALID_VALUE;
        }
        if (first == nullptr || last == nullptr || !first->timing || !last->timing || !first->recorded || !last->recorded) {
            return INVALID_HANDLE;
        }
        *milliseconds = static_cast<float>(last->milliseconds - first->milliseconds);
        return SUCCESS;
    });
}

RATPLUS_API cuEventElapsedTime(float* milliseconds, void* start, void* end) {
    return cuEventElapsedTime_v2(milliseconds, start, end);
}

RATPLUS_API cuEventDestroy_v2(void* event) {
    return guarded([&] {
        Driver& d = driver();
        const std::lock_guard lock(d.mutex);
        return d.events.remove(event) ? SUCCESS : INVALID_HANDLE;
    });
}

}  // namespace ratplus::emulator
