"""The published implementation's results: which files there are, and how they are loaded and compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import dynroute
from tests.goldens.seeded import batch, seeded_state

FOLDERS = [Path(__file__).parents[1] / "goldens"]
SHARED = Path(__file__).parents[3] / "shared" / "goldens"
if SHARED.is_dir():
    FOLDERS.append(SHARED)
CASES = [p for folder in FOLDERS for p in sorted(folder.glob("*.npz"))]
IDS = [f"{p.parts[-3]}-{p.stem}" for p in CASES]


def load(path: Path):
    info = json.loads(path.with_suffix(".json").read_text())
    state = seeded_state(info["shapes"], info["seed"], info["gate_shift"])
    net = dynroute.load_official({"model": state}, small_gate=info.get("small_gate", False))
    return info, np.load(path), net, batch(info["seed"], info["batch"], info["size"])


def check_eval(out, golden) -> None:
    stride = int(golden["stride"])
    logits = out.logits[:, :, ::stride, ::stride].numpy()
    assert np.abs(logits - golden["logits"]).max() <= 1e-4 * np.abs(golden["logits"]).max()
    np.testing.assert_allclose(out.expected_mflops.numpy(), golden["expected_mflops"], rtol=1e-5)
    np.testing.assert_allclose(out.real_mflops.numpy(), golden["real_mflops"], rtol=1e-5)


EVAL = [(c, i) for c, i in zip(CASES, IDS) if "train" not in c.stem]
TRAIN = [(c, i) for c, i in zip(CASES, IDS) if "train" in c.stem]
