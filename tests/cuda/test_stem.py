"""csrc/cuda/kernels/stem.cu on the emulator: values, edges, counted work, what it may not touch."""

from __future__ import annotations

import numpy as np
import pytest
import shapes
import structs
import torch
import torch.nn.functional as F

from dynroute.runtime.cuda import emulator

pytestmark = pytest.mark.skipif(emulator.why_not() is not None, reason=emulator.why_not() or "")

TYPES = [torch.float32, torch.float16, torch.bfloat16]
# of the largest value; a 16-bit type rounds the image, the reference too, and the result
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def run(images: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, dtype: torch.dtype, blocks: int, **options):
    """[n, 3, h, w], [width, 3, 3, 3] and [width] -> [n, h_out, w_out, width], multiply-accumulates, statistics."""
    samples, _, h, w = images.shape
    width, h_out, w_out = len(weight), (h - 3) // 2 + 1, (w - 3) // 2 + 1
    n_pad = -(-width // 32) * 32
    packed, padded_shift = torch.zeros(n_pad, 32), torch.full((n_pad,), 3.0)
    packed[:width, :27] = weight.permute(0, 2, 3, 1).reshape(width, 27)
    padded_shift[:width] = shift
    packed = (packed.T if dtype == torch.float32 else packed).contiguous().to(dtype)
    read_only = [emulator.array(t) for t in (images, packed, padded_shift)]
    other = np.full((samples, 3), 5, np.int64)
    io = structs.Io(images=read_only[0].ctypes.data, other=other.ctypes.data)
    read_only.append(np.frombuffer(bytearray(bytes(io)), np.uint8))
    for array in read_only:
        array.flags.writeable = False
    out = torch.full((samples, h_out, w_out, width), float("nan"), dtype=dtype)
    out_array = emulator.array(out)
    matrix = structs.Matrix(read_only[1].ctypes.data, read_only[2].ctypes.data, 27, width, 32, n_pad)
    params = structs.StemParams(read_only[3].ctypes.data, matrix, out_array.ctypes.data, samples, h, w, h_out, w_out)
    most, threads, shared = shapes.launch_shape("stem_conv", params, dtype)
    assert shared <= shapes.SMALL.shared_per_block
    statistics = emulator.launch(
        "stem", dtype, bytes(params), (min(blocks, most), threads, shared), [*read_only, other, out_array],
        name="stem_conv", **options,
    )  # fmt: skip
    return out, other, statistics


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    "samples, h, w, width", [(1, 3, 3, 8), (2, 13, 70, 24), (1, 6, 131, 64), (1, 10, 34, 72), (3, 9, 12, 16)]
)
def test_values(dtype, samples, h, w, width):
    torch.manual_seed(h * w)
    images, weight, shift = torch.randn(samples, 3, h, w), torch.randn(width, 3, 3, 3) / 5, torch.randn(width)
    order = ("fwd", "rev", "rand")[h % 3]
    out, other, _ = run(images, weight, shift, dtype, 3, order=order)
    rounded = images.to(dtype).double(), weight.to(dtype).double(), shift.double()
    expected = F.conv2d(*rounded, stride=2).relu().permute(0, 2, 3, 1)
    error = (out.double() - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE[dtype]
    h_out, w_out = expected.shape[1:3]
    assert other.tolist() == [[5 + h_out * w_out * 27 * width, 5, 5]] * samples


@pytest.mark.parametrize("dtype", TYPES)
def test_batch_changes_no_bit(dtype):
    torch.manual_seed(2)
    images, weight, shift = torch.randn(3, 3, 11, 75), torch.randn(40, 3, 3, 3), torch.randn(40)
    batch, _, _ = run(images, weight, shift, dtype, 2)
    alone, _, _ = run(images[1:2].contiguous(), weight, shift, dtype, 100)
    assert torch.equal(batch[1:2], alone)
