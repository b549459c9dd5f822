// DilatedAttention of a chunk in tiles.
#include "attention_prefill.cuh"
#include "dilated_keys.cuh"

#define RATPLUS_PREFILL(T, name, dim, warps, bands)                                                             \
    RATPLUS_KERNEL(ratplus_dilated_attention_prefill_##name##_##dim, ratplus::AttentionParams, 32 * warps,      \
                   8 / warps) {                                                                                 \
        ratplus::attention_prefill<T, dim, warps, bands>(p, ratplus::DilatedKeys(p, ratplus::block_kv_head(p)));                           \
    }                                                                                                           \
    RATPLUS_KERNEL(ratplus_dilated_attention_prefill_short_##name##_##dim, ratplus::AttentionParams, 128, 2) {  \
        ratplus::attention_prefill<T, dim, 4, 1>(p, ratplus::DilatedKeys(p, ratplus::block_kv_head(p)));                                   \
    }

RATPLUS_PREFILL(ratplus::bf16, bf16, 64, 4, 2)
RATPLUS_PREFILL(ratplus::bf16, bf16, 128, 8, 1)
RATPLUS_PREFILL(ratplus::f16, f16, 64, 4, 2)
RATPLUS_PREFILL(ratplus::f16, f16, 128, 8, 1)
