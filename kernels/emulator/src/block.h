// Blocks of threads as fibers of one OS thread, and the order in which they run.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "device_hopper_host.h"
#include "engine.h"
#include "fiber.h"
#include "shadow.h"

namespace ratplus::emulator {

constexpr u32 MAX_THREADS = 1024;
constexpr u32 MAX_WARPS = MAX_THREADS / WARP;
constexpr u32 MAX_RESIDENT = 4;
constexpr u32 MAX_SHARED_BYTES = 232448;

enum class Order : u8 { forward, reverse, random };

struct Settings {
    Order order = Order::forward;
    // Blocks that run at a time.
    u32 resident = 1;
    u64 seed = 0;
};

// One launch.
struct Launch {
    const Kernel* kernel;
    u32 grid[3];
    u32 threads;
    u32 shared_bytes;
    const void* params;
};

// Sixteen bytes on their way to shared memory.
struct Copy {
    u8* to;
    const u8* from;
    bool valid;
    Site site;
};

// A product that was not waited for: the fragments of this thread's rows, by lane of four, and what
// may not change until then: the thread's own fragment, and its part of the operands in shared memory.
struct PendingProduct {
    struct Read {
        u32 offset;
        u8 bytes[PIECE];
    };
    Product product;
    Site site;
    const u32* fragment;
    u32 own[4];
    u32 quad[4][4];
    std::vector<Read> reads;
};

// What products add to until they are waited for.
struct PendingSum {
    float* at;
    u32 count;
    float value[64];
};

struct Block;

struct Fiber : Thread {
    Block* owner;
    Context context;
    Stack stack;
    Call call;
    Site site;
    std::vector<Copy> copies;
    // For each committed group that may have copies under way, how many of `copies` there were
    // at its end.
    std::vector<u64> group_ends;
    // The same for products.
    std::vector<PendingProduct> products;
    std::vector<u64> product_ends;
    std::vector<PendingSum> pending_sums;
    // Whether `products_begin` was called for the batch.
    bool products_begun;
};

// Consecutive threads of a block that wait for each other.
struct Meeting {
    Call call = Call::none;
    Site site{};
    u32 arrived = 0;
};

// What the lanes of a warp bring to a meeting and take away.
struct Exchange {
    u32 value[WARP];
    u32 operand[WARP];
    u32 result[WARP];
    const void* row[WARP];
    u32* block[WARP];
    float* c[WARP];
    const u32* a[WARP];
    u32 b[WARP][2];
    u32 quad[WARP][4][4];
};

// A block's shared memory, between guard pages.
class SharedMemory {
public:
    SharedMemory();
    ~SharedMemory();
    SharedMemory(const SharedMemory&) = delete;
    SharedMemory& operator=(const SharedMemory&) = delete;

    // Garbage everywhere; the start.
    u8* reset(u32 bytes);
    // The offset, from the start of shared memory, of a byte around it that was written.
    bool overwritten(i64& offset) const;
    // Whether the address belongs here, guard pages included, and how far from the start.
    bool covers(u64 address, i64& offset) const;

private:
    u8* base_;
    u8* start_ = nullptr;
    u32 bytes_ = 0;
};

struct Block {
    u32 coordinates[3];
    // 0 where no block runs here.
    u32 threads = 0;
    // Threads that have not exited.
    u32 live = 0;
    Meeting barrier;
    Meeting warps[MAX_WARPS];
    Meeting groups[MAX_WARPS / 4];
    Exchange exchange[MAX_WARPS];
    // Threads by warp and lane; those in none of the three run or wait.
    u32 runnable[MAX_WARPS];
    u32 spinning[MAX_WARPS];
    u32 exited[MAX_WARPS];
    // Warps that have such threads.
    u32 runnable_warps;
    u32 spinning_warps;
    u32 last_warp;
    u32 slot;
    SharedMemory shared;
    Shadow shadow;
    std::vector<std::unique_ptr<Fiber>> fibers;
};

// Runs launches on the calling OS thread, one at a time.
class Engine {
public:
    Settings settings;

    // Runs all blocks. Other than `success`, `error` says why.
    Status run(const Launch& launch, std::string& error);

    // For the running fiber:
    [[noreturn]] void fail(Status status, Site site, const char* message);
    void note_progress() { idle_rounds_ = 0; }
    void note_look(Site site);
    void spin(Site site);
    // Joins a meeting of `members` threads from thread `first` on. True for the last to arrive,
    // who has to call `release`; for the others once that is done.
    bool arrive(Meeting& meeting, u32 first, u32 members, Call call, Site site);
    void release(Meeting& meeting, u32 first, u32 members);
    void check_warps(const Block& block) const;
    [[noreturn]] void exit_thread();
    void enter() const { launch_->kernel->entry(launch_->params); }
    // What the running block or thread has at `address`; empty where that is nothing.
    std::string describe(u64 address) const;
    // For a thread that trapped.
    u8* spare_stack() const { return spare_stack_.top(); }

private:
    void begin(Block& block, u64 index);
    void make_runnable(Block& block, u32 warp, u32 lanes);
    void take(Block& block, u32 warp, u32 lane);
    void suspend();
    void wake_spinners();
    void wake_one();
    Fiber* next();
    u32 choose(u32 mask, u32 last, u32 bits) const;
    u32 random();
    [[noreturn]] void diverge(const Meeting& meeting, u32 first, u32 members, Call call, Site site);
    std::string deadlock() const;

    const Launch* launch_ = nullptr;
    std::vector<std::unique_ptr<Block>> blocks_;
    u32 resident_ = 0;
    u32 runnable_blocks_ = 0;
    u32 last_block_ = 0;
    // Times that only spinning threads were left, since the last progress.
    u32 idle_rounds_ = 0;
    // Looks of the running thread since its turn began.
    u32 looks_ = 0;
    u64 random_state_ = 1;
    Context main_{};
    Stack spare_stack_;
    Status status_ = Status::success;
    std::string error_;
};

// The engine whose kernel runs on this OS thread.
extern __thread Engine* engine __attribute__((tls_model("initial-exec")));

const char* name_of(Call call);
// Lets a trap in a kernel, such as an access to memory that is not there, end the launch instead of
// the process. For the whole process, once; other traps go where they went before.
void catch_traps();

}  // namespace ratplus::emulator
