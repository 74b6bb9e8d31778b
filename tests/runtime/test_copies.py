"""Copies and pickles of a runtime: the same bits, and nothing shared that calls write."""

from __future__ import annotations

import copy
import multiprocessing
import pickle

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import dynroute
from dynroute.native import library
from tests.support.networks import random_images, random_network, same_bits

WAYS = [("reference", torch.float32), ("cpu", torch.float32), ("cpu", torch.bfloat16)]
needs_library = pytest.mark.skipif(library.why_not_loaded() is not None, reason=str(library.why_not_loaded()))


@pytest.mark.parametrize("backend, storage", WAYS, ids=str)
def test_copies(backend: str, storage: torch.dtype) -> None:
    run = dynroute.optimize(random_network(layers=4), backend, storage)
    x = random_images(2, 64, 32)
    wanted = run(x)
    for other in (copy.copy(run), copy.deepcopy(run), pickle.loads(pickle.dumps(run))):
        assert repr(other) == repr(run) and other.storage == storage and other.config == run.config
        same_bits(other(x), wanted)
        assert torch.equal(other.labels(x), run.labels(x))
    assert copy.deepcopy(run).workspace_bytes == 0, "only what a call writes grows"
    assert copy.deepcopy(run).weight_bytes == run.weight_bytes


class Labels(Dataset):
    """Images as what a runtime makes of them."""

    def __init__(self, run: dynroute.Runtime) -> None:
        self.run, self.images = run, random_images(2, 32, 32)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.run.labels(self.images[index : index + 1])[0]


@needs_library
def test_workers_that_are_spawned() -> None:
    labels = Labels(dynroute.optimize(random_network(layers=4), "cpu"))
    loader = DataLoader(labels, 2, num_workers=1, multiprocessing_context=multiprocessing.get_context("spawn"))
    assert torch.equal(next(iter(loader)), labels.run.labels(labels.images))


@needs_library
def test_a_pickle_for_other_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    pickled = pickle.dumps(dynroute.optimize(random_network(layers=4), "cpu"))
    here = library.build_info()["isa"] == "amx"
    monkeypatch.setattr("dynroute.runtime.cpu.executor._in_tiles", lambda: not here)
    with pytest.raises(RuntimeError, match=r"its weights lie in .*, kernels here read .*; make it here, with optimize"):
        pickle.loads(pickled)
