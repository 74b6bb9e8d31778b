#!/usr/bin/env python
"""Records what some 200 calls give, to hold one state of the code against another: bits, counts, costs and plans.

    python tools/record_calls.py before.json          # in the one checkout
    python tools/record_calls.py after.json           # in the other, on the same machine
    python tools/record_calls.py --compare before.json after.json

It goes by public names and by the operators' schemas alone, so that it runs on both. Every value is a hash or a number;
nothing depends on time. DYNROUTE_CPU_ISA chooses the instruction set, which is recorded too: bits are those of one
instruction set. `--quick` leaves the emulated GPU out, which takes most of the time.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["DYNROUTE_TUNING"] = "off"  # plans are the model's, whatever was measured here

import torch
from torch import Tensor
from tqdm import tqdm

import dynroute
from dynroute import ops, planner

SEED = 5
# Kernels and buffers that have other names in one of the two states: older name -> newer one.
RENAMED = {"begin": "init_call", "aggregate": "aggregate_route", "tail": "stage_paths"}
# Parameter structs of the CUDA kernels, field by field (csrc/cuda/kernels/params.h): what lies between fields is never
# written, and is left out of the hashes.
_MATRIX, _LEVEL, _ROW, _IO = "QQiiii", "QQQiii4x", "QQQ", "7Q"
_STAGE = f"Q{_MATRIX}8iQQiiQ"
_SEPCONV = f"Q{_ROW}{_LEVEL * 4}{_STAGE * 4}5i"
_DIVISOR = "Iii"
_CUT, _TILING = f"i{_DIVISOR}", f"4i{_DIVISOR * 3}"
PARAMETERS = {
    "init_call": f"{_IO}QQi4x{_ROW}ii",
    "stem_conv": f"Q{_MATRIX}Q5i{_DIVISOR * 2}",
    "stem_planes": f"Q{_MATRIX}Q6i{_DIVISOR * 3}",
    "stem_stages": f"5Q{_MATRIX * 2}5i{_DIVISOR * 2}",
    "sepconv": _SEPCONV,
    "cell": f"Q{_ROW}{_LEVEL * 4}8Q{_MATRIX * 8}3i",
    "aggregate_route": f"Q{_ROW * 2}{_LEVEL * 4}{_MATRIX * 4}12Q2Q5i{_TILING * 4}",
    "stage_paths": f"{_SEPCONV}4x{_MATRIX * 8}QQ{f'i{_CUT}' * 8}{_DIVISOR * 4}",
    "merge": f"Q{_ROW}{_LEVEL}i4xQ{_MATRIX}Qi{_CUT}{_DIVISOR * 2}",
    "predictor": f"QQ{_MATRIX}Q4i{_DIVISOR * 3}",
    "upsample": f"QQ6i{_DIVISOR * 2}",
}
NETWORKS: dict[str, dict[str, Any]] = {
    "tanh": {"layers": 5, "channels": 8},
    "small gate": {"layers": 6, "channels": 16, "small_gate": True},
    "sigmoid": {"layers": 4, "channels": 8, "gate": "sigmoid"},
    "softmax": {"layers": 4, "channels": 24, "gate": "softmax", "stem_width": 24},
    "fixed": {"layers": 4, "channels": 8, "gate": "fixed", "num_classes": 19},
    "sepconv1": {"layers": 5, "channels": 16, "cell": ("sepconv1",)},
    "sepconv3": {"layers": 5, "channels": 32, "cell": ("sepconv3",)},
    "wide": {"layers": 6, "channels": 64, "stem_width": 64, "num_classes": 19},
}
SIZES = ((64, 96), (70, 130), (128, 256))


def digest(*values: Any) -> str:
    """A short hash of tensors' shapes, types and bits, and of plain values."""
    state = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            state.update(f"{value.dtype} {list(value.shape)}".encode())
            flat = value.detach().contiguous().reshape(-1)
            state.update((flat.view(torch.uint8) if flat.numel() else flat).numpy().tobytes())
        else:
            state.update(value if isinstance(value, bytes) else repr(value).encode())
    return state.hexdigest()[:16]


