// The gated step h = g h + (1 - g) x, g = sigmoid(z).
#pragma once
#include "vector.cuh"

namespace ratplus {

// min(g, 1 - g), never computed as a difference.
RATPLUS_DEVICE float smaller_share(float z) {
    const float e = exp2_fast(-magnitude(z) * LOG2_E);
    return e * reciprocal(1.0f + e);
}

// The operand with the larger share, moved by the smaller share towards the other: a gate of plus
// or minus infinity gives `h` or `x` itself.
RATPLUS_DEVICE float gate_blend(float z, float share, float h, float x) {
    const bool closed = z < 0.0f;
    const float base = closed ? x : h;
    const float other = closed ? h : x;
    return fma(share, other - base, base);
}

// The smaller share, with the sign bit set where the gate is closed: all that is left to know of z.
RATPLUS_DEVICE float signed_share(float z) {
    const float share = smaller_share(z);
    return z < 0.0f ? -share : share;
}
RATPLUS_DEVICE bool is_closed(float signed_share) { return static_cast<i32>(to_bits(signed_share)) < 0; }

// As `gate_blend`, bit for bit.
RATPLUS_DEVICE float blend_signed(float signed_share, float h, float x) {
    return fma(signed_share, x - h, is_closed(signed_share) ? x : h);
}

// 1 - g
RATPLUS_DEVICE float intake(float signed_share) {
    return is_closed(signed_share) ? 1.0f + signed_share : signed_share;
}

// Several tokens at once: h becomes h - loss h + key, and the same for the value. `loss` is
// 1 minus the product of the gates: near 1 that product has no digits left to lose.
struct Affine {
    float loss;
    float key;
    float value;
};

// `first`, then `second`.
RATPLUS_DEVICE Affine then(const Affine& first, const Affine& second) {
    return {
        fma(second.loss, 1.0f - first.loss, first.loss),
        fma(-second.loss, first.key, first.key) + second.key,
        fma(-second.loss, first.value, first.value) + second.value,
    };
}

// The same for one of key and value.
struct Step {
    float loss;
    float gain;
};
RATPLUS_DEVICE Step then(const Step& first, const Step& second) {
    return {
        fma(second.loss, 1.0f - first.loss, first.loss),
        fma(-second.loss, first.gain, first.gain) + second.gain,
    };
}

RATPLUS_DEVICE float apply(float loss, float gain, float h) { return fma(-loss, h, h) + gain; }

}  // namespace ratplus
