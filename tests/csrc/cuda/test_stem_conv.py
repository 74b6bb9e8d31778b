"""csrc/cuda/kernels/stem_conv.cu, and stem_planes.cu for other than three planes, on the emulator: values, edges,
counted work, what they may not touch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dynroute.runtime.cuda import emulator
from tests.support.cuda import matrices, structs
from tests.support.cuda.devices import SMALL
from tests.support.cuda.shapes import launch_shape

pytestmark = pytest.mark.skipif(emulator.why_not() is not None, reason=emulator.why_not() or "")

TYPES = [torch.float32, torch.float16, torch.bfloat16]
# of the largest value; a 16-bit type rounds the image, the reference too, and the result
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def run(images: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, dtype: torch.dtype, blocks: int, **options):
    """[n, planes, h, w], [width, planes, 3, 3] and [width] -> [n, h_out, w_out, width], multiply-accumulates,
    statistics."""
    samples, planes, h, w = images.shape
    kernel, taps = "stem_conv" if planes == 3 else "stem_planes", 9 * planes
    width, h_out, w_out = len(weight), (h - 3) // 2 + 1, (w - 3) // 2 + 1
    packed = matrices.pack(weight.permute(0, 2, 3, 1).reshape(width, taps).to(dtype), shift, beyond=3.0)
    read_only = [emulator.array(t) for t in (images, *packed)]
    macs = np.full((samples, 3), 5, np.int64)
    io = structs.Io(images=read_only[0].ctypes.data, sample_macs=macs.ctypes.data)
    read_only.append(np.frombuffer(bytearray(bytes(io)), np.uint8))
    for array in read_only:
        array.flags.writeable = False
    out = torch.full((samples, h_out, w_out, width), float("nan"), dtype=dtype)
    out_array = emulator.array(out)
    matrix = matrices.matrix(read_only[1].ctypes.data, read_only[2].ctypes.data, width, taps)
    sizes = (samples, h, w, h_out, w_out)
    common = (read_only[3].ctypes.data, matrix, out_array.ctypes.data, *sizes)
    params = structs.StemConvParams(*common) if planes == 3 else structs.StemPlanesParams(*common, planes)
    largest, threads, shared = launch_shape(kernel, params, dtype)
    assert shared <= SMALL.shared_per_block
    shape = (min(blocks, largest) if planes == 3 else largest, threads, shared)  # of stem_planes one for each tile
    buffers = [*read_only, macs, out_array]
    return out, macs, emulator.launch(kernel, dtype, bytes(params), shape, buffers, **options)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    "samples, planes, h, w, width",
    [
        (1, 3, 3, 3, 8), (2, 3, 13, 70, 24), (1, 3, 6, 131, 64), (1, 3, 10, 34, 72), (3, 3, 9, 12, 16),
        (2, 1, 13, 70, 24), (1, 4, 6, 71, 64), (1, 7, 10, 34, 72), (2, 8, 9, 12, 136), (1, 2, 3, 3, 8),
    ],
)  # fmt: skip
def test_values(dtype, samples, planes, h, w, width):
    torch.manual_seed(h * w)
    images, weight = torch.randn(samples, planes, h, w), torch.randn(width, planes, 3, 3) / (5 * (planes / 3) ** 0.5)
    shift = torch.randn(width)
    order = ("fwd", "rev", "rand")[h % 3]
    out, macs, _ = run(images, weight, shift, dtype, 3, order=order)
    rounded = images.to(dtype).double(), weight.to(dtype).double(), shift.double()
    expected = F.conv2d(*rounded, stride=2).relu().permute(0, 2, 3, 1)
    error = (out.double() - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE[dtype]
    h_out, w_out = expected.shape[1:3]
    assert macs.tolist() == [[5 + h_out * w_out * 9 * planes * width, 5, 5]] * samples


def test_as_a_dependent_launch():
    """Code for sm_90 begins with waiting for the launch before, each thread once; sm_80's knows nothing of it. No bit
    depends on it."""
    torch.manual_seed(3)
    images, weight, shift = torch.randn(1, 3, 11, 75), torch.randn(40, 3, 3, 3), torch.randn(40)
    outs = {}
    for arch, waits in (("sm_80", 0), ("sm_90", 2 * 128)):
        outs[arch], _, info = run(images, weight, shift, torch.float16, 2, arch=arch, counters=True)
        assert info["opcodes"].get("griddepcontrol.wait", 0) == waits
    assert torch.equal(outs["sm_80"], outs["sm_90"])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("planes", [3, 5])
def test_batch_changes_no_bit(dtype, planes):
    torch.manual_seed(2)
    images, weight, shift = torch.randn(3, planes, 11, 75), torch.randn(40, planes, 3, 3), torch.randn(40)
    batch, _, _ = run(images, weight, shift, dtype, 2)
    alone, _, _ = run(images[1:2].contiguous(), weight, shift, dtype, 100)
    assert torch.equal(batch[1:2], alone)