def make_network(name: str) -> torch.nn.Module:
    """In evaluation mode; statistics and gates random, so that nodes open and close."""
    torch.manual_seed(SEED)
    net = dynroute.create_model("dynamic_tiny", **{"num_classes": 5, "stem_width": 16, **NETWORKS[name]})
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.6, 1.2)
            module.bias.data.normal_(0, 0.1)
    for gate in net.gates():
        if gate.activation != "fixed":
            gate.fc.bias.data.normal_(0, 0.6)
    return net.eval()


def make_images(n: int, height: int, width: int) -> Tensor:
    """[n,3,h,w] whose samples differ in contrast, and so in their routes."""
    g = torch.Generator().manual_seed(SEED)
    x = torch.randn(n, 3, height, width, generator=g)
    return x * (0.3 + 1.2 * torch.arange(n)).view(-1, 1, 1, 1) + torch.randn(n, 3, 1, 1, generator=g)


def make_gates(kind: str, net: Any, n: int) -> Tensor | None:
    """Alphas [n,L+1,4,3] to force: open, closed, mixed; None for the network's own."""
    shape = (n, net.config.layers + 1, 4, 3)
    g = torch.Generator().manual_seed(SEED)
    if kind == "open":
        return torch.ones(shape)
    if kind == "closed":
        return torch.zeros(shape)
    if kind == "mixed":  # alphas at the threshold among them
        node, path = torch.rand(*shape[:3], 1, generator=g) < 0.5, torch.rand(shape, generator=g) < 0.7
        alphas = torch.rand(shape, generator=g) * node * path
        return torch.where(torch.rand(shape, generator=g) < 0.05, 1e-4, alphas)
    return None


def of_run(out: Any) -> dict[str, Any]:
    """What a runtime returned."""
    return {
        "logits": digest(out.logits),
        "gates": digest(out.gates),
        "nodes": digest(out.executed_nodes),
        "macs": out.executed_macs.tolist(),
        "halo": out.halo_macs.tolist(),
        "expected": digest(out.expected_mflops),
        "real": digest(out.real_mflops),
    }


def record_runs(backend: str, cases: Iterator[tuple[str, torch.dtype, tuple[int, int], int, str, int]]) -> Iterator:
    """Runs of a backend: network, storage, size, batch, routes, threads."""
    kept: dict[tuple[str, torch.dtype], tuple[Any, Any]] = {}
    for name, storage, size, n, routes, threads in cases:
        if (name, storage) not in kept:
            net = make_network(name)
            kept[name, storage] = net, dynroute.optimize(net, backend, storage)
        net, run = kept[name, storage]
        torch.set_num_threads(threads)
        out = run(make_images(n, *size), make_gates(routes, net, n))
        torch.set_num_threads(1)
        label = f"{backend}: {name}, {storage}, {n}x{size[0]}x{size[1]}, {routes}, {threads} threads"
        yield label, of_run(out)


def cpu_cases() -> Iterator:
    types, own = (torch.float32, torch.bfloat16), ("own", "open", "mixed")
    for name, storage in itertools.product(NETWORKS, types):
        for (n, size), routes in itertools.product(((1, SIZES[0]), (3, SIZES[1])), own):
            yield name, storage, size, n, routes, 1
    for name, routes in itertools.product(("tanh", "wide"), ("own", "closed", "mixed")):
        yield name, torch.float32, SIZES[2], 4, routes, 2
    yield "tanh", torch.float32, SIZES[0], 0, "own", 1


def reference_cases() -> Iterator:
    for name, routes in itertools.product(NETWORKS, ("own", "mixed")):
        yield name, torch.float32, SIZES[1], 2, routes, 1


def emulated_cases() -> Iterator:
    types = (torch.float32, torch.float16, torch.bfloat16)
    for storage, routes in itertools.product(types, ("own", "mixed")):
        yield "tanh", storage, (32, 64), 2, routes, 1
        yield "sepconv3", storage, (64, 32), 1, routes, 1
    for name in ("small gate", "softmax", "fixed"):
        yield name, torch.float16, (128, 128) if name == "small gate" else (32, 32), 1, "own", 1


