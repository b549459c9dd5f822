#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <utility>

#include "schedule.h"

namespace ratplus::emulator {

__thread Thread* current = nullptr;
__thread Engine* engine = nullptr;

namespace {

// Looks of one thread, without a pause, before it counts as stuck.
constexpr u32 LOOKS = 10000000;

void fiber_main() {
    engine->enter();
    engine->exit_thread();
}

}  // namespace

const char* name_of(Call call) {
    switch (call) {
        case Call::none: return "nothing";
        case Call::block_barrier: return "block_barrier";
        case Call::warp_barrier: return "warp_barrier";
        case Call::shuffle_xor: return "shuffle_xor";
        case Call::shuffle_up: return "shuffle_up";
        case Call::shuffle: return "shuffle";
        case Call::load_blocks: return "load_blocks";
        case Call::load_blocks_transposed: return "load_blocks_transposed";
        case Call::multiply_bf16: return "multiply_blocks<bf16>";
        case Call::multiply_f16: return "multiply_blocks<f16>";
        case Call::warpgroup_barrier: return "warpgroup_barrier";
        case Call::turn_wait: return "turn_wait";
        case Call::product_rows: return "Products::rows";
        case Call::product_columns: return "Products::columns";
        case Call::spin_pause: return "spin_pause";
        case Call::copy_async16: return "copy_async16";
    }
    return "?";
}

void fault(Status status, Site site, const char* format, ...) {
    char message[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    engine->fail(status, site, message);
}

void note_progress() { engine->note_progress(); }
void note_look(Site site) { engine->note_look(site); }
void spin(Site site) { engine->spin(site); }

void block_barrier(Site site) {
    const Fiber& self = running();
    Block& block = *self.owner;
    if (engine->arrive(block.barrier, 0, block.threads, Call::block_barrier, site)) {
        engine->check_warps(block);
        block.shadow.meet_all();
        engine->release(block.barrier, 0, block.threads);
    }
}

// --- order ----------------------------------------------------------------------------------------

void Engine::wake_spinners() {
    for (u32 slot = 0; slot < resident_; ++slot) {
        Block& block = *blocks_[slot];
        for (; block.spinning_warps != 0; block.spinning_warps &= block.spinning_warps - 1) {
            const u32 warp = static_cast<u32>(__builtin_ctz(block.spinning_warps));
            make_runnable(block, warp, std::exchange(block.spinning[warp], 0));
        }
    }
}

// One spinning thread of one block, where there is any, before the others have had their turn. No more
// than one: those that can go on have to stay the most.
void Engine::wake_one() {
    const u32 bits = random();
    Block& block = *blocks_[bits % resident_];
    if (block.spinning_warps == 0) {
        return;
    }
    const u32 warp = choose(block.spinning_warps, NONE, bits >> 8);
    const u32 lane = choose(block.spinning[warp], NONE, bits >> 16);
    block.spinning[warp] &= ~(1u << lane);
    if (block.spinning[warp] == 0) {
        block.spinning_warps &= ~(1u << warp);
    }
    make_runnable(block, warp, 1u << lane);
}

void Engine::note_look(Site site) {
    if (++looks_ > LOOKS) {
        fault(Status::launch_failed, site, "the thread waits for another without spin_pause");
    }
}

void Engine::spin(Site site) {
    Fiber& self = running();
    self.call = Call::spin_pause;
    self.site = site;
    self.owner->spinning[self.index / WARP] |= 1u << self.index % WARP;
    self.owner->spinning_warps |= 1u << self.index / WARP;
    suspend();
}

void Engine::diverge(const Meeting& meeting, u32 first, u32 members, Call call, Site site) {
    fault(Status::launch_failed, site, "the warp of threads %u to %u diverges: this one is in %s, others are in %s (%s:%d)",
          first, first + members - 1, name_of(call), name_of(meeting.call), meeting.site.file, meeting.site.line);
}

// All lanes of a warp have to be at the same barrier.
void Engine::check_warps(const Block& block) const {
    for (u32 i = 0; i < block.threads; ++i) {
        const Fiber& lane = *block.fibers[i];
        const Fiber& first = *block.fibers[i / WARP * WARP];
        if (lane.site.line != first.site.line) {
            fault(Status::launch_failed, lane.site, "a warp diverges: thread %u is at this block_barrier, thread %u is at %s:%d",
                  lane.index, first.index, first.site.file, first.site.line);
        }
    }
}

// --- launches -------------------------------------------------------------------------------------

void Engine::begin(Block& block, u64 index) {
    const Launch& launch = *launch_;
    block.coordinates[0] = static_cast<u32>(index % launch.grid[0]);
    block.coordinates[1] = static_cast<u32>(index / launch.grid[0] % launch.grid[1]);
    block.coordinates[2] = static_cast<u32>(index / launch.grid[0] / launch.grid[1]);
    block.threads = block.live = launch.threads;
    block.barrier = Meeting{};
    block.last_warp = NONE;
    block.runnable_warps = block.spinning_warps = 0;
    u8* const shared = block.shared.reset(launch.shared_bytes);
    block.shadow.reset(launch.threads, launch.shared_bytes);
    while (block.fibers.size() < launch.threads) {
        block.fibers.push_back(std::make_unique<Fiber>());
    }
    for (u32 warp = 0; warp < MAX_WARPS; ++warp) {
        block.warps[warp] = Meeting{};
        block.groups[warp / 4] = Meeting{};
        block.runnable[warp] = block.spinning[warp] = block.exited[warp] = 0;
    }
    for (u32 i = 0; i < launch.threads; ++i) {
        Fiber& fiber = *block.fibers[i];
        fiber.index = i;
        fiber.threads = launch.threads;
        std::memcpy(fiber.block, block.coordinates, sizeof fiber.block);
        std::memcpy(fiber.grid, launch.grid, sizeof fiber.grid);
        fiber.shared = shared;
        fiber.shared_bytes = launch.shared_bytes;
        fiber.owner = &block;
        fiber.call = Call::none;
        fiber.copies.clear();
        fiber.group_ends.clear();
        fiber.products.clear();
        fiber.product_ends.clear();
        fiber.pending_sums.clear();
        fiber.products_begun = false;
        fiber.stack.reserve();
        // The tops of the stacks fall into different sets of the processor's cache.
        const u32 colour = i * 320 % 4096;
        prepare(fiber.context, fiber.stack.bottom(), fiber.stack.top() - colour, fiber_main);
    }
    for (u32 warp = 0; warp * WARP < launch.threads; ++warp) {
        make_runnable(block, warp, lanes_of(warp, launch.threads));
    }
}

Status Engine::run(const Launch& launch, std::string& error) {
    catch_traps();
    spare_stack_.reserve();
    launch_ = &launch;
    random_state_ = (settings.seed + 1) * 0x9e3779b97f4a7c15ull | 1;
    const u64 count = static_cast<u64>(launch.grid[0]) * launch.grid[1] * launch.grid[2];
    std::vector<u64> sequence;
    if (settings.order == Order::random) {
        sequence.resize(count);
        std::iota(sequence.begin(), sequence.end(), u64{0});
        for (u64 i = count; i > 1; --i) {
            std::swap(sequence[i - 1], sequence[random() % i]);
        }
    }
    const auto nth = [&](u64 i) {
        return settings.order == Order::forward ? i : settings.order == Order::reverse ? count - 1 - i : sequence[i];
    };
    resident_ = static_cast<u32>(count < settings.resident ? count : settings.resident);
    runnable_blocks_ = 0;
    last_block_ = NONE;
    idle_rounds_ = 0;
    status_ = Status::success;
    error_.clear();
    while (blocks_.size() < resident_) {
        blocks_.push_back(std::make_unique<Block>());
        blocks_.back()->slot = static_cast<u32>(blocks_.size() - 1);
    }
    struct Entered {
        Engine* const outer;
        ~Entered() {
            current = nullptr;
            engine = outer;
        }
    } const entered{std::exchange(engine, this)};
    u64 begun = 0;
    for (; begun < resident_; ++begun) {
        begin(*blocks_[begun], nth(begun));
    }
    for (u64 finished = 0; finished < count;) {
        Fiber* const fiber = next();
        if (fiber == nullptr) {
            status_ = Status::launch_failed;
            error_ = deadlock();
            break;
        }
        current = fiber;
        looks_ = 0;
        switch_context(main_, fiber->context);
        current = nullptr;
        if (status_ != Status::success) {
            break;
        }
        for (u32 slot = 0; slot < resident_; ++slot) {
            Block& block = *blocks_[slot];
            if (block.live > 0 || block.threads == 0) {
                continue;
            }
            i64 offset;
            if (block.shared.overwritten(offset)) {
                status_ = Status::illegal_address;
                error_ = std::string("kernel ") + launch.kernel->name + ": byte " + std::to_string(offset) +
                         " of a block's shared memory was written, which has " + std::to_string(launch.shared_bytes);
                finished = count;
                break;
            }
            for (u32 id = 0; id < NAMED_BARRIERS; ++id) {
                if (block.shadow.named[id].arrived > 0) {
                    status_ = Status::launch_failed;
                    error_ = std::string("kernel ") + launch.kernel->name + ": a block ends while barrier " +
                             std::to_string(id) + " waits for more arrivals";
                    finished = count;
                }
            }
            ++finished;
            block.threads = 0;
            if (begun < count) {
                begin(block, nth(begun++));
            }
        }
    }
    error = error_;
    return status_;
}

void Engine::exit_thread() {
    Fiber& self = running();
    if (!self.copies.empty()) {
        const Copy& copy = self.copies.front();
        fault(Status::launch_failed, copy.site, "the thread exits before it waited for its copy_async16");
    }
    if (!self.products.empty()) {
        fault(Status::launch_failed, self.site, "the thread exits before it waited for its products");
    }
    note_progress();
    Block& block = *self.owner;
    block.exited[self.index / WARP] |= 1u << self.index % WARP;
    // A block that is done goes back to `run`.
    Fiber* const other = --block.live == 0 ? nullptr : next();
    current = other;
    looks_ = 0;
    switch_context(self.context, other != nullptr ? other->context : main_);
    __builtin_unreachable();
}

void Engine::fail(Status status, Site site, const char* message) {
    Fiber& self = running();
    status_ = status;
    char where[512];
    snprintf(where, sizeof where, "kernel %s, block (%u, %u, %u), thread %u", launch_->kernel->name, self.block[0],
             self.block[1], self.block[2], self.index);
    error_ = where;
    if (site.file != nullptr) {
        error_ += std::string(", ") + site.file + ":" + std::to_string(site.line);
    }
    error_ += std::string(": ") + message;
    current = nullptr;
    switch_context(self.context, main_);
    __builtin_unreachable();
}

std::string Engine::describe(u64 address) const {
    for (u32 slot = 0; slot < resident_; ++slot) {
        const Block& block = *blocks_[slot];
        i64 offset;
        if (block.shared.covers(address, offset)) {
            return "byte " + std::to_string(offset) + " of a shared memory of " + std::to_string(launch_->shared_bytes);
        }
        for (u32 i = 0; i < block.threads; ++i) {
            if (block.fibers[i]->stack.guards(reinterpret_cast<const void*>(address))) {
                return "the end of the stack of thread " + std::to_string(i);
            }
        }
    }
    return {};
}

// Where every thread of the resident blocks stands.
std::string Engine::deadlock() const {
    std::string text = std::string("kernel ") + launch_->kernel->name + ": no thread can go on";
    for (u32 slot = 0; slot < resident_; ++slot) {
        const Block& block = *blocks_[slot];
        if (block.threads == 0) {
            continue;
        }
        char line[256];
        snprintf(line, sizeof line, "\n  block (%u, %u, %u):", block.coordinates[0], block.coordinates[1],
                 block.coordinates[2]);
        text += line;
        const auto exited = [&](u32 i) { return (block.exited[i / WARP] >> i % WARP & 1) != 0; };
        for (u32 first = 0; first < block.threads;) {
            const Fiber& fiber = *block.fibers[first];
            const auto same = [&](u32 i) {
                const Fiber& other = *block.fibers[i];
                return exited(i) == exited(first) &&
                       (exited(i) || (other.call == fiber.call && other.site.line == fiber.site.line));
            };
            u32 last = first;
            while (last + 1 < block.threads && same(last + 1)) {
                ++last;
            }
            if (exited(first)) {
                snprintf(line, sizeof line, "\n    threads %u to %u have exited", first, last);
            } else {
                snprintf(line, sizeof line, "\n    threads %u to %u wait in %s (%s:%d)", first, last, name_of(fiber.call),
                         fiber.site.file, fiber.site.line);
            }
            text += line;
            first = last + 1;
        }
    }
    return text;
}

}  // namespace ratplus::emulator
