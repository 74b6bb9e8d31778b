"""Training, from a configuration to a saved network and its evaluation."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dynroute.data import Source, batches, save_preprocess
from dynroute.files import finite, named, write_whole
from dynroute.measure.evaluate import evaluate
from dynroute.measure.results import Evaluation
from dynroute.models.network import DynamicNetwork
from dynroute.native.memory import settled
from dynroute.objective import Losses
from dynroute.provenance import provenance
from dynroute.train.checkpoint import Checkpoints, random_state, set_random_state
from dynroute.train.config import Config, check_config
from dynroute.train.finite import SkipLimit, check_finite, running_statistics
from dynroute.train.lock import locked
from dynroute.train.log import TrainingLog
from dynroute.train.optimiser import learning_rate, make_optimiser, precise_batchnorm, set_learning_rate
from dynroute.train.parse import ConfigError
from dynroute.train.processes import Team, assembled, in_parallel
from dynroute.train.recorded import RecordedStep
from dynroute.train.resume import check_same
from dynroute.train.setup import augmentation, make_network, normalisation, open_source, pick_device
from dynroute.train.step import logged, train_step

T = TypeVar("T")
# Seeds of other streams are offset by this, so that precise BatchNorm sees other augmentations than the last steps did.
STREAM_OFFSET = 7919
# Process r draws its drop paths from the run's seed plus r times this; the first as if it were alone.
RANK_OFFSET = 1_000_003


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
    with assembled(pick_device(config.run.device)) as team, _threads(config.run.threads), ExitStack() as held:
        _check_share(config, team)
        records = _records(config, team)
        folder = Path(config.run.folder)
        _say(team, _first(team, lambda: held.enter_context(locked(folder))))
        return _train(config, resume, quiet, team, records)


def _train(config: Config, resume: bool, quiet: bool, team: Team, records: bool) -> Path:
    folder, device = Path(config.run.folder), team.device
    checkpoints = Checkpoints(folder, config.run.keep_checkpoints)
    state: dict[str, Any] | None = None
    if resume:
        state, path, lines = checkpoints.read()
        lines += check_same(state, config, path)
        if state.get("processes", 1) != team.size:
            raise ConfigError(f"{folder}: the run to resume has {state.get('processes', 1)} processes, got {team.size}")
        _say(team, lines)
    elif checkpoints:
        raise ConfigError(f"run.folder: {folder} already holds a run; resume it, or choose another folder")
    team.wait()  # all have read what is there

    train_source, val_source = open_source(config.data, "train"), open_source(config.data, "val")
    classes = len(train_source.class_names)
    torch.manual_seed(config.run.seed)
    net = _with_ops(make_network(config.model, classes, config.train.bn), config.run.ops).to(device)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    optimiser = make_optimiser(net, config.optimiser)
    if team.leads:
        _say(team, checkpoints.tidy(anew=state is None))
        config.save(folder / "config.yaml")
    else:
        torch.manual_seed(config.run.seed + team.rank * RANK_OFFSET)

    start = 0
    if state is not None:
        start = state["step"]
        net.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        for group in optimiser.param_groups:
            group["lr"] = float(group["lr"])  # a recorded step's is a tensor
        set_random_state(state["random"] if team.size == 1 else state["random"][team.rank], device)
    if config.run.compile:
        net.compile()
    model: DynamicNetwork | DistributedDataParallel = net
    if team.size > 1:
        if config.train.sync_bn:
            net.synchronise(team.norms)
        model = in_parallel(net, device)

    budget = config.budget if config.budget.weight > 0 else None
    settings = (budget, config.optimiser.clip_norm, config.run.bf16, config.optimiser.accumulate)
    statistics = running_statistics(net)

    def as_it_is(images: Tensor, labels: Tensor, progress: float) -> Losses:
        return train_step(model, optimiser, images, labels, progress, *settings, statistics=statistics)

    step_on: Callable[[Tensor, Tensor, float], Losses] = as_it_is
    if records:
        step_on = RecordedStep(net, optimiser, *settings)
    before = state["log"] if state is not None else {}
    # with nothing left but the evaluation, one that is behind the checkpoint in the log is made, and told, again
    size = before.get("size") if start == config.schedule.steps else None
    log = TrainingLog(folder, classes, config.run.log_every, config.schedule.steps, start, quiet, team, size)
    if state is not None:
        log.load_state(before, device)
    limit, due = SkipLimit(config.run.max_skipped, device), False
    with closing(log), settled(), _interruptible() as interrupted:
        for step, (images, labels) in enumerate(_stream(config, train_source, team, start), start):
            progress = step / config.schedule.steps
            rate = learning_rate(step, config.optimiser.lr, config.schedule)
            set_learning_rate(optimiser, rate)
            done = step + 1
            with _memory(f"step {done}"):
                losses = step_on(images, labels, progress)
            limit.count(losses.skipped)
            log.step(done, rate, logged(losses), losses.output.low_logits, labels, losses.skipped)
            last = done == config.schedule.steps
            if device.type == "cpu" or last or done % config.run.log_every == 0:  # a GPU is not waited for otherwise
                limit.check(done, last)
            if config.evaluation.every and done % config.evaluation.every == 0 and not last:
                _evaluated(net, config, train_source, val_source, team, log, done)
                net.train()
            stops = team.any(interrupted())
            due = due or last or stops or done % config.run.checkpoint_every == 0
            # weights of which no loss is finite may be why: they wait for a step that shows otherwise
            if due and limit.row == 0:
                current, due = _state(net, optimiser, done, log, config, team), False

                def save(step: int = done, state: dict[str, Any] = current) -> Path:
                    check_finite(net, optimiser, step)
                    return checkpoints.write(state)

                path = _first(team, save)
                if stops and not last:
                    raise KeyboardInterrupt(f"stopped after step {done}; {path} holds it")

        result = _evaluated(net, config, train_source, val_source, team, log, config.schedule.steps)
    if result is not None:
        _leave(folder, net, result, config, train_source)
    team.wait()
    return folder


def _leave(folder: Path, net: DynamicNetwork, result: Evaluation, config: Config, train_source: Source) -> None:
    """Writes what is there at the end: model/ and eval.json, each file as a whole."""
    model = folder / "model"
    with named(model), tempfile.TemporaryDirectory(prefix=".model-", dir=folder) as made:
        try:
            net.save_pretrained(made)
        except SafetensorError as error:  # of a full disk, say
            raise OSError(f"{model}: cannot be written ({error})") from error
        save_preprocess(Path(made), normalisation(config.data), train_source.class_names)
        model.mkdir(exist_ok=True)
        for file in Path(made).iterdir():
            os.replace(file, model / file.name)
    report = {
        **result.to_json(),
        "steps": config.schedule.steps,
        "config": config.to_dict(),
        **provenance(config.run.seed),
    }
    write_whole(folder / "eval.json", json.dumps(finite(report), indent=1, allow_nan=False) + "\n")


def _evaluated(
    net: DynamicNetwork,
    config: Config,
    train_source: Source,
    val_source: Source,
    team: Team,
    log: TrainingLog,
    step: int,
) -> Evaluation | None:
    """`final_evaluation` into the log, by the first process alone: the others wait, and get its statistics."""
    result = None
    if team.leads:
        group = net.group
        net.synchronise(None)
        with _memory(f"evaluation after step {step}"):
            result = final_evaluation(net, config, train_source, val_source, team.device)
        net.synchronise(group)
        log.event(step, val_miou=result.miou, val_real_mflops=result.costs["real_mflops"])
    team.wait()
    team.share_buffers(net)
    return result


def final_evaluation(
    net: DynamicNetwork, config: Config, train_source: Source, val_source: Source, device: torch.device
) -> Evaluation:
    """Precise BatchNorm over training batches, then `evaluate` on the validation split."""
    options = config.evaluation
    if options.precise_bn_batches and net.bn != "frozen":
        stream = batches(
            train_source,
            augmentation(config.data),
            config.optimiser.batch,
            config.run.seed + STREAM_OFFSET,
            stop=options.precise_bn_batches,
            workers=config.data.workers,
        )
        precise_batchnorm(net, (images.to(device) for images, _ in stream))
    return evaluate(
        net,
        val_source,
        normalisation(config.data),
        flip=options.flip,
        scales=options.scales,
        max_images=options.max_images,
        device=device,
    )


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
    net: DynamicNetwork,
    optimiser: torch.optim.Optimizer,
    step: int,
    log: TrainingLog,
    config: Config,
    team: Team,
) -> dict[str, Any]:
    random = team.listed(random_state(team.device))
    return {
        "step": step,
        "model": net.state_dict(),
        "optimiser": optimiser.state_dict(),
        "random": random[0] if team.size == 1 else random,
        "processes": team.size,
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


def _first(team: Team, act: Callable[[], T]) -> T:
    """What the first process alone does: every process gets what comes of it, or fails as it did."""
    found: Any = None
    if team.leads:
        try:
            found = act()
        except (ConfigError, OSError) as error:
            found = error
    found = team.listed(found)[0]
    if isinstance(found, (ConfigError, OSError)):
        raise found
    return found


def _say(team: Team, lines: list[str]) -> None:
    for line in lines if team.leads else ():
        print(f"train: {line}", file=sys.stderr)


@contextmanager
def _memory(what: str) -> Iterator[None]:
    """Inside, an allocator's error that memory did not suffice is a ConfigError of one line."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "DefaultCPUAllocator" not in str(error):
            raise
        raise ConfigError(
            f"{what}: out of memory; a smaller optimiser.batch or data.crop takes less, as does a larger "
            "optimiser.accumulate"
        ) from error


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Inside, torch computes on so many threads; None: on as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _interruptible() -> Iterator[Any]:
    """Inside, the first Ctrl-C (or SIGTERM) only makes the yielded function return True; a second one acts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, note)
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
