"""The network's Triton kernels without a GPU, by their code: `python -m tests.support.triton_network WHAT`.

In a process of its own, without TRITON_INTERPRET. WHAT is `compiled`: those that a network of published channels
launches, for two architectures; prints JSON. Or `emulated`: a whole small network by its PTX on the emulator, against
the reference; accesses out of bounds and races in shared memory raise, memory is NaN before.
"""

from __future__ import annotations

import copy
import json
import sys

import torch

import dynroute
from dynroute.ops.triton import configs
from dynroute.runtime.executor import Runtime
from dynroute.runtime.triton.executor import TritonExecutor
from tests.support.networks import largest_error, random_gates, random_images, random_network
from tests.support.triton_launch import compiled, emulated, usage


def runtime(storage: torch.dtype, **config: object) -> Runtime:
    net = random_network(layers=4, gate_shift=-0.3, **config)
    return Runtime(net, "triton", "a test", storage, TritonExecutor(net, storage, torch.device("cpu")))


def say_what_is_compiled() -> None:
    """JSON: `kernels`, and `of_a_size`, the names of those that another size and number of images adds."""
    kernels, of_a_size = [], set()
    for arch, storage in ((80, torch.float16), (90, torch.float32), (90, torch.bfloat16)):
        run = runtime(storage, channels=64, stem_width=64, num_classes=19, small_gate=True)
        with compiled(arch) as launches:
            run(torch.zeros(1, 3, 128, 160))
            run.labels(torch.zeros(1, 3, 128, 160))
            known = {launched.code for launched in launches}
            run(torch.zeros(3, 3, 250, 128))
        of_a_size |= {launched.kernel for launched in launches if launched.code not in known}
        for code in {launched.code: launched for launched in launches}.values():
            kernels.append({"kernel": code.kernel, "arch": arch, "storage": str(storage), **usage(code.code)})
    print(json.dumps({"kernels": kernels, "of_a_size": sorted(of_a_size)}))


def check_emulated() -> None:
    """In bfloat16, which the interpreter cuts off where a GPU rounds."""
    storage = torch.bfloat16
    run, net = runtime(storage), random_network(layers=4, gate_shift=-0.3)
    x = random_images(2, 30, 64)
    reference = dynroute.optimize(net, "reference")
    for gates in (reference(x).gates, random_gates(net, 2, 0.5), None):
        with emulated(order="rand") as launches:
            out = run(x, gates)
        assert launches, "nothing was launched"
        routes = out.gates if gates is None else gates
        wanted, own = reference(x, routes), copy.deepcopy(net).to(storage)(x.to(storage), gates=routes)
        assert largest_error(out.logits, wanted.logits) <= 2 * largest_error(own.logits, wanted.logits)
        torch.testing.assert_close(out.gates, wanted.gates, rtol=0, atol=0)
        assert torch.equal(out.executed_nodes[..., 1:], wanted.executed_nodes[..., 1:])
    torch.testing.assert_close(out.gates, reference(x).gates, rtol=0, atol=2e-2)
    with emulated(order="rand"):
        assert torch.equal(run.labels(x), out.logits.argmax(1).to(torch.uint8))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    configs.forget_tuning()
    sys.exit({"compiled": say_what_is_compiled, "emulated": check_emulated}[sys.argv[1]]())
