// The keys that a query of BlockTopKAttention sees, in an order of their own: those of the chosen blocks, of its
// own block, and candidates, of which those are seen that lie in no chosen block: the initial positions, the
// dilated ones between them and the window, and the window.
#pragma once
#include "block_top_k.cuh"

namespace ratplus {

struct BlockKeys {
    // From the lowest on; not read where all earlier blocks are chosen, or none.
    const i32* chosen;
    i32 most_chosen;
    i32 block_size;
    i32 dilation;
    // First position of the query's own block.
    i32 own_start;
    // Counts from here: the end of each run of keys.
    i32 chosen_end;
    i32 own_end;
    i32 initial_end;
    i32 dilated_end;
    i32 count;
    // The dilated tokens before the first candidate of them.
    i32 dilated_first;
    // First position of the window.
    i32 window_start;

    // Of a query head's token at position `query`.
    RATPLUS_DEVICE BlockKeys(const BlockTopKParams& p, u32 slot, i32 head, i32 token, i32 query)
        : chosen(nullptr), most_chosen(p.most_chosen), block_size(p.block_size), dilation(p.dilation) {
        const i32 own = query / block_size;
        own_start = own * block_size;
        chosen_end = own_start;
        i32 initial = own_start;
        if (own > most_chosen) {
            chosen = p.chosen + query_index(p, slot, head, token, p.lengths.seq_len) * most_chosen;
            chosen_end = most_chosen * block_size;
            initial = minimum(p.initial, own_start);
        }
        own_end = chosen_end + query - own_start + 1;
        if (all_chosen()) {
            initial_end = dilated_end = count = own_end;
            dilated_first = 0;
            window_start = own_start;
            return;
        }
        window_start = maximum(minimum(query - p.window, own_start), initial);
        initial_end = own_end + initial;
        dilated_first = below(initial);
        dilated_end = initial_end + below(window_start) - dilated_first;
        count = dilated_end + own_start - window_start;
    }

    // Position of key `index`, negative where it is a candidate in a chosen block.
    RATPLUS_DEVICE i32 position(i32 index) const {
        if (index < chosen_end) {
            if (all_chosen()) {
                return index;
            }
            const i32 nth = index / block_size;
            return chosen[nth] * block_size + index - nth * block_size;
        }
        if (index < own_end) {
            return own_start + index - chosen_end;
        }
        i32 candidate;
        if (index < initial_end) {
            candidate = index - own_end;
        } else if (index < dilated_end) {
            candidate = (dilated_first + index - initial_end + 1) * dilation - 1;
        } else {
            candidate = window_start + index - dilated_end;
        }
        return is_chosen(candidate / block_size) ? -1 : candidate;
    }

   private:
    // Fewer blocks end before the query's own.
    RATPLUS_DEVICE bool all_chosen() const { return chosen_end == own_start; }

    // The dilated tokens below a position.
    RATPLUS_DEVICE i32 below(i32 position) const { return dilation > 0 ? position / dilation : 0; }

    RATPLUS_DEVICE bool is_chosen(i32 block) const {
        i32 low = 0;
        i32 high = most_chosen;
        while (low < high) {
            const i32 middle = low + (high - low) / 2;
            if (chosen[middle] < block) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        return low < most_chosen && chosen[low] == block;
    }
};

}  // namespace ratplus
