#include "fiber.h"

#include <sys/mman.h>

#include <new>

namespace ratplus::emulator {

void Stack::reserve() {
    if (base_ != nullptr) {
        return;
    }
    void* const memory = mmap(nullptr, GUARD + BYTES, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED) {
        throw std::bad_alloc();
    }
    if (mprotect(memory, GUARD, PROT_NONE) != 0) {
        munmap(memory, GUARD + BYTES);
        throw std::bad_alloc();
    }
    base_ = static_cast<u8*>(memory);
}

Stack::~Stack() {
    if (base_ != nullptr) {
        munmap(base_, GUARD + BYTES);
    }
}

bool Stack::guards(const void* address) const {
    return base_ != nullptr && address >= base_ && address < base_ + GUARD;
}

#if defined(RATPLUS_UCONTEXT)

void prepare(Context& context, u8* bottom, u8* top, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = bottom;
    context.uc_stack.ss_size = static_cast<u64>(top - bottom);
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}

#else

// rdi: where the stack pointer goes, rsi: the one to go on with. The callee-saved registers lie
// on the stack; the floating-point control words are the same in all fibers of a thread.
asm(R"(
.text
.p2align 4
.globl ratplus_emulator_switch
.hidden ratplus_emulator_switch
.type ratplus_emulator_switch, @function
ratplus_emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size ratplus_emulator_switch, .-ratplus_emulator_switch
)");

void prepare(Context& context, u8*, u8* top, void (*entry)()) {
    // As if `entry` had been called: the six registers, its address, a return address of zero.
    void** const words = reinterpret_cast<void**>(top) - 8;
    for (int i = 0; i < 6; ++i) {
        words[i] = nullptr;
    }
    words[6] = reinterpret_cast<void*>(entry);
    words[7] = nullptr;
    context.stack_pointer = words;
}

#endif

}  // namespace ratplus::emulator
