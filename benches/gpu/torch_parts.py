"""What the peers on every device are made of: the mask, rotary embedding, and the recurrence as PyTorch's
`associative_scan`."""

import torch
from torch._higher_order_ops.associative_scan import associative_scan


def visible(pattern):
    """The mask of a pattern (D > 0, W, I), as FlexAttention takes it."""
    dilation, window, initial = pattern

    def mask(_batch, _head, query, key):
        seen = ((key + 1) % dilation == 0) | (query - key <= window) | (key < initial)
        return (key <= query) & seen

    return mask


def rotate(x, cos, sin):
    """Half-split rotary embedding."""
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


def gated_scan(gates, inputs, dim, mode):
    """`h_t = gates_t * h_{t-1} + (1 - gates_t) * inputs_t` along `dim`, from 0."""

    def combine(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    _, state = associative_scan(combine, (gates, (1 - gates) * inputs), dim=dim, combine_mode=mode)
    return state