def record_models() -> Iterator:
    """The network in plain PyTorch: evaluation, and a training step's losses and gradients."""
    for name in NETWORKS:
        net = make_network(name)
        x = make_images(2, *SIZES[1])
        with torch.no_grad():
            out = net(x)
        yield (
            f"model: {name}",
            {
                "logits": digest(out.logits), "gates": digest(out.gates),
                "expected": digest(out.expected_mflops), "real": digest(out.real_mflops),
            },
        )  # fmt: skip
    for name, measure in itertools.product(("tanh", "small gate"), ("expected", "real")):
        net = make_network(name).train()
        labels = torch.randint(0, 5, (2, 64, 96), generator=torch.Generator().manual_seed(SEED))
        budget = dynroute.Budget(0.8, 0.1, measure=measure, bridge=0.5)
        losses = dynroute.objective(net, make_images(2, 64, 96), labels, 0.6, budget)
        sum(losses.values()).backward()
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        statistics = [b for b in net.buffers()]
        values = {key: digest(value) for key, value in losses.items()}
        yield f"step: {name}, {measure}", {**values, "gradients": digest(*gradients), "buffers": digest(*statistics)}


def record_costs() -> Iterator:
    for name, size in itertools.product(NETWORKS, ((512, 1024), (100, 37))):
        for published in (False, True):
            tables = make_network(name).costs(*size, published_decoder=published)
            yield (
                f"costs: {name}, {size}, published decoder {published}",
                {"tables": digest(tables.cell, tables.path, tables.gate, tables.stem, tables.decoder)},
            )
    for fixed in dynroute.routes.list_fixed():
        yield f"route: {fixed}", {"paths": digest(dynroute.routes.fixed(fixed, 16))}


def record_operators() -> Iterator:
    g = torch.Generator().manual_seed(SEED)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    for dtype, (c, h, w) in itertools.product((torch.float32, torch.float64), ((16, 19, 23), (64, 32, 40))):
        x = random(3, c, h, w).to(dtype)
        dw, pw = [random(c, 1, 3, 3).to(dtype) for _ in range(2)], [random(c, c, 1, 1).to(dtype) / c for _ in range(2)]
        scale, shift = [torch.rand(c, generator=g).to(dtype) + 0.5 for _ in range(2)], [random(c).to(dtype)] * 2
        mask = torch.tensor([True, False, True])
        label = f"{dtype}, 3x{c}x{h}x{w}"
        for backend in ("cpu", "reference"):
            done = {
                "cell": ops.sepconv(x, dw, pw, scale, shift, mask, residual=True, final_relu=True, backend=backend),
                "stage": ops.sepconv(x, dw[:1], pw[:1], scale[:1], shift[:1], stride=2, backend=backend),
                "up": ops.transform(x, pw[0], scale[0], shift[0], mask, backend=backend),
                "down": ops.transform(x, pw[0], scale[0], shift[0], stride=2, backend=backend),
            }
            fc, bias = random(3, c, 1, 1).to(dtype), random(3).to(dtype)
            for activation, small in (("tanh", False), ("softmax", True), ("sigmoid", True)):
                done[activation] = ops.gate(
                    x, pw[0], scale[0], shift[0], fc, bias, activation, small, mask, backend=backend
                )
            down, keep, up = x[..., :18, :22], random(3, c, 18, 22).to(dtype), random(3, c, 9, 11).to(dtype)
            alphas = torch.tensor([[0.3, 0.0, 0.9], [0.0, 0.0, 0.0], [1.0, 0.5, 0.25]], dtype=dtype)
            done["aggregate"] = ops.aggregate(down, keep, up, alphas, backend=backend)
            routed = ops.route(
                torch.where(random(5, 4, 3) > 0, 0.5, 1e-5).to(dtype), random(5, 4) > -1, random(4, 3) > -1,
                (random(5, 4) > 0).int(), backend=backend,
            )  # fmt: skip
            yield (
                f"operators: {backend}, {label}",
                {**{key: digest(value) for key, value in done.items()}, "route": digest(*routed)},
            )


