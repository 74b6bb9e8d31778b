"""Batches, groups, workspaces and threads of the CPU engine: none of them changes a sample."""

from __future__ import annotations

import threading

import pytest
import torch

import dynroute
from dynroute.native.network import network_workspace
from tests.support.networks import random_gates, random_images, random_network


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("config", [{"channels": 16}, {"small_gate": True, "channels": 24}, {"channels": 64}])
def test_a_batch_never_changes_a_sample(config: dict, threads: int) -> None:
    net = random_network(gate_shift=-0.3, **config)
    run = dynroute.optimize(net, "cpu")
    x = random_images(5, 96, 128)
    torch.set_num_threads(1)
    alone = [run(x[i : i + 1]) for i in range(5)]
    torch.set_num_threads(threads)
    try:
        batch, repeated = run(x), run(x.flip(0))
    finally:
        torch.set_num_threads(1)
    for i, one in enumerate(alone):
        for name in ("logits", "gates", "executed_nodes", "executed_macs"):  # the halo follows the plan
            assert torch.equal(getattr(batch, name)[i], getattr(one, name)[0]), name
            assert torch.equal(getattr(repeated, name)[4 - i], getattr(one, name)[0]), name


def test_a_batch_goes_through_in_groups() -> None:
    net = random_network()
    run = dynroute.optimize(net, "cpu")
    config = run.executor.packed.config  # type: ignore[attr-defined]
    x = random_images(5, 128, 256)  # 32 pixels at 1/32: four samples for one thread, so three and two of them
    assert network_workspace(5, 128, 256, config) == 3 * network_workspace(1, 128, 256, config)
    assert network_workspace(8, 512, 1024, config) == network_workspace(1, 512, 1024, config)
    gates = random_gates(net, 5, share=0.7)
    for forced in (None, gates):
        batch = run(x, forced)
        for i in range(5):
            one = run(x[i : i + 1], None if forced is None else forced[i : i + 1])
            for name in ("logits", "gates", "executed_nodes", "executed_macs"):
                assert torch.equal(getattr(batch, name)[i], getattr(one, name)[0]), name


def test_dirty_workspaces_do_not_show() -> None:
    net = random_network(gate_shift=-0.5)
    run, fresh = dynroute.optimize(net, "cpu"), dynroute.optimize(net, "cpu")
    x = random_images(3, 64, 64)
    run(torch.full((4, 3, 96, 96), float("nan")))
    assert torch.equal(run(x).logits, fresh(x).logits)


def test_two_threads_may_run_one_engine() -> None:
    run = dynroute.optimize(random_network(), "cpu")
    inputs = [random_images(2, 64, 64, seed=i) for i in range(4)]
    wanted = [run(x).logits for x in inputs]
    got: list[list[torch.Tensor]] = [[] for _ in inputs]

    def work(i: int) -> None:
        for _ in range(10):
            got[i].append(run(inputs[i]).logits)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(torch.equal(y, w) for ys, w in zip(got, wanted) for y in ys)
