"""What may change when a run goes on, and what a change does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dynroute.train.config import Config, ScheduleConfig
from dynroute.train.optimiser import learning_rate
from dynroute.train.parse import ConfigError

# What may differ between a run and its continuation: whole sections, or keys.
FREE = {
    "evaluation", "data.workers", "data.cache", "data.root", "schedule.steps",
    "run.folder", "run.resume", "run.device", "run.threads", "run.ops", "run.compile", "run.graph", "run.amp",
    "run.deterministic", "run.log_every", "run.checkpoint_every", "run.keep_checkpoints", "run.max_skipped",
    "optimiser.lr", "optimiser.accumulate",
}  # fmt: skip
# Why the rest may not, by section or key.
REASONS = {
    "model": "the checkpoint's weights are of another network",
    "data": "the rest of the run would see other images than its beginning",
    "train.ema": "an average is of all steps, and one of another decay cannot be made of it",
    "run": "the rest of the run would draw or compute other numbers than its beginning",
}
RECIPE = "the rest of the run would follow another recipe than its beginning"


def check_same(state: dict[str, Any], config: Config, path: Path, processes: int = 1) -> list[str]:
    """Compares the configuration of a checkpoint's `state`, at `path`, with the one to go on with, in so many
    processes.

    Returns what is to be said: lines about learning rate, schedule, type, processes and parts, where they are others.

    Raises:
        ConfigError: what may not change has; it names the field, the reason and the ways out.
    """
    saved, defaults = _as_today(state["config"]), Config().to_dict()
    for section, values in config.to_dict().items():
        for key, value in values.items():
            name = f"{section}.{key}"
            before = saved.get(section, {}).get(key, defaults[section][key])  # it may be older than the key
            if before == value or section in FREE or name in FREE:
                continue
            reason = REASONS.get(name, REASONS.get(section, RECIPE))
            raise ConfigError(
                f"{name}: the run to resume has {before!r}, got {value!r}; {reason}: keep {before!r}, or begin another "
                "run in another run.folder"
                + ("" if section == "model" else f", from a finished one's weights by model.init={path_of_model(path)}")
            )
    return [*_rate(state, config, path), *_computed(state["step"], saved, state.get("processes", 1), config, processes)]


def _as_today(saved: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's configuration with the keys of today."""
    run = dict(saved["run"])
    if "bf16" in run:
        run["amp"] = "bfloat16" if run.pop("bf16") else "off"
    return {**saved, "run": run}


def path_of_model(checkpoint: Path) -> Path:
    """Where the run of a checkpoint leaves its network at its end."""
    folder = checkpoint.parent
    return (folder.parent if folder.name == "checkpoints" else folder) / "model"


def _rate(state: dict[str, Any], config: Config, path: Path) -> list[str]:
    """What another learning rate or number of steps does. Raises ConfigError where the end lies behind the
    checkpoint."""
    step, steps, lr = state["step"], config.schedule.steps, config.optimiser.lr
    before, lr_before = state["config"]["schedule"], state["config"]["optimiser"]["lr"]
    if steps < step:
        raise ConfigError(f"schedule.steps: {path} is of step {step}, wanted {step} or more, got {steps}")
    old, new = learning_rate(step, lr_before, ScheduleConfig(**before)), learning_rate(step, lr, config.schedule)
    there = f"the learning rate there is {new:.4g} instead of {old:.4g}"
    lines = []
    if lr != lr_before:
        lines.append(f"optimiser.lr is {lr:g} instead of {lr_before:g} from step {step} on; {there}")
    if steps != before["steps"]:
        lines.append(
            f"schedule.steps is {steps} instead of {before['steps']}: from step {step} on learning rate, budget and "
            f"drop path follow the new total; {there}, and falls to 0 at step {steps}"
        )
    return lines


def _computed(step: int, saved: dict[str, Any], before: int, config: Config, processes: int) -> list[str]:
    """What another type, number of processes or of parts does; `before`: the checkpoint's processes."""
    lines = []
    amp, amp_before = config.run.amp, saved["run"].get("amp", "off")
    if amp != amp_before:
        lines.append(f"run.amp is {amp} instead of {amp_before} from step {step} on, which rounds otherwise")
    parts, parts_before = config.optimiser.accumulate, saved["optimiser"].get("accumulate", 1)
    if processes != before:
        word = "process" if processes == 1 else "processes"
        lines.append(f"{processes} {word} instead of {before}: the same images and drop paths, added in another order")
    if parts != parts_before:
        lines.append(f"optimiser.accumulate is {parts} instead of {parts_before} from step {step} on")
    if parts != parts_before or (processes != before and (parts > 1 or not config.train.sync_bn)):
        lines.append("BatchNorm and the budget see other samples together than before, so that the rest is another run")
    return lines
