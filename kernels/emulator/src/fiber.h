// Contexts that one OS thread switches between, and their stacks.
#pragma once
#include "types.cuh"

#if !defined(__x86_64__) || defined(RATPLUS_EMULATOR_UCONTEXT)
#define RATPLUS_UCONTEXT 1
#include <ucontext.h>
#endif

namespace ratplus::emulator {

// Memory below a page that must not be touched.
class Stack {
public:
    Stack() = default;
    Stack(const Stack&) = delete;
    Stack& operator=(const Stack&) = delete;
    ~Stack();

    // Maps the stack where it is not yet; throws std::bad_alloc.
    void reserve();
    u8* top() const { return base_ + GUARD + BYTES; }
    u8* bottom() const { return base_ + GUARD; }
    bool guards(const void* address) const;

    static constexpr u64 BYTES = 128 << 10;

private:
    static constexpr u64 GUARD = 4096;
    u8* base_ = nullptr;
};

#if defined(RATPLUS_UCONTEXT)
using Context = ucontext_t;
#else
struct Context {
    void* stack_pointer;
};
#endif

// Makes `context` call `entry`, which must not return, on a stack that ends at `top`, a multiple
// of 16; `bottom` is its other end.
void prepare(Context& context, u8* bottom, u8* top, void (*entry)());
// Saves the running context in `from` and resumes `to`.
#if defined(RATPLUS_UCONTEXT)
inline void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }
#else
extern "C" __attribute__((visibility("hidden"))) void ratplus_emulator_switch(void** from, void* to);
inline void switch_context(Context& from, Context& to) { ratplus_emulator_switch(&from.stack_pointer, to.stack_pointer); }
#endif

}  // namespace ratplus::emulator
