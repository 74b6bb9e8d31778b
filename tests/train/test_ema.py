"""The moving average of weights: its values, what moves it, and where it is used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import dynroute
from dynroute.train import ConfigError, finish, train
from dynroute.train.checkpoint import Checkpoints
from dynroute.train.ema import WeightAverage
from tests.support.networks import random_network
from tests.support.runs import small

NO, YES = torch.tensor(False), torch.tensor(True)


class OnDevice(Tensor):
    is_cuda = True


def moved(net: torch.nn.Module, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for t in (*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())):
            t.add_(torch.randn(t.shape, generator=g))


@pytest.mark.parametrize("device", [Tensor, OnDevice])
def test_values(device: type[Tensor]) -> None:
    """a <- d a + (1 - d) w, with d = (1 + t) / (10 + t) while that is less; a skipped step moves nothing. On the CPU as
    the device does it, too."""
    net = random_network()
    average = WeightAverage(net, 0.5)
    wanted = {name: t.double().clone() for name, t in net.state_dict().items() if t.is_floating_point()}
    assert average.state().keys() == wanted.keys()
    for step, decay in ((1, 2 / 11), (2, 3 / 12), (7, 8 / 17), (8, 0.5), (20, 0.5)):
        moved(net, step)
        average.update(step, YES.as_subclass(device))
        average.update(step, NO.as_subclass(device))
        for name, t in net.state_dict().items():
            if name in wanted:
                wanted[name] = decay * wanted[name] + (1 - decay) * t.double()
        for name, t in average.state().items():
            torch.testing.assert_close(t.double(), wanted[name], rtol=1e-5, atol=1e-6, msg=name)


def test_swapped_and_back() -> None:
    """In the same memory; what becomes of the average inside stays with it, also when the inside fails."""
    net = random_network()
    average = WeightAverage(net, 0.9)
    moved(net, 1)
    weights = {name: t.clone() for name, t in net.state_dict().items()}
    kept = {name: t.clone() for name, t in average.state().items()}
    places, now = [p.data_ptr() for p in net.parameters()], net.state_dict()
    first = next(iter(kept))
    with pytest.raises(RuntimeError, match="inside"), average.swapped():
        assert all(torch.equal(now[name], t) for name, t in kept.items())
        now[first].fill_(7.0)
        raise RuntimeError("inside")
    assert [p.data_ptr() for p in net.parameters()] == places
    assert all(torch.equal(now[name], t) for name, t in weights.items())
    assert (average.state()[first] == 7.0).all()
    other = WeightAverage(net, 0.9)
    other.load_state(average.state())
    assert all(torch.equal(a, b) for a, b in zip(other.state().values(), average.state().values()))


def test_a_run_evaluates_and_saves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are the average's, statistics those of precise BatchNorm on it; the checkpoint holds both, and training
    goes on from the weights as without an average."""
    seen: list[dict[str, Tensor]] = []
    real = finish.evaluate

    def evaluate(net: torch.nn.Module, *arguments: object, **options: object) -> object:
        seen.append({name: t.clone() for name, t in net.state_dict().items()})
        return real(net, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(finish, "evaluate", evaluate)
    options = ("schedule.steps=4", "evaluation.every=2", "evaluation.precise_bn_batches=1")
    plain = train(small(tmp_path / "plain", *options), quiet=True)
    seen.clear()
    run = train(small(tmp_path / "run", *options, "train.ema=0.9"), quiet=True)
    state, _, _ = Checkpoints(run).read()
    saved = dynroute.from_pretrained(run / "model").state_dict()
    names = [name for name, _ in dynroute.from_pretrained(run / "model").named_parameters()]
    assert len(seen) == 2 and all(torch.equal(seen[1][name], saved[name]) for name in saved)
    assert all(torch.equal(saved[name], state["ema"][name]) for name in names)
    assert not any(torch.equal(saved[name], state["model"][name]) for name in names)
    without = Checkpoints(plain).read()[0]
    assert without["ema"] is None
    assert all(torch.equal(without["model"][name], state["model"][name]) for name in names)
    changed = [
        name for name in saved if name.endswith("running_var") and not torch.equal(saved[name], state["ema"][name])
    ]
    assert changed, "precise BatchNorm should have made statistics anew"
    with pytest.raises(ConfigError, match=r"train.ema: the run to resume has 0.9, got 0.0; an average is of all steps"):
        train(small(run, *options), resume=True, quiet=True)
