"""Training, from a configuration to a saved network and its evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dynroute.data import Source, batches
from dynroute.models.network import DynamicNetwork
from dynroute.native.memory import settled
from dynroute.objective import Losses
from dynroute.train.amp import TYPES, LossScale, check_amp
from dynroute.train.checkpoint import Checkpoints
from dynroute.train.class_weights import resolved
from dynroute.train.config import Config, check_config
from dynroute.train.ema import WeightAverage
from dynroute.train.finish import evaluated, leave
from dynroute.train.finite import SkipLimit, check_finite, running_statistics
from dynroute.train.lock import locked
from dynroute.train.log import TrainingLog
from dynroute.train.optimiser import learning_rate, make_optimiser, set_learning_rate
from dynroute.train.parse import ConfigError
from dynroute.train.processes import Team, assembled, in_parallel
from dynroute.train.recorded import RecordedStep
from dynroute.train.restart import goes_on, job
from dynroute.train.resume import check_same
from dynroute.train.setup import augmentation, open_source, pick_device
from dynroute.train.start import check_statistics, make_network
from dynroute.train.state import Trained, seed_step
from dynroute.train.step import logged, train_step
from dynroute.train.surroundings import deterministic, explained, interruptible, threads
from dynroute.train.watch import Watch


def train(config: Config, resume: bool = False, quiet: bool = False) -> Path:
    """Train a network as `config` says.

    The run folder gets `config.yaml`, `log.jsonl`, `tb/` (TensorBoard), `checkpoints/`, and at the end `model/` (for
    `dynroute.from_pretrained`) and `eval.json`. Ctrl-C ends after the step at hand, with a checkpoint. What the user
    should know besides, such as checkpoints passed over, goes to stderr, a line each.

    Under torchrun every process calls this, and takes its share of each batch; the first one writes and evaluates.

    Args:
        config: see `dynroute.train.load_config`.
        resume: go on from the run folder's newest whole checkpoint: the same losses, bit for bit, as without the
            interruption, unless the configuration has changed (`dynroute.train.resume` says what may).
        quiet: no progress bar.

    Returns:
        The run folder.

    Raises:
        ConfigError: values that cannot be used, a folder that already holds a run or in which another trains, nothing
            to resume, a batch that does not divide among the processes or does not fit into memory, or
            `run.max_skipped` steps in a row whose loss or gradient is not finite.
        OSError: a file that cannot be written, with its name; the last checkpoints are still there.
        DataError: a data set that is not as it should be.
        KeyboardInterrupt: after Ctrl-C, once the checkpoint is written.
    """
    check_config(config)
    device = pick_device(config.run.device)
    check_amp(config.run.amp, device)
    with (
        deterministic(config.run.deterministic, device),
        assembled(device) as team,
        threads(config.run.threads),
        ExitStack() as held,
    ):
        _check_share(config, team)
        records = _records(config, team)
        folder = Path(config.run.folder)
        team.say(team.first(lambda: held.enter_context(locked(folder))))
        return _train(config, "always" if resume else config.run.resume, quiet, team, records)


def _train(config: Config, resume: str, quiet: bool, team: Team, records: bool) -> Path:
    folder, device = Path(config.run.folder), team.device
    checkpoints = Checkpoints(folder, config.run.keep_checkpoints)

    def begin() -> dict[str, Any] | None:
        if not goes_on(checkpoints, resume):
            return None
        state, path, lines = checkpoints.read()
        lines += check_same(state, config, path, team.size)
        team.say([*lines, f"goes on from {path}"])
        return state

    state = team.first(begin)
    train_source, val_source = open_source(config.data, "train"), open_source(config.data, "val")
    classes = len(train_source.class_names)
    torch.manual_seed(config.run.seed)
    names = train_source.class_names
    net, lines = make_network(config, names, state.get("network") if state is not None else None)
    samples = config.optimiser.batch // config.optimiser.accumulate // (1 if config.train.sync_bn else team.size)
    check_statistics(net, config.data.crop, samples)
    team.say(lines if state is None else [])
    net = _with_ops(net, config.run.ops).to(device)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    trained = Trained(
        net,
        make_optimiser(net, config.optimiser),
        WeightAverage(net, config.train.ema) if config.train.ema else None,
        LossScale(device) if config.run.amp == "float16" else None,
    )
    optimiser, average, scale = trained.optimiser, trained.average, trained.scale
    saved = state.get("class_weights") if state is not None else None
    factors = resolved(config.train.class_weights, train_source, team, saved, folder)
    if team.leads:
        team.say(checkpoints.tidy(anew=state is None))
        config.save(folder / "config.yaml")
    start = 0
    if state is not None:
        start = state["step"]
        trained.load_state(state)
    if config.run.compile:
        net.compile()
    model: DynamicNetwork | DistributedDataParallel = net
    if team.size > 1:
        if config.train.sync_bn:
            net.synchronise(team.norms)
        model = in_parallel(net, device)

    budget = config.budget if config.budget.weight > 0 else None
    settings = (budget, config.optimiser.clip_norm, TYPES[config.run.amp], config.optimiser.accumulate)
    statistics = running_statistics(net)

    def as_it_is(images: Tensor, labels: Tensor, progress: float) -> Losses:
        return train_step(model, optimiser, images, labels, progress, *settings, None, statistics, scale, factors)

    step_on: Callable[[Tensor, Tensor, float], Losses] = as_it_is
    if records:
        step_on = RecordedStep(net, optimiser, *settings, scale, factors)
    before = state["log"] if state is not None else {}
    # with nothing left but the evaluation, one that is behind the checkpoint in the log is made, and told, again
    size = before.get("size") if start == config.schedule.steps else None
    watch = Watch(net.config, config.budget, config.data.crop, config.schedule.steps, team)
    log = TrainingLog(folder, classes, config.run.log_every, config.schedule.steps, start, quiet, team, size, watch)
    if state is not None:
        log.load_state(before, device)
    swapped = average.swapped if average is not None else nullcontext
    limit, due = SkipLimit(config.run.max_skipped, device), False
    with closing(log), settled(), interruptible() as interrupted:
        for step, (images, labels) in enumerate(_stream(config, train_source, team, start), start):
            progress = step / config.schedule.steps
            rate = learning_rate(step, config.optimiser.lr, config.schedule)
            set_learning_rate(optimiser, rate)
            done = step + 1
            seed_step(config.run.seed, step)
            with explained(f"step {done}"):
                losses = step_on(images, labels, progress)
            limit.count(losses.skipped, losses.overflowed)
            values = logged(losses)
            if average is not None:
                average.update(done, losses.skipped)
            if scale is not None:
                values["loss_scale"] = scale.value
            overflowed = losses.overflowed if scale is not None else None
            log.step(
                done, rate, values, losses.output.low_logits, labels, losses.skipped, losses.output.gates, overflowed
            )
            last = done == config.schedule.steps
            if device.type == "cpu" or last or done % config.run.log_every == 0:  # a GPU is not waited for otherwise
                limit.check(done, last)
                if scale is not None:
                    scale.check(done)
            if config.evaluation.every and done % config.evaluation.every == 0 and not last:
                with swapped():
                    evaluated(net, config, train_source, val_source, team, log, done)
                net.train()
            stops = team.any(interrupted())
            due = due or last or stops or done % config.run.checkpoint_every == 0
            # weights of which no loss is finite may be why: they wait for a step that shows otherwise
            if due and limit.row == 0:
                current, due = _state(trained, factors, done, log, config, team), False

                def save(step: int = done, state: dict[str, Any] = current) -> Path:
                    check_finite(net, optimiser, step)
                    return checkpoints.write(state)

                path = team.first(save)
                if stops and not last:
                    raise KeyboardInterrupt(f"stopped after step {done}; {path} holds it")

        with swapped():
            result = evaluated(net, config, train_source, val_source, team, log, config.schedule.steps)
            if result is not None:
                leave(folder, net, result, config, train_source)
    team.wait()
    return folder


def _stream(config: Config, source: Source, team: Team, start: int) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's share of the training batches, on its device: images float32 [N, 3, H, W], labels int64
    [N, H, W]."""
    device, pinned = team.device, team.device.type == "cuda"
    stream = batches(
        source,
        augmentation(config.data),
        config.optimiser.batch,
        config.run.seed,
        start,
        config.schedule.steps,
        config.data.workers,
        pinned,
        team.rank,
        team.size,
    )
    for images, labels in stream:
        yield images.to(device, non_blocking=pinned), labels.to(device, non_blocking=pinned).long()


