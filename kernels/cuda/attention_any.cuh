// Attention of any number of tokens for any head_dim: a block a query, a warp every fourth key.
// The chunk's kept rows have been written before. For the shapes that no faster kernel takes.
#pragma once
#include "attention.cuh"

namespace ratplus {

constexpr i32 ANY_WARPS = 4;

// Up to 32 * EACH channels; channel d lies with lane d % 32.
template <typename T, i32 EACH, class Keys>
RATPLUS_DEVICE void attention_any(const AttentionParams& p, const Keys& set) {
    const Slot s = read_slot(p.lengths, block_z(), block_x() == 0 && block_y() == 0 && thread_index() == 0);
    const HeadTensors<T> at(p, block_z(), block_kv_head(p), block_member(p));
    const i32 dim = p.head_dim;
    const i32 half = dim / 2;
    const i32 token = static_cast<i32>(block_x());
    T* const output = at.output + token * at.query_stride;
    if (token >= s.tokens) {
        for (i32 d = static_cast<i32>(thread_index()); d < dim; d += ANY_WARPS * static_cast<i32>(WARP)) {
            output[d] = narrow<T>(0.0f);
        }
        return;
    }
    const i32 past = static_cast<i32>(s.past);
    const i32 query = past + token;
    const i32 lane = static_cast<i32>(thread_index() % WARP);
    const i32 warp = static_cast<i32>(thread_index() / WARP);
    const float scale = p.scale * LOG2_E;
    const float* const cos = p.cos + static_cast<i64>(query) * half;
    const float* const sin = p.sin + static_cast<i64>(query) * half;

    float q[EACH], sum[EACH];
    float self_score = 0.0f;
    RATPLUS_UNROLL
    for (i32 e = 0; e < EACH; ++e) {
        const i32 d = lane + e * static_cast<i32>(WARP);
        q[e] = 0.0f;
        sum[e] = 0.0f;
        if (d < dim) {
            const i32 pair = d < half ? d : d - half;
            const auto turned = [&](const T* row) {
                const float x = widen(row[pair]);
                const float y = widen(row[pair + half]);
                return d < half ? rotate_low(x, y, cos[pair], sin[pair]) : rotate_high(x, y, cos[pair], sin[pair]);
            };
            q[e] = turned(at.query + token * at.query_stride) * scale;
            self_score += q[e] * rounded<T>(turned(at.key + token * at.token_stride));
        }
    }
    const auto sum_lanes = [](float x) {
        RATPLUS_UNROLL
        for (u32 mask = 16; mask > 0; mask /= 2) {
            x += shuffle_xor(x, mask);
        }
        return x;
    };
    self_score = sum_lanes(self_score);
    float top = LOWEST;
    float total = 0.0f;
    const auto add = [&](float score, const T* value) {
        const float next = larger(top, score);
        const float keep = exp2_fast(top - next);
        const float weight = exp2_fast(score - next);
        RATPLUS_UNROLL
        for (i32 e = 0; e < EACH; ++e) {
            const i32 d = lane + e * static_cast<i32>(WARP);
            sum[e] = fma(weight, d < dim ? widen(value[d]) : 0.0f, sum[e] * keep);
        }
        total = fma(total, keep, weight);
        top = next;
    };
    if (warp == 0) {
        add(self_score, at.value + token * at.token_stride);
    }
    const auto keys = set.of(query);
    for (i32 i = warp; i < keys.count; i += ANY_WARPS) {
        const T* key;
        const T* value;
        const i32 other = keys.token(i, past);
        if (other >= 0) {
            key = at.rotated + static_cast<i64>(other) * dim;
            value = at.value + other * at.token_stride;
        } else {
            const i64 row = keys.row(i);
            key = at.cache_key + row * dim;
            value = at.cache_value + row * dim;
        }
        float score = 0.0f;
        RATPLUS_UNROLL
        for (i32 e = 0; e < EACH; ++e) {
            const i32 d = lane + e * static_cast<i32>(WARP);
            score += d < dim ? q[e] * widen(key[d]) : 0.0f;
        }
        add(sum_lanes(score), value);
    }
    // [warps] maxima, [warps] totals, [warps][dim] sums.
    float* const shared = reinterpret_cast<float*>(shared_memory());
    if (lane == 0) {
        shared[warp] = top;
        shared[ANY_WARPS + warp] = total;
    }
    float* const sums = shared + 2 * ANY_WARPS;
    RATPLUS_UNROLL
    for (i32 e = 0; e < EACH; ++e) {
        const i32 d = lane + e * static_cast<i32>(WARP);
        if (d < dim) {
            sums[warp * dim + d] = sum[e];
        }
    }
    block_barrier();
    float highest = shared[0];
    for (i32 w = 1; w < ANY_WARPS; ++w) {
        highest = larger(highest, shared[w]);
    }
    for (i32 d = static_cast<i32>(thread_index()); d < dim; d += ANY_WARPS * static_cast<i32>(WARP)) {
        float above = 0.0f;
        float below = 0.0f;
        for (i32 w = 0; w < ANY_WARPS; ++w) {
            const float share = exp2_fast(shared[w] - highest);
            above = fma(share, sums[w * dim + d], above);
            below = fma(share, shared[ANY_WARPS + w], below);
        }
        output[d] = narrow<T>(divide(above, below));
    }
}

}  // namespace ratplus
