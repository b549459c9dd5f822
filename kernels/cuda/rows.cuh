// Rows that eight lanes write.
#pragma once
#include "rotary.cuh"

namespace ratplus {

constexpr i32 ROW_LANES = 8;

// Copies a row with eight lanes.
template <typename T>
RATPLUS_DEVICE void copy_row(T* to, const T* from, i32 dim, i32 lane) {
    constexpr i32 WIDTH = LANE_ELEMENTS<T>;
    if (dim % WIDTH == 0) {
        for (i32 d = lane * WIDTH; d < dim; d += ROW_LANES * WIDTH) {
            store16(to + d, load16(from + d));
        }
    } else {
        for (i32 d = lane; d < dim; d += ROW_LANES) {
            to[d] = from[d];
        }
    }
}

// Rotates a row with eight lanes.
template <typename T>
RATPLUS_DEVICE void rotate_row(T* to, const T* from, const float* cos, const float* sin, i32 dim, i32 lane) {
    constexpr i32 WIDTH = LANE_ELEMENTS<T>;
    const i32 half = dim / 2;
    if (half % WIDTH == 0) {
        for (i32 d = lane * WIDTH; d < half; d += ROW_LANES * WIDTH) {
            Vec16 low, high;
            rotate_lane(from, cos, sin, half, d, low, high);
            store16(to + d, low);
            store16(to + d + half, high);
        }
    } else {
        for (i32 d = lane; d < half; d += ROW_LANES) {
            const float x = widen(from[d]);
            const float y = widen(from[d + half]);
            to[d] = narrow<T>(rotate_low(x, y, cos[d], sin[d]));
            to[d + half] = narrow<T>(rotate_high(x, y, cos[d], sin[d]));
        }
    }
}

}  // namespace ratplus
