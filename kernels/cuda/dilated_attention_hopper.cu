// DilatedAttention of a chunk in tiles.
// Only for sm_90a.
#include "attention_hopper.cuh"
#include "dilated_keys.cuh"

#define RATPLUS_HOPPER(T, name, dim)                                                                          \
    RATPLUS_KERNEL(ratplus_dilated_attention_hopper_##name##_##dim, ratplus::AttentionParams, 384, 1) {       \
        ratplus::attention_hopper<T, ratplus::Shape<dim, 2, 128>>(p, ratplus::DilatedKeys(p, ratplus::block_kv_head(p)));                \
    }                                                                                                         \
    RATPLUS_KERNEL(ratplus_dilated_attention_hopper_short_##name##_##dim, ratplus::AttentionParams, 256, 2) { \
        ratplus::attention_hopper<T, ratplus::Shape<dim, 1, 64>>(p, ratplus::DilatedKeys(p, ratplus::block_kv_head(p)));                 \
    }

RATPLUS_HOPPER(ratplus::bf16, bf16, 64)
RATPLUS_HOPPER(ratplus::bf16, bf16, 128)
RATPLUS_HOPPER(ratplus::f16, f16, 64)
RATPLUS_HOPPER(ratplus::f16, f16, 128)
