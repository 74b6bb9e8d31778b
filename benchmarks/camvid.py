"""CamVid without and with a budget: trains what is not trained yet, evaluates, times, and writes one JSON file.

    python benchmarks/camvid.py --data /data/camvid [--runs runs] [--json benchmarks/results/camvid.json]

--data holds images/{train,val} and masks/{train,val}.  A run folder that is already there is taken as it is, so runs
trained by `dynroute train camvid ...` and `dynroute train camvid_budget ...` are evaluated and timed without training
again.  mIoU and work are over the whole validation split through the runtime; times are of its first 8 images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dynroute.cli.common import print_table, write_json
from dynroute.cli.target import data_images, load_target, open_data
from dynroute.cost import space_macs
from dynroute.measure import evaluate
from dynroute.measure.bench import IMAGES, bench
from dynroute.measure.opened import open_model
from dynroute.measure.results import RouteTimes
from dynroute.measure.verdict import pays
from dynroute.train import load_config, train
from dynroute.train.checkpoint import Checkpoints

RUNS = {"unbudgeted": ("camvid", "camvid"), "budgeted": ("camvid_budget", "camvid_budget")}
BATCHES = [1, 8]
GIGA = 1e-9


def one_run(config_name: str, folder: Path, data: str, repeats: int) -> dict[str, Any]:
    """Everything the table needs about one run."""
    settings = [f"data.root={json.dumps(data)}", f"run.folder={json.dumps(str(folder))}"]
    if not (folder / "model").is_dir():
        train(load_config(config_name, settings), resume=bool(Checkpoints(folder)))
    target = load_target(str(folder))
    model = open_model(target.net, "auto")
    source = open_data(target, data, "val")
    with tqdm(total=len(source), desc=f"eval {folder.name}", unit="image", delay=2) as bar:
        quality = evaluate(model, source, target.normalise, each=lambda done, _: bar.update(done - bar.n))
    timing = bench(target.net, target.label, data_images(target, data, "val", IMAGES), BATCHES, repeats)
    work = model.all_open_work(*timing.results[0].size)
    assert work is not None
    total, nodes = work
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {
        "train_command": f"dynroute train {config_name} --set data.root={data} --run {folder}",
        "steps": max(r["step"] for r in records),
        "train_seconds": max(r.get("seconds", 0.0) for r in records),
        "seed": load_config(folder / "config.yaml").run.seed,
        "config": load_config(folder / "config.yaml").to_dict(),
        "miou": quality.miou,
        "pixel_accuracy": quality.pixel_accuracy,
        "iou": quality.iou,
        "images": quality.images,
        "gmacs": {
            "expected_space": {"kind": "computed", "value": quality.costs["expected_mflops"] / 1e3},
            "real_paper": {"kind": "computed", "value": quality.costs["real_mflops"] / 1e3},
            "executed_space": {"kind": "counted", "value": quality.costs["executed_space_macs"] * GIGA},
            "executed_total": {"kind": "counted", "value": quality.costs["executed_macs"] * GIGA},
            "all_open_expected_space": {"kind": "computed", "value": quality.costs["all_open_expected_mflops"] / 1e3},
            "all_open_real_paper": {"kind": "computed", "value": quality.costs["all_open_real_mflops"] / 1e3},
            "all_open_executed_space": {
                "kind": "counted",
                "value": int(space_macs(nodes)) * GIGA,
            },
            "all_open_executed_total": {"kind": "counted", "value": total * GIGA},
        },
        "timing": {"kind": "measured", **timing.to_json()},
    }


def rows(results: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """The table of docs/results/camvid.md."""
    runs = list(results.values())

    def line(label: str, get: Any) -> tuple[str, ...]:
        return (label, *(get(run) for run in runs))

    out = [
        line("mIoU on val, %", lambda r: f"{100 * r['miou']:.1f}"),
        line("expected GMACs, space (computed)", lambda r: f"{r['gmacs']['expected_space']['value']:.3f}"),
        line("real GMACs as the paper counts (computed)", lambda r: f"{r['gmacs']['real_paper']['value']:.3f}"),
        line("executed GMACs, space (counted)", lambda r: f"{r['gmacs']['executed_space']['value']:.3f}"),
        line("executed GMACs, total (counted)", lambda r: f"{r['gmacs']['executed_total']['value']:.3f}"),
    ]
    for i, batch in enumerate(BATCHES):

        def ms(run: dict[str, Any], which: str, i: int = i) -> str:
            t = run["timing"]["results"][i]["ms_per_image"][which]
            return f"{t['median']:.2f} [{t['p10']:.2f}-{t['p90']:.2f}]"

        for which, name in (("eager", "eager PyTorch"), ("all_open", "all open"), ("routed", "routed")):
            out.append(line(f"ms per image, batch {batch}, {name} (measured)", lambda r, w=which, f=ms: f(r, w)))
        out.append(
            line(
                f"realised share, batch {batch} (measured)",
                lambda r, i=i: _realised(RouteTimes.from_json(r["timing"]["results"][i])),
            )
        )
    return out


def _realised(row: RouteTimes) -> str:
    return f"{row.realised_share:.2f}" if pays(row) else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the data set's folder")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run folders are (default: runs)")
    parser.add_argument("--repeats", type=int, default=21, help="rounds of timing (default: 21)")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/camvid.json"))
    parser.add_argument("--note", default="", help="how the runs were made, where that is not the commands' own way")
    args = parser.parse_args()
    results = {
        name: one_run(config, args.runs / folder, args.data, args.repeats) for name, (config, folder) in RUNS.items()
    }
    base, lean = (results[name] for name in ("unbudgeted", "budgeted"))
    ratios = {
        key: lean["gmacs"][f"executed_{key}"]["value"] / base["gmacs"][f"executed_{key}"]["value"]
        for key in ("space", "total")
    }
    print_table(("", *results), rows(results))
    print(
        f"\nexecuted work, budgeted over unbudgeted: {ratios['space']:.2f} of the space, {ratios['total']:.2f} of all"
    )
    args.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.json, {"note": args.note, "seeds": 1, "executed_ratio": ratios, "runs": results})


if __name__ == "__main__":
    main()
