// What the host versions of the device functions ask of the emulator.
#pragma once
#include "types.cuh"

namespace ratplus::emulator {

// Where a kernel calls a device function: as a default argument it is the caller's place.
struct Site {
    const char* file;
    int line;

    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};
#define RATPLUS_SITE ::ratplus::emulator::Site site = ::ratplus::emulator::Site::here()

// What threads do with others, or later.
enum class Call : u8 {
    none,
    block_barrier,
    warp_barrier,
    shuffle_xor,
    shuffle_up,
    shuffle,
    load_blocks,
    load_blocks_transposed,
    multiply_bf16,
    multiply_f16,
    warpgroup_barrier,
    turn_wait,
    product_rows,
    product_columns,
    spin_pause,
    copy_async16,
};

// Why a launch fails, in the driver's numbers.
enum class Status : int {
    success = 0,
    illegal_address = 700,
    misaligned_address = 716,
    launch_failed = 719,
};

// What a kernel's thread knows of itself.
struct Thread {
    u32 index;
    u32 threads;
    u32 block[3];
    u32 grid[3];
    u8* shared;
    u32 shared_bytes;
};

// The thread that runs; null outside of kernels.
extern __thread Thread* current __attribute__((tls_model("initial-exec")));

// Ends the launch. `format` and what follows are printf's.
[[noreturn]] void fault(Status status, Site site, const char* format, ...) __attribute__((format(printf, 3, 4)));
// Something happened that another thread may spin for.
void note_progress();
// The thread looks at what another may write.
void note_look(Site site);
// To the other threads; returns after they had their turn.
void spin(Site site);
void block_barrier(Site site);
void warp_barrier(Site site);
u32 exchange(Call call, u32 value, u32 operand, Site site);
void load_blocks(Call call, u32* block, const void* row, Site site);
void multiply_blocks(Call call, float* c, const u32* a, u32 b0, u32 b1, Site site);
// The running thread writes sixteen bytes of shared memory.
void note_store16(u64 offset, Site site);
void copy_async16(void* to, const void* from, bool valid, Site site);
void copy_async_commit();
void copy_async_wait(u32 pending);

// A kernel, chained up before main.
struct Kernel {
    using Entry = void (*)(const void* params);
    Kernel(const char* name, const char* source, const char* params, u32 params_bytes, u32 max_threads, u32 min_blocks,
           Entry entry);

    const char* name;
    // The file it stands in.
    const char* source;
    // The type of its parameters.
    const char* params;
    u32 params_bytes;
    u32 max_threads;
    u32 min_blocks;
    Entry entry;
    const Kernel* next;
    // Launches that ran, of all threads of the process.
    mutable u64 launches = 0;
};

}  // namespace ratplus::emulator
