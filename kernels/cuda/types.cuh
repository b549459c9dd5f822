// Numbers without any header: NVRTC compiles these files with nothing beside them.
#pragma once

#if defined(__CUDACC__)
#define RATPLUS_DEVICE __device__ __forceinline__
#define RATPLUS_UNROLL _Pragma("unroll")
#define RATPLUS_UNROLL_2 _Pragma("unroll 2")
#else
#define RATPLUS_DEVICE inline
#define RATPLUS_UNROLL
#define RATPLUS_UNROLL_2
#endif

namespace ratplus {

using u8 = unsigned char;
using u16 = unsigned short;
using i32 = int;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

// Storage of the two short element types; arithmetic is f32.
struct bf16 {
    u16 bits;
};
struct f16 {
    u16 bits;
};

// Sixteen bytes that move as one.
struct alignas(16) Vec16 {
    u32 word[4];
};

template <typename T>
RATPLUS_DEVICE constexpr T minimum(T a, T b) {
    return a < b ? a : b;
}
template <typename T>
RATPLUS_DEVICE constexpr T maximum(T a, T b) {
    return a > b ? a : b;
}

constexpr u32 WARP = 32;

}  // namespace ratplus
