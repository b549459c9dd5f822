"""Which shapes are checked, and which are measured with whom."""

from dataclasses import replace

from operators.dilated_attention import Pattern

from problem import Shape

HEAD_DIM = 128
DENSE = Pattern(1, 0, 0)
PATTERNS = [DENSE, Pattern(4, 0, 4), Pattern(16, 0, 4), Pattern(16, 256, 4), Pattern(64, 0, 4), Pattern(64, 256, 4)]
LENGTHS = [4096, 8192, 16384, 65536, 262144]

CHAIN = [
    "ours", "function body", "Flex, mask made before", "Flex, mask made each time", "SDPA on gathered keys by residue",
    "SDPA on gathered keys, blocks of 64", "SDPA on gathered keys, blocks of 256", "SDPA, boolean mask",
]  # fmt: skip
DENSE_PEERS = ["ours", "SDPA, causal", "ORT MultiHeadAttention", "ORT GroupQueryAttention"]


def checks():
    """(shape, whether those that are slow to compile take part); lengths are no multiple of a dilation or a
    block."""
    windowed, hybrid = Pattern(16, 20, 4), (Pattern(16, 20, 4), Pattern(4, 0, 2))
    every = [DENSE, Pattern(16, 0, 4), windowed, Pattern(64, 30, 4)]
    rest = [Pattern(4, 0, 4), Pattern(64, 0, 4), Pattern(3, 5, 2)]
    made = [(Shape("scan", 2, HEAD_DIM, 203), True)]
    for part in ("attention", "decode"):
        patterns = every + (rest if part == "attention" else rest[-1:])
        made += [(Shape(part, 2, HEAD_DIM, 203, (pattern,)), pattern in every) for pattern in patterns]
        made.append((Shape(part, 2, HEAD_DIM, 300, (Pattern(16, 256, 4),)), True))
        made.append((Shape(part, 2, HEAD_DIM, 203, hybrid), True))
    for patterns in [(DENSE,), (Pattern(16, 0, 4),), (windowed,), hybrid]:
        made.append((Shape("chain", 2, HEAD_DIM, 203, patterns), patterns == (windowed,)))
    return made


def both(shape):
    """The same problem in f32 and in bf16."""
    return [shape, replace(shape, dtype="bf16")]


def must():
    """(shape, names of contenders; None for all), in the order of measuring."""
    sparse, windowed, sparser = Pattern(16, 0, 4), Pattern(16, 256, 4), Pattern(64, 0, 4)
    jobs = [(Shape("scan", 16, HEAD_DIM, 4096), None)]
    jobs.append((Shape("chain", 16, HEAD_DIM, 4096, (sparse,)), CHAIN))
    for seq_len in (4096, 16384):
        for pattern in (DENSE, sparse, windowed, sparser):
            peers = DENSE_PEERS if pattern == DENSE else ["ours"]
            jobs += [(shape, peers) for shape in both(Shape("attention", 16, HEAD_DIM, seq_len, (pattern,)))]
    for pattern in (DENSE, sparse, sparser):
        jobs += [(shape, None) for shape in both(Shape("decode", 16, HEAD_DIM, 65536, (pattern,)))]
    jobs += [(shape, None) for shape in both(Shape("scan", 16, HEAD_DIM, 65536))]
    # The longest last: others do not wait for it.
    jobs.append((Shape("chain", 16, HEAD_DIM, 16384, (windowed,)), CHAIN))
    return jobs


def full():
    """Every named shape with everyone, the cheap ones first; what must answers comes before."""
    jobs = must()
    for seq_len in LENGTHS:
        for heads in (16, 32):
            jobs += [(shape, None) for shape in both(Shape("scan", heads, HEAD_DIM, seq_len))]
            for part in ("decode", "attention", "chain"):
                for pattern in reversed(PATTERNS):
                    jobs += [(shape, None) for shape in both(Shape(part, heads, HEAD_DIM, seq_len, (pattern,)))]
    return jobs


def tiny():
    """One of each kind, for tests."""
    patterns = [DENSE, Pattern(16, 0, 4), Pattern(16, 24, 4)]
    jobs = [(shape, None) for shape in both(Shape("scan", 2, HEAD_DIM, 96))]
    for part in ("attention", "chain", "decode"):
        for pattern in patterns:
            jobs += [(shape, None) for shape in both(Shape(part, 2, HEAD_DIM, 96, (pattern,)))]
    return jobs


def suite(name):
    return {"must": must, "full": full, "tiny": tiny}[name]()