def record_plans() -> Iterator:
    """Plans of sepconvs, and the CUDA network's buffers and launches."""
    shapes = itertools.product(((2, 64, 128, 256), (2, 512, 16, 32), (3, 128, 64, 128), (1, 16, 33, 47)), (1, 2))
    for (stages, c, h, w), threads in shapes:
        for staged, samples in ((True, 1), (False, 3)):
            found = planner.plan(stages, c, c, h, w, staged=staged, samples=samples, threads=threads)
            numbers = [found.fused, found.band_rows, found.step_rows, found.strip, found.tile_pixels]
            yield (
                f"plan: {stages} stages, {c} channels, {h}x{w}, staged {staged}, {samples} samples, {threads} threads",
                {"plan": numbers, "milliseconds": round(found.milliseconds, 9)},
            )
    a100, h100 = [80, 108, 163 << 10, 164 << 10], [90, 132, 227 << 10, 228 << 10]
    networks = ([16, 64, 64, 19, 0, 0, 2, 0], [6, 8, 16, 5, 2, 1, 3, 0], [5, 128, 64, 19, 3, 0, 2, 0])
    images = ([1, 512, 1024, 500, 1000], [3, 128, 160, 128, 160])
    for config, image, dtype, fusion, device in itertools.product(networks, images, range(3), range(3), (a100, h100)):
        if device is h100 and fusion == 1:
            continue
        label = f"cuda: {config}, {image}, type {dtype}, fusion {fusion}, {device[0]}"
        call = (config, image, dtype, fusion, device)
        names, places, workspace = torch.ops.dynroute.cuda_plan(*call)
        addresses = [(1 + i) << 32 for i in range(len(places))]
        table = torch.arange(((config[0] + 1) * 4 + 6) * 17).view(-1, 17) * 256
        try:
            launches, rows = torch.ops.dynroute.cuda_launches(*call, addresses, 1 << 40, table)
        except RuntimeError as error:
            yield label, {"error": " ".join(RENAMED.get(word, word) for word in str(error).split())}
            continue
        kernels, parameters = take_apart(launches.numpy().tobytes())
        yield (
            label,
            {
                "places": digest(places), "workspace": workspace, "kernels": digest(*kernels), "launches": len(kernels),
                "parameters": digest(*parameters), "rows": digest(rows), "names": digest(names),
            },
        )  # fmt: skip


def take_apart(data: bytes) -> tuple[list[tuple[Any, ...]], list[tuple[int, ...]]]:
    """Kernels with their launch shapes, and their parameters."""
    kernels, parameters, at = [], [], 0
    while at < len(data):
        name = data[at : at + 32].rstrip(b"\0").decode()
        blocks, threads, shared, size = struct.unpack_from("<4i", data, at + 32)
        name = RENAMED.get(name, name)
        kernels.append((name, blocks, threads, shared))
        fields = "<" + PARAMETERS[name]
        assert 0 <= size - struct.calcsize(fields) < 8, name
        parameters.append(struct.unpack_from(fields, data, at + 48))
        at += 48 + size
    return kernels, parameters


def record(quick: bool) -> dict[str, Any]:
    """All calls, by label."""
    torch.set_num_threads(1)
    parts = [record_plans(), record_costs(), record_operators(), record_models()]
    parts += [record_runs("cpu", cpu_cases()), record_runs("reference", reference_cases())]
    if not quick:
        parts.append(record_runs("cuda-emulated", emulated_cases()))
    isa = json.loads(torch.ops.dynroute.build_info())["isa"]
    calls: dict[str, Any] = {}
    for label, values in tqdm(itertools.chain(*parts), desc="record", unit="call"):
        assert label not in calls, label
        calls[label] = values
    return {"isa": isa, "torch": str(torch.__version__), "calls": calls}


def compare(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Prints what differs; returns the exit status."""
    for key in ("isa", "torch"):
        if before[key] != after[key]:
            print(f"{key}: {before[key]} and {after[key]}: bits may differ for that alone", file=sys.stderr)
    one, two = before["calls"], after["calls"]
    missing = sorted(set(one) ^ set(two))
    differing = {
        label: [key for key in one[label] if one[label][key] != two[label].get(key)]
        for label in one
        if label in two and one[label] != two[label]
    }
    for label in missing:
        print(f"only in one: {label}")
    for label, keys in differing.items():
        print(f"differs: {label}: {', '.join(keys)}")
    both = len(set(one) & set(two))
    print(f"{both} calls on {before['isa']} compared, {len(differing)} differ, {len(missing)} in one only")
    return 1 if differing or missing else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", metavar="FILE", help="record into this file")
    parser.add_argument("--compare", type=Path, nargs=2, metavar="FILE", help="compare two recordings")
    parser.add_argument("--quick", action="store_true", help="without the emulated GPU")
    args = parser.parse_args()
    if args.compare:
        return compare(*(json.loads(path.read_text()) for path in args.compare))
    if args.out is None:
        parser.error("wanted FILE to record into, or --compare")
    args.out.write_text(json.dumps(record(args.quick), indent=0) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
