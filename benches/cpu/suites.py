"""Which shapes are checked, and which are measured with whom."""

from dataclasses import replace

from operators.dilated_attention import Pattern

from choices import Blocks
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
GROUPED_PEERS = ["ours", "SDPA, causal", "ORT GroupQueryAttention", "Flex, mask made before"]
STEP_PEERS = ["ours", "SDPA on the visible rows", "Flex on the visible rows", "SDPA on gathered blocks"]
GROUP = 4


def checks(name):
    """Of a suite: (shape, whether those that are slow to compile take part); lengths are no multiple of a dilation
    or a block."""
    plain = [] if name == "heads" else plain_checks()
    return plain + (head_checks() if name in ("heads", "tiny") else [])


def plain_checks():
    """One pattern a head, a key-value head a query head."""
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


def head_checks():
    """Grouped heads, and heads that choose blocks."""
    sparse, windowed = Pattern(16, 0, 4), Pattern(16, 20, 4)
    made = []
    for part in ("attention", "decode"):
        for patterns in [(DENSE,), (sparse,), (windowed, Pattern(4, 0, 2))]:
            shape = Shape(part, GROUP * len(patterns), HEAD_DIM, 139, patterns, group=GROUP)
            made.append((shape, len(patterns) == 1))
        for blocks in [Blocks(8, 5, "bounds"), Blocks(8, 5, "mean"), Blocks(64, 3, "bounds")]:
            length = 139 if blocks.size == 8 else 270
            made.append((Shape(part, 2, HEAD_DIM, length, blocks=blocks), blocks.score == "bounds"))
        made.append((Shape(part, GROUP, HEAD_DIM, 139, blocks=Blocks(8, 5, "bounds"), group=GROUP), False))
    made.append((Shape("chain", 2, HEAD_DIM, 139, blocks=Blocks(8, 5, "bounds")), False))
    made.append((Shape("chain", GROUP, HEAD_DIM, 139, (windowed,), group=GROUP), True))
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


def heads():
    """Grouped heads next to heads of their own, and heads that choose blocks next to those that do not; rows that
    are compared come one after the other."""
    jobs, sparse = [], Pattern(16, 0, 4)
    for dtype in ("f32", "bf16"):
        step = lambda **more: Shape("decode", 16, HEAD_DIM, 65536, dtype=dtype, **more)  # noqa: B023, E731
        steps = [step(patterns=(DENSE,), group=GROUP), step(patterns=(DENSE,))]
        steps += [step(blocks=Blocks(64, 16, score)) for score in ("bounds", "mean")]
        jobs += [(shape, STEP_PEERS) for shape in steps]
    for pattern in (DENSE, sparse):
        for dtype in ("f32", "bf16"):
            for group in (1, GROUP):
                shape = Shape("attention", 16, HEAD_DIM, 4096, (pattern,), dtype, group)
                jobs.append((shape, GROUPED_PEERS))
    chosen = Shape("attention", 16, HEAD_DIM, 16384, blocks=Blocks(64, 16, "bounds"))
    alike = replace(chosen, patterns=(as_many_pairs(chosen),), blocks=None)
    for dtype in ("f32", "bf16"):
        for score in ("bounds", "mean"):
            jobs.append((replace(chosen, blocks=Blocks(64, 16, score), dtype=dtype), ["ours"]))
        jobs.append((replace(alike, dtype=dtype), ["ours"]))
    # The longest last: others do not wait for it.
    jobs.append((chosen, None))
    return jobs


def as_many_pairs(shape):
    """The pattern without a window that shows about as many keys as a problem's blocks."""
    pairs = lambda pattern: replace(shape, patterns=(pattern,), blocks=None).pairs()  # noqa: E731
    patterns = [Pattern(dilation, 0, 4) for dilation in range(1, 65)]
    return min(patterns, key=lambda pattern: abs(pairs(pattern) - shape.pairs()))


def tiny():
    """One of each kind, for tests."""
    patterns = [DENSE, Pattern(16, 0, 4), Pattern(16, 24, 4)]
    jobs = [(shape, None) for shape in both(Shape("scan", 2, HEAD_DIM, 96))]
    for part in ("attention", "chain", "decode"):
        for pattern in patterns:
            jobs += [(shape, None) for shape in both(Shape(part, 2, HEAD_DIM, 96, (pattern,)))]
    for part in ("attention", "decode"):
        jobs += [(shape, None) for shape in both(Shape(part, 4, HEAD_DIM, 96, (DENSE,), group=2))]
        jobs += [(shape, None) for shape in both(Shape(part, 2, HEAD_DIM, 96, blocks=Blocks(8, 3, "bounds")))]
    return jobs


def suite(name):
    return {"must": must, "full": full, "heads": heads, "tiny": tiny}[name]()