def _state(
    trained: Trained, factors: Tensor | None, step: int, log: TrainingLog, config: Config, team: Team
) -> dict[str, Any]:
    return {
        "step": step,
        **trained.state(),
        "network": asdict(trained.net.config),
        "preprocess": trained.net.preprocess,
        "class_weights": factors.tolist() if factors is not None else None,
        "processes": team.size,
        "job": job(),
        "log": log.state(),
        "config": config.to_dict(),
    }


def _check_share(config: Config, team: Team) -> None:
    """Every process has the same number of samples, in equal parts."""
    batch, accumulate = config.optimiser.batch, config.optimiser.accumulate
    if batch % (team.size * accumulate):
        raise ConfigError(
            f"optimiser.batch: wanted a multiple of {team.size} processes"
            + (f" times {accumulate} (optimiser.accumulate)" if accumulate > 1 else "")
            + f", got {batch}"
        )


def _records(config: Config, team: Team) -> bool:
    """Whether steps are recorded as a CUDA graph. Raises ConfigError."""
    reasons = {
        f"a GPU, this run is on {team.device.type}": team.device.type != "cuda",
        f"one process, this run has {team.size}": team.size > 1,
        "run.compile=false": config.run.compile,
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if config.run.graph and reason is not None:
        raise ConfigError(f"run.graph: wanted {reason}")
    return reason is None if config.run.graph is None else config.run.graph


def _with_ops(net: DynamicNetwork, choice: str) -> DynamicNetwork:
    try:
        return net.use_ops(choice)
    except ValueError as error:
        raise ConfigError(f"run.ops: {error}") from error
