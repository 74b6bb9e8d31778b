"""Each operator's CPU kernel against eager channels_last PyTorch on the same shapes, interleaved.

    python benchmarks/ops_vs_eager.py [--threads 2] [--channels 32 64] [--batch 1 8] [--rounds 15] [--json FILE]

A ratio is eager's median time over the kernel's; its spread is the quartiles of the ratios of neighbouring runs.
Above 1 the kernel is faster. Exits with status 1 if an operator is slower at C >= 32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dynroute import _native, ops

SHAPES = {16: (64, 128), 32: (64, 128), 64: (64, 128), 128: (32, 64), 256: (16, 32), 512: (8, 16)}


def folded(weight: Tensor, scale: Tensor) -> Tensor:
    """What an eager user would do once: scale into the weight."""
    return weight * scale.view(-1, 1, 1, 1)


def cases(n: int, c: int, h: int, w: int) -> Iterator[tuple[str, Callable[[], Tensor], Callable[[], Tensor]]]:
    """Name, the kernel, eager PyTorch (with scales folded beforehand, as its best)."""
    conv, relu = torch.nn.functional.conv2d, torch.relu
    x = torch.randn(n, c, h, w).contiguous(memory_format=torch.channels_last)
    small = torch.randn(n, c, h // 2, w // 2).contiguous(memory_format=torch.channels_last)
    dw = [torch.randn(c, 1, 3, 3) / 3 for _ in range(2)]
    pw = [torch.randn(c, c, 1, 1) / c**0.5 for _ in range(2)]
    scale, shift = [torch.rand(c) + 0.5] * 2, [torch.randn(c)] * 2
    cell = [folded(p, s).to(memory_format=torch.channels_last) for p, s in zip(pw, scale)]

    def eager_cell() -> Tensor:
        y = relu(conv(conv(x, dw[0], padding=1, groups=c), cell[0], shift[0]))
        y = conv(conv(y, dw[1], padding=1, groups=c), cell[1], shift[1])
        return relu(y + x)

    yield "sepconv x2", lambda: ops.sepconv(x, dw, pw, scale, shift, None, 1, True, True, backend="cpu"), eager_cell

    def eager_stage() -> Tensor:
        return relu(conv(conv(x, dw[0], padding=1, groups=c, stride=2), cell[0], shift[0]))

    def stage() -> Tensor:
        return ops.sepconv(x, dw[:1], pw[:1], scale[:1], shift[:1], None, 2, False, True, backend="cpu")

    yield "sepconv s2", stage, eager_stage

    for name, out, stride in (("transform up", c // 2, 1), ("transform down", 2 * c, 2)):
        weight, s, b = torch.randn(out, c, 1, 1) / c**0.5, torch.rand(out) + 0.5, torch.randn(out)
        ready = folded(weight, s)
        yield (
            name,
            lambda weight=weight, s=s, b=b, stride=stride: ops.transform(x, weight, s, b, None, stride, backend="cpu"),
            lambda ready=ready, b=b, stride=stride: relu(conv(relu(x), ready, b, stride)),
        )

    weight, s, b = torch.randn(c // 2, c, 1, 1) / c**0.5, torch.rand(c // 2) + 0.5, torch.randn(c // 2)
    ready = folded(weight, s)
    fc_weight, fc_bias = torch.randn(3, c // 2, 1, 1), torch.randn(3)

    def eager_gate(x: Tensor = x) -> Tensor:
        pooled = relu(conv(x, ready, b)).mean((2, 3), keepdim=True)
        return conv(pooled, fc_weight, fc_bias).tanh().relu()

    def eager_small_gate() -> Tensor:
        return eager_gate(
            torch.nn.functional.interpolate(x, scale_factor=0.25, mode="bilinear", recompute_scale_factor=False)
        )

    yield "gate", lambda: ops.gate(x, weight, s, b, fc_weight, fc_bias, backend="cpu"), eager_gate
    small_gate = lambda: ops.gate(x, weight, s, b, fc_weight, fc_bias, small=True, backend="cpu")  # noqa: E731
    yield "gate small", small_gate, eager_small_gate

    alphas = torch.rand(n, 3) + 0.1
    columns = [alphas[:, p].view(-1, 1, 1, 1) for p in range(3)]

    def eager_aggregate() -> Tensor:
        up = torch.nn.functional.interpolate(small, scale_factor=2, mode="bilinear")
        return columns[2] * x + columns[1] * x + columns[0] * up

    yield "aggregate", lambda: ops.aggregate(x, x, small, alphas, backend="cpu"), eager_aggregate


def measure(kernel: Callable[[], Tensor], eager: Callable[[], Tensor], rounds: int) -> dict[str, float]:
    """Interleaved times of both, in milliseconds, each sample long enough to be told from the clock."""

    def once(run: Callable[[], Tensor], repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - start) / repeats * 1e3

    for run in (kernel, eager):
        once(run, 2)
    repeats = max(1, int(4 / max(once(kernel, 1), 0.01)))
    pairs = [(once(kernel, repeats), once(eager, repeats)) for _ in range(rounds)]
    ours, theirs = (statistics.median(p[i] for p in pairs) for i in range(2))
    low, _, high = statistics.quantiles([b / a for a, b in pairs], n=4)
    return {"kernel_ms": ours, "eager_ms": theirs, "ratio": theirs / ours, "low": low, "high": high}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64, 128, 256, 512], choices=list(SHAPES))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="operators whose name contains this")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    results = []
    with torch.inference_mode():
        for c in args.channels:
            for n in args.batch:
                for name, kernel, eager in cases(n, c, *SHAPES[c]):
                    if args.only not in name:
                        continue
                    result = {"op": name, "n": n, "c": c, "size": SHAPES[c], **measure(kernel, eager, args.rounds)}
                    results.append(result)
                    print(
                        f"{name:15} N={n} C={c:<4} {result['kernel_ms']:8.3f} ms  eager {result['eager_ms']:8.3f} ms"
                        f"  ratio {result['ratio']:.2f} ({result['low']:.2f} to {result['high']:.2f})",
                        flush=True,
                    )
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"threads": args.threads, "build": _native.build_info(), "results": results}, file, indent=1)
    slower = [r for r in results if r["c"] >= 32 and r["ratio"] < 1]
    for r in slower:
        print(f"slower than eager: {r['op']} N={r['n']} C={r['c']}: {r['ratio']:.2f}", file=sys.stderr)
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
