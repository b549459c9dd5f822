#!/usr/bin/env python3
"""Writes the part of cpu.md that is about grouped heads and heads that choose blocks, from what benches/cpu/peers.py
wrote of the suite `heads`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))
from report import DENSE, FLEX, HEADS, ORT_DENSE, PAGE, Data, about, checks_section, compared, disturbed  # noqa: E402
from report import limits_table, main, missing, of_limit, part_section, parts_of, seen_keys, table, write_parts  # noqa: E402

READING = """\
`cargo xtask peers --suite heads` measures this part, which the other suites leave as it is. `16/4x128` are 16 query
heads of 128 channels with 4 key-value heads; `S=64 K=16` is BlockTopKAttention: of blocks of 64 keys a query sees its
own and the 15 that it scores highest. Everything else is as above, and:

- A decode step that chooses reads the summaries of all blocks (f32, whatever the cache is) and the rows of the chosen
  ones: these are its bytes. It is timed over as many sets of summaries as make the bytes of dense attention, one after
  the other over one cache, so that no choice stays close to the core. Numbers are random, so that query heads choose
  apart from one another, and neighbouring queries of a prompt too: what makes a block be read once for many queries is
  at its least.
- Summaries come as fast as memory gives them, rows of a bf16 cache do not: in a loop of its own with the same products,
  blocks of 64 rows in no order came at 25 to 30 GB/s, whatever fetched them ahead and however many rows at a time, and at
  32 where they were read alone (an EPYC with AVX2, 2026-11-30). Means have half the summaries, so that it shows there.
- What a prompt chooses by is no useful FLOP: only both products of the visible pairs are. Its time for as many pairs
  as another one's is that of rates: both times are divided by their pairs.
- `Flex` is given the choice as its mask, in blocks as long as those chosen; the time in which choice and mask are made
  stands in the row, or is counted in. `SDPA on gathered blocks` scores, sorts and gathers within its time; of a decode
  step its summaries are there before, of a prompt they are not.
- Contenders are compared at queries drawn so that the last block chosen leads the next by a tenth of the deviation of
  the scores: no rounding of theirs chooses another.
"""


def about_as_many_pairs(data, row):
    """The row of ours, of one pattern a head, that is nearest by its pairs to one that chooses; else None."""
    same = ("part", "contender", "seq_len", "dtype", "heads", "head_dim", "kv_heads")
    found = [other for other in data.rows if all(other[name] == row[name] for name in same) and not other["blocks"]]
    return min(found, key=lambda other: abs(other["flops"] - row["flops"]), default=None)


def per_pair(data, row, other):
    """A row's time over another's for as many visible pairs, in words."""
    for each in (row, other):
        if each is None or "median_ms" not in each:
            return missing(each)
    ratio, pairs = data.rate(other) / data.rate(row), row["flops"] / other["flops"]
    detail = f"{row['median_ms']:.4g} ms, and {other['median_ms']:.4g} ms with {seen_keys(other)}; {pairs:.2f} times as many pairs"
    return f"**{ratio:.2f}** ({detail}{disturbed(row, other)})"


def goals(data):
    """The questions that the suite heads answers."""
    rows, step, half = [], ("decode", 65536), ("f32", "bf16")
    ours = lambda *shape, **more: data.find(["ours"], *shape, **more)  # noqa: E731
    for dtype in half:
        alone, grouped = (ours(*step, DENSE, dtype=dtype, kv_heads=kv_heads) for kv_heads in (16, 4))
        name = f"decode, T=65536 D=1, {dtype}"
        rows.append([f"{name}: 4 key-value heads over 16", "at most 0.35", compared(grouped, alone)])
        rows.append([f"{name}: 4 key-value heads, of read bandwidth", "0.8", of_limit(data, grouped)])
    grouped = ours(*step, DENSE, kv_heads=4)
    for peer in ("SDPA on the visible rows", "Flex on the visible rows"):
        found = compared(data.find([peer], *step, DENSE, kv_heads=4), grouped)
        rows.append([f"decode, T=65536 D=1, f32, 4 key-value heads: {peer}, over ours", "above 1", found])
    for score in ("bounds", "mean"):
        for dtype in half:
            chosen = ours(*step, None, dtype=dtype, blocks=[64, 16, score])
            name = f"decode, T=65536 S=64 K=16 {score}, {dtype}"
            rows.append([f"{name}: summaries and chosen rows, of read bandwidth", "0.8", of_limit(data, chosen)])
            rows.append([f"{name}: over dense", "at most 0.125", compared(chosen, ours(*step, DENSE, dtype=dtype))])
        chosen = ours(*step, None, blocks=[64, 16, score])
        found = compared(data.find(["SDPA on gathered blocks"], *step, None, blocks=[64, 16, score]), chosen)
        rows.append([f"decode, T=65536 S=64 K=16 {score}, f32: SDPA on gathered blocks, over ours", "above 1", found])
    for pattern in (DENSE, [16, 0, 4]):
        for dtype in half:
            for kv_heads in (16, 4):
                name = f"attention, T=4096 D={pattern[0]}, {dtype}, {kv_heads} key-value heads"
                found = of_limit(data, ours("attention", 4096, pattern, dtype=dtype, kv_heads=kv_heads))
                rows.append([f"{name}: useful FLOPs of the product's rate", "0.7" if dtype == "f32" else "", found])
        grouped = ours("attention", 4096, pattern, kv_heads=4)
        peers = [("Flex", FLEX)] + ([("dense causal SDPA", ["SDPA, causal"]), ("ONNX Runtime", ORT_DENSE)] if pattern == DENSE else [])
        for what, names in peers:
            found = compared(data.find(names, "attention", 4096, pattern, kv_heads=4), grouped)
            rows.append([f"attention, T=4096 D={pattern[0]}, f32, 4 key-value heads: {what}, over ours", "above 1", found])
    for score in ("bounds", "mean"):
        for dtype in half:
            chosen = ours("attention", 16384, None, dtype=dtype, blocks=[64, 16, score])
            found = per_pair(data, chosen, chosen and about_as_many_pairs(data, chosen))
            name = f"attention, T=16384 S=64 K=16 {score}, {dtype}"
            rows.append([f"{name}: time for as many pairs, over a dilation's", "at most 2", found])
    chosen = ours("attention", 16384, None, blocks=[64, 16, "bounds"])
    for peer in ("Flex, choice and mask made before", "Flex, choice and mask made each time", "SDPA on gathered blocks"):
        found = compared(data.find([peer], "attention", 16384, None, blocks=[64, 16, "bounds"]), chosen)
        rows.append([f"attention, T=16384 S=64 K=16 bounds, f32: {peer}, over ours", "above 1", found])
    return rows


def section(document):
    """What the page has of the suite heads."""
    data = Data(document)
    parts = [f"{HEADS}\n", about(document), table(["ratio", "goal", "found"], goals(data))]
    parts += ["### How to read the figures of heads\n\n" + READING, limits_table(document)]
    parts += [part_section(data, part, "###") for part in ("decode", "attention")]
    parts.append(checks_section(document, "###"))
    return "\n".join(part for part in parts if part)


def write(document, folder):
    """Writes the section in place of the page's earlier one."""
    if document["suite"] != "heads":
        raise ValueError(f"the suite `{document['suite']}`, not `heads`")
    kernels, _, model = parts_of(folder / PAGE)
    write_parts(folder / PAGE, [kernels, section(document), model])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], __doc__, "peers.py --suite heads", write))
