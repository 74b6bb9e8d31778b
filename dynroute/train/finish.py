"""What a run ends with, and does now and then before: its evaluation; and the network that it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from dynroute.data import Source, batches
from dynroute.files import finite, write_whole
from dynroute.measure.alarms import Alarm, of_routing
from dynroute.measure.evaluate import evaluate
from dynroute.measure.results import Evaluation
from dynroute.models.network import DynamicNetwork
from dynroute.provenance import provenance
from dynroute.train.config import Config
from dynroute.train.log import TrainingLog
from dynroute.train.optimiser import precise_batchnorm
from dynroute.train.processes import Team
from dynroute.train.setup import augmentation, normalisation
from dynroute.train.surroundings import explained

# Seeds of other streams are offset by this, so that precise BatchNorm sees other augmentations than the last steps did.
STREAM_OFFSET = 7919


def evaluated(
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
        with explained(f"evaluation after step {step}"):
            result = final_evaluation(net, config, train_source, val_source, team.device)
        net.synchronise(group)
        log.event(step, val_miou=result.miou, val_real_mflops=result.costs["real_mflops"])
        for alarm in alarms(result, net, config) if step == config.schedule.steps else ():
            log.alarm(step, "evaluation", alarm)
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


def alarms(result: Evaluation, net: DynamicNetwork, config: Config) -> list[Alarm]:
    """What the evaluation at the end says is wrong with the routing."""
    return of_routing(result.routes, result.shares, net.config, config.budget, config.data.crop)


def leave(folder: Path, net: DynamicNetwork, result: Evaluation, config: Config, train_source: Source) -> None:
    """Writes what is there at the end: model/ and eval.json, each file as a whole."""
    net.save_pretrained(folder / "model")
    report = {
        **result.to_json(),
        "alarms": [alarm.to_json() for alarm in alarms(result, net, config)],
        "steps": config.schedule.steps,
        "config": config.to_dict(),
        **provenance(config.run.seed),
    }
    write_whole(folder / "eval.json", json.dumps(finite(report), indent=1, allow_nan=False) + "\n")
