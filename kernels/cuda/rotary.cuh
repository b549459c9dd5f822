// Rotary embedding of rows.
#pragma once
#include "vector.cuh"

namespace ratplus {

// x rotated: the pair (low, high) is `half` channels apart.
// Roundings are spelled out: every kernel that rotates a key makes the same bits of it.
RATPLUS_DEVICE float rotate_low(float low, float high, float cos, float sin) { return fma(low, cos, -(high * sin)); }
RATPLUS_DEVICE float rotate_high(float low, float high, float cos, float sin) { return fma(high, cos, low * sin); }

// Eight or four pairs of channels rotated.
template <typename T>
RATPLUS_DEVICE void rotate(const Vec16& from_low, const Vec16& from_high, const float (&cos)[LANE_ELEMENTS<T>],
                           const float (&sin)[LANE_ELEMENTS<T>], Vec16& low, Vec16& high) {
    constexpr i32 WIDTH = LANE_ELEMENTS<T>;
    float x[WIDTH], y[WIDTH], low_out[WIDTH], high_out[WIDTH];
    unpack<T>(from_low, x);
    unpack<T>(from_high, y);
    RATPLUS_UNROLL
    for (i32 i = 0; i < WIDTH; ++i) {
        low_out[i] = rotate_low(x[i], y[i], cos[i], sin[i]);
        high_out[i] = rotate_high(x[i], y[i], cos[i], sin[i]);
    }
    low = pack<T>(low_out);
    high = pack<T>(high_out);
}

// The pairs from `d` on, `half` apart, of the row at `from`.
template <typename T>
RATPLUS_DEVICE void rotate_lane(const T* from, const float* cos, const float* sin, i32 half, i32 d, Vec16& low,
                                Vec16& high) {
    constexpr i32 WIDTH = LANE_ELEMENTS<T>;
    const Vec16 from_low = load16(from + d);
    const Vec16 from_high = load16(from + d + half);
    float c[WIDTH], s[WIDTH];
    load_floats(cos + d, c);
    load_floats(sin + d, s);
    rotate<T>(from_low, from_high, c, s, low, high);
}

}  // namespace ratplus
