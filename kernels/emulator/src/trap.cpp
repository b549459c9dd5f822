// Traps in kernels.
#include <dlfcn.h>
#include <signal.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>

#include "driver.h"

namespace ratplus::emulator {

namespace {

constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE};
struct sigaction previous[sizeof SIGNALS / sizeof SIGNALS[0]];

struct Trap {
    int signal;
    u64 address;
    u64 instruction;
};
__thread Trap trapped __attribute__((tls_model("initial-exec")));

// Runs on the engine's spare stack in place of the thread that trapped.
[[noreturn]] void report() {
    const auto& self = *static_cast<const Fiber*>(current);
    std::string text;
    if (trapped.signal == SIGFPE) {
        text = "divides an integer by zero";
    } else {
        const std::string place = engine->describe(trapped.address);
        text = "accesses " + (place.empty() ? describe(trapped.address) : place);
    }
    Dl_info library;
    if (dladdr(reinterpret_cast<const void*>(trapped.instruction), &library) != 0) {
        char place[512];
        std::snprintf(place, sizeof place, " (addr2line -Cife %s 0x%llx)", library.dli_fname,
                      trapped.instruction - reinterpret_cast<u64>(library.dli_fbase));
        text += place;
    }
    if (self.call != Call::none) {
        text += std::string("; it was last in ") + name_of(self.call) + ", " + self.site.file + ":" +
                std::to_string(self.site.line);
    }
    const Status status = trapped.signal == SIGFPE ? Status::launch_failed : Status::illegal_address;
    engine->fail(status, Site{nullptr, 0}, text.c_str());
}

// Lets the interrupted thread go on in `report`; where it was.
u64 divert(ucontext_t& context, u8* stack) {
#if defined(__x86_64__)
    auto& registers = context.uc_mcontext.gregs;
    const u64 instruction = static_cast<u64>(registers[REG_RIP]);
    // As after a call: the stack pointer is 8 below a multiple of 16.
    registers[REG_RSP] = reinterpret_cast<greg_t>(stack - 8);
    registers[REG_RIP] = reinterpret_cast<greg_t>(report);
    return instruction;
#elif defined(__aarch64__)
    const u64 instruction = context.uc_mcontext.pc;
    context.uc_mcontext.sp = reinterpret_cast<u64>(stack);
    context.uc_mcontext.pc = reinterpret_cast<u64>(report);
    return instruction;
#else
#error "traps are handled on x86-64 and AArch64"
#endif
}

void handle(int signal, siginfo_t* info, void* context) {
    if (engine != nullptr && current != nullptr) {
        trapped = {signal, reinterpret_cast<u64>(info->si_addr),
                   divert(*static_cast<ucontext_t*>(context), engine->spare_stack())};
        return;
    }
    for (u64 i = 0; i < sizeof SIGNALS / sizeof SIGNALS[0]; ++i) {
        if (SIGNALS[i] != signal) {
            continue;
        }
        if ((previous[i].sa_flags & SA_SIGINFO) != 0) {
            previous[i].sa_sigaction(signal, info, context);
        } else if (previous[i].sa_handler != SIG_DFL && previous[i].sa_handler != SIG_IGN) {
            previous[i].sa_handler(signal);
        } else {
            // The instruction runs again and traps for good.
            sigaction(signal, &previous[i], nullptr);
        }
    }
}

}  // namespace

void catch_traps() {
    static std::once_flag once;
    std::call_once(once, [] {
        for (u64 i = 0; i < sizeof SIGNALS / sizeof SIGNALS[0]; ++i) {
            struct sigaction action {};
            action.sa_sigaction = handle;
            action.sa_flags = SA_SIGINFO | SA_ONSTACK;
            sigemptyset(&action.sa_mask);
            if (sigaction(SIGNALS[i], &action, &previous[i]) != 0) {
                std::perror("ratplus emulator: sigaction");
                std::abort();
            }
        }
    });
}

}  // namespace ratplus::emulator
