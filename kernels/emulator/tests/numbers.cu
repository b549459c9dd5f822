// Conversions and arithmetic.
#include "device.cuh"

using namespace ratplus;

struct ConvertParams {
    const float* in;
    // [3]: bf16, f16, and the f16 back
    u32* out;
    i32 count;
};

RATPLUS_KERNEL(test_convert, ConvertParams, 32, 1) {
    for (i32 i = static_cast<i32>(thread_index()); i < p.count; i += 32) {
        const float value = p.in[i];
        p.out[3 * i] = pack2<bf16>(value, widen(narrow<bf16>(value)));
        p.out[3 * i + 1] = pack2<f16>(value, widen(narrow<f16>(value)));
        p.out[3 * i + 2] = to_bits(widen(narrow<f16>(value)));
    }
}

struct ArithmeticParams {
    // [count, 3]
    const float* in;
    float* out;
    i32 count;
};

RATPLUS_KERNEL(test_arithmetic, ArithmeticParams, 32, 1) {
    const i32 i = static_cast<i32>(thread_index());
    if (i < p.count) {
        p.out[3 * i] = exp2_fast(p.in[3 * i]);
        p.out[3 * i + 1] = divide(p.in[3 * i + 1], p.in[3 * i + 2]);
        p.out[3 * i + 2] = fma(3.0f, p.in[3 * i + 1], p.in[3 * i + 2]);
    }
}
