"""What nvcc and ptxas make of the CUDA kernels, read from their reports and from SASS.  No GPU is needed."""

from __future__ import annotations

import re
import shutil

import pytest
import torch

from benchmarks.cuda_code import ARCHITECTURES, DEVICES, Kernel, compile_all, cuobjdump, sources
from benchmarks.cuda_static import launches

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc was not found")
needs_sass = pytest.mark.skipif(cuobjdump() is None, reason="cuobjdump was not found")
PRODUCTS = (
    "stem_conv", "stem_planes", "stem_stages", "sepconv", "cell", "aggregate_route", "stage_paths", "merge",
    "predictor", "train_forward", "train_product", "train_outer",
)  # fmt: skip
# 16 bytes at a time wherever maps are moved; stem_conv and stem_planes read planes of floats, at any address
TRAINING = ("train_forward", "train_product", "train_hidden", "train_apply")
MAPS_READ = (
    "stem_stages", "sepconv", "cell", "aggregate_route", "stage_paths", "merge", "predictor", *TRAINING, "train_outer",
    "train_sums",
)  # fmt: skip
GLOBAL = r"(LD|LDG|LDGSTS|ST|STG|ATOM|ATOMG|RED|REDG|UBLKCP|CCTL)\b"  # accesses of memory outside the block
ELSEWHERE = r"(BRA|BRX|JMP|CALL|RET|EXIT|WARPSYNC|BAR)\b"
MAPS_WRITTEN = (
    "stem_conv", "stem_planes", "stem_stages", "sepconv", "cell", "aggregate_route", "stage_paths", "merge", "upsample",
    *TRAINING,
)  # fmt: skip


def kernels(*names: str) -> list[Kernel]:
    found = [kernel for kernel in compile_all() if not names or kernel.name.rpartition("_")[0] in names]
    assert found, names
    return found


def test_every_kernel_is_there_in_every_type() -> None:
    names = {kernel.name.rpartition("_")[0] for kernel in kernels()}
    assert len(names) == len(sources())
    assert len(kernels()) == len(names) * 3 * len(ARCHITECTURES)


def test_registers_suffice() -> None:
    for kernel in kernels():
        assert kernel.spills == 0 and kernel.stack == 0 and kernel.local == 0, f"{kernel.name} {kernel.arch}"


@needs_sass
def test_products_run_on_tensor_cores() -> None:
    for kernel in kernels(*PRODUCTS):
        assert (kernel.tensor > 0) == (kernel.dtype != "f32"), f"{kernel.name} {kernel.arch}"


@needs_sass
def test_maps_are_moved_16_bytes_at_a_time() -> None:
    for kind, names in (("load", MAPS_READ), ("store", MAPS_WRITTEN)):
        for kernel in kernels(*names):
            assert kernel.accesses(kind).get(128, 0) > 0, f"{kernel.name} {kernel.arch}: {kind}"
    # aggregate_route's narrow ones write the tables
    for kernel in kernels("stem_stages", "sepconv", "cell", "stage_paths", "merge"):
        stores = kernel.accesses("store")
        assert set(stores) == {128}, f"{kernel.name} {kernel.arch}: {stores}"


@needs_sass
def test_nobody_flushes_l1() -> None:
    """Blocks that wait for each other order their writes by a release; a fence or an acquire would throw L1 away."""
    for kernel in kernels():
        assert kernel.counted(r"MEMBAR\.SC|CCTL\.IVALL") == 0, f"{kernel.name} {kernel.arch}"
    for kernel in kernels("aggregate_route", "stage_paths"):
        assert kernel.counted(r"MEMBAR\.ALL\.GPU") > 0, f"{kernel.name} {kernel.arch}"


@needs_sass
def test_kernels_wait_for_the_launch_before() -> None:
    """griddepcontrol.wait (ACQBULK) once, on the way of every thread, before all accesses of global memory; nothing
    lets the next launch go early (PREEXIT). Not where there is no such thing. And no loads that could be moved before
    it."""
    for kernel in kernels():
        name, code = f"{kernel.name} {kernel.arch}", kernel.code
        assert "PREEXIT" not in code, name
        if kernel.arch == "sm_80":
            assert "ACQBULK" not in code, name
            continue
        assert code.count("ACQBULK") == 1, name
        early = [i for i in code[: code.index("ACQBULK")] if re.match(f"{GLOBAL}|{ELSEWHERE}", i)]
        assert not early, f"{name}: {early}"
        assert kernel.counted(r"LDG\..*CONSTANT") == 0, name


def test_all_launches_fit_a_multiprocessor() -> None:
    for device in DEVICES:
        for row in launches(device, torch.float16):
            assert row["blocks_per_multiprocessor"] >= 1, (device.name, row)
