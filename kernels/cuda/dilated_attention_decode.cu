// DilatedAttention of one token a sequence.
#include "attention_decode.cuh"
#include "dilated_keys.cuh"

#define RATPLUS_DECODE(T, name)                                                                       \
    RATPLUS_KERNEL(ratplus_dilated_attention_decode_##name##_64, ratplus::AttentionParams, 128, 6) {  \
        ratplus::attention_decode<T, 64>(p, ratplus::DilatedKeys(p, ratplus::block_kv_head(p)));                                 \
    }                                                                                                 \
    RATPLUS_KERNEL(ratplus_dilated_attention_decode_##name##_128, ratplus::AttentionParams, 128, 6) { \
        ratplus::attention_decode<T, 128>(p, ratplus::DilatedKeys(p, ratplus::block_kv_head(p)));                                \
    }

RATPLUS_DECODE(float, f32)
RATPLUS_DECODE(ratplus::bf16, bf16)
RATPLUS_DECODE(ratplus::f16, f16)
