"""Memory of the logits: the caller's as long as it is held, taken back after that."""

from __future__ import annotations

import torch

import dynroute
from dynroute.runtime.cpu.outputs import OutputMemory
from tests.support.networks import random_images, random_network


def test_logits_are_the_callers_as_long_as_anything_of_them_lives() -> None:
    run = dynroute.optimize(random_network(), "cpu")
    first, second = random_images(1, 64, 64, seed=1), random_images(1, 64, 64, seed=2)
    logits = run(first).logits
    where, wanted, part, array = logits.data_ptr(), logits.clone(), logits[0, 1:], logits.detach().numpy()
    del logits
    assert run(second).logits.data_ptr() != where
    assert torch.equal(part, wanted[0, 1:])
    del part
    assert run(second).logits.data_ptr() != where
    assert torch.equal(torch.from_numpy(array), wanted)
    del array
    assert where in {out.data_ptr() for out in [run(second).logits for _ in range(4)]}  # and after that taken back


def test_memory_of_logits_follows_the_image_size() -> None:
    outputs = OutputMemory()
    for shape in ((1, 2, 8, 8), (2, 2, 8, 8), (0, 2, 8, 8), (2, 2, 8, 8)):
        lent = [outputs.lend(shape) for _ in range(3)]
        assert all(tensor.shape == shape and tensor.is_contiguous() for tensor in lent)
        del lent
    assert outputs.idle_bytes == 2 * 2 * 2 * 64 * 4  # two of the last size, no others
