// DilatedAttention for the shapes that no faster kernel takes.
#include "attention_any.cuh"
#include "dilated_keys.cuh"

// head_dim up to 128, and up to 512.
#define RATPLUS_ANY(T, name)                                                                       \
    RATPLUS_KERNEL(ratplus_dilated_attention_any_##name##_128, ratplus::AttentionParams, 128, 4) { \
        ratplus::attention_any<T, 4>(p, ratplus::DilatedKeys(p, ratplus::block_kv_head(p)));                                  \
    }                                                                                              \
    RATPLUS_KERNEL(ratplus_dilated_attention_any_##name##_512, ratplus::AttentionParams, 128, 4) { \
        ratplus::attention_any<T, 16>(p, ratplus::DilatedKeys(p, ratplus::block_kv_head(p)));                                 \
    }

RATPLUS_ANY(float, f32)
RATPLUS_ANY(ratplus::bf16, bf16)
RATPLUS_ANY(ratplus::f16, f16)
