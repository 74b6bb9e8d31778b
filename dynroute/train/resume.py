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
    "run.folder", "run.device", "run.threads", "run.ops", "run.compile", "run.graph", "run.log_every",
    "run.checkpoint_every", "run.keep_checkpoints", "run.max_skipped",
}  # fmt: skip
# Why the rest may not, by section.
REASONS = {
    "model": "the checkpoint's weights are of another network",
    "data": "the rest of the run would see other images than its beginning",
    "run": "the rest of the run would draw or compute other numbers than its beginning",
}
RECIPE = "the rest of the run would follow another recipe than its beginning"


def check_same(state: dict[str, Any], config: Config, path: Path) -> list[str]:
    """Compares the configuration of a checkpoint's `state`, at `path`, with the one to go on with.

    Returns what is to be said: lines about the schedule, where it is another.

    Raises:
        ConfigError: what may not change has; it names the field, the reason and the ways out.
    """
    saved, defaults = state["config"], Config().to_dict()
    for section, values in config.to_dict().items():
        for key, value in values.items():
            name = f"{section}.{key}"
            before = saved.get(section, {}).get(key, defaults[section][key])  # it may be older than the key
            if before == value or section in FREE or name in FREE:
                continue
            raise ConfigError(
                f"{name}: the run to resume has {before!r}, got {value!r}; {REASONS.get(section, RECIPE)}: keep "
                f"{before!r}, or begin another run in another run.folder"
                + ("" if section == "model" else f", from a finished one's weights by model.init={path_of_model(path)}")
            )
    return _schedule(state, config, path)


def path_of_model(checkpoint: Path) -> Path:
    """Where the run of a checkpoint leaves its network at its end."""
    folder = checkpoint.parent
    return (folder.parent if folder.name == "checkpoints" else folder) / "model"


def _schedule(state: dict[str, Any], config: Config, path: Path) -> list[str]:
    """What another number of steps does. Raises ConfigError where it lies behind the checkpoint."""
    step, steps = state["step"], config.schedule.steps
    before = state["config"]["schedule"]
    if steps < step:
        raise ConfigError(f"schedule.steps: {path} is of step {step}, wanted {step} or more, got {steps}")
    if steps == before["steps"]:
        return []
    old, new = (
        learning_rate(step, config.optimiser.lr, schedule) for schedule in (ScheduleConfig(**before), config.schedule)
    )
    return [
        f"schedule.steps is {steps} instead of {before['steps']}: from step {step} on learning rate, budget and drop "
        f"path follow the new total; the learning rate there is {new:.4g} instead of {old:.4g}, and falls to 0 at "
        f"step {steps}"
    ]
