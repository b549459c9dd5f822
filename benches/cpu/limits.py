"""What this machine can do at most: matrix products, copies and reads, each the best of several ways."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from machine import available_bytes, last_level_cache
from problem import aligned, filled

GIB = 1 << 30
# Rows of a product that is tried before a large one, and the seconds from which on that is left out.
PROBE, SLOW = 256, 20


def fastest(work, seconds=1.0):
    """Least seconds of one call: after a first one, at least 3 calls and `seconds`."""
    work()
    begin, best, runs = time.perf_counter(), float("inf"), 0
    while runs < 3 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
        runs += 1
    return best


class Limits:
    """Measures them; `torch` is the module, or None without it."""

    def __init__(self, torch, threads, small):
        self.torch, self.threads, self.seconds = torch, threads, 0.05 if small else 1.0
        self.size = 256 if small else 4096
        wanted = max(GIB, 4 * last_level_cache())
        self.bytes = 1 << 22 if small else int(min(wanted, available_bytes() // 6)) // 4096 * 4096

    def measure(self):
        """By name, the rate (FLOP/s or bytes/s), the way that reached it, and all ways."""
        measured = {}
        for name, ways, amount in self.all():
            rates = {way: amount / fastest(work, self.seconds) for way, work in ways.items()}
            if rates:
                best = max(rates, key=rates.get)
                measured[name] = {"rate": rates[best], "way": best, "ways": rates}
            else:
                measured[name] = {"reason": "needs torch, which is left out"}
        return measured

    def all(self):
        rng = np.random.default_rng(0)
        flops = 2 * self.size**3
        a, b = (filled(rng, (self.size, self.size), np.float32) for _ in range(2))
        ways = {"numpy.matmul": lambda: np.matmul(a, b)}
        halves = {}
        if self.torch:
            x, y = self.torch.from_numpy(a), self.torch.from_numpy(b)
            out = self.torch.empty_like(x)
            ways["torch.mm"] = lambda: self.torch.mm(x, y, out=out)
            half = [z.to(self.torch.bfloat16) for z in (x, y, x)]
            halves["torch.mm, widened"] = lambda: half[2].copy_(self.torch.mm(half[0].float(), half[1].float()))
            # Without instructions for it, a product in bf16 can take many minutes.
            probe = [z[:PROBE, :PROBE].contiguous() for z in half]
            once = fastest(lambda: self.torch.mm(probe[0], probe[1], out=probe[2]), 0)
            if once * (self.size / len(probe[0])) ** 3 < SLOW:
                halves["torch.mm"] = lambda: self.torch.mm(half[0], half[1], out=half[2])
        yield "gemm_f32", ways, flops
        yield "gemm_bf16", halves, flops
        source = filled(rng, (self.bytes // 4,), np.float32)
        target = aligned(source.shape, np.float32)
        with ThreadPoolExecutor(self.threads) as pool:
            parts = list(zip(np.array_split(target, self.threads), np.array_split(source, self.threads)))
            ways = {"numpy.copyto by threads": lambda: list(pool.map(lambda part: np.copyto(*part), parts))}
            reads = {"numpy.max by threads": lambda: list(pool.map(lambda part: part[1].max(), parts))}
            reads["numpy.sum by threads"] = lambda: list(pool.map(lambda part: part[1].sum(), parts))
            if self.torch:
                to, of = self.torch.from_numpy(target), self.torch.from_numpy(source)
                ways["torch.copy_"] = lambda: to.copy_(of)
                matrix, vector = of.view(-1, 1024), self.torch.ones(1024)
                reads["torch.sum"] = of.sum
                reads["torch.mv"] = lambda: self.torch.mv(matrix, vector)
            yield "copy", ways, 2 * self.bytes
            yield "read", reads, self.bytes
