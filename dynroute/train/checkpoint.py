"""The last checkpoints of a run: each is whole or not there, and from each the run goes on as if it had never stopped.

`checkpoints/step-0000500.pt` has beside it `step-0000500.json`, its manifest, which is written after it.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from dynroute.files import write_whole
from dynroute.models.weights import CONFIG, MODEL, PREPROCESS
from dynroute.train.parse import ConfigError

FOLDER = "checkpoints"
OLD = "checkpoint.pt"  # the one of runs from before there were manifests
# beside checkpoints, each as a whole
WRITTEN = ("config.yaml", "log.jsonl", "eval.json", "lock.json", "class_weights.json")
NEEDED = {"step", "model", "optimiser", "log", "config"}


class Checkpoints:
    """Those of a run's folder, of which one process at a time may write.

    Args:
        run: the run's folder.
        keep: how many of the last ones stay.
    """

    def __init__(self, run: Path, keep: int = 3) -> None:
        self.run, self.folder, self.keep = run, run / FOLDER, keep
        self._broken: list[Path] = []

    def __bool__(self) -> bool:
        """Whether there is any, be it broken; one whose writing never ended is none."""
        return any(path.name == OLD or _manifest(path).is_file() for path in self._all())

    def read(self) -> tuple[dict[str, Any], Path, list[str]]:
        """The newest one that is as it was written: what it holds, its path, and a line for whatever is to be said.

        Raises:
            ConfigError: there is none, or none that is whole.
        """
        found, lines = self._all(), []
        if not self:
            raise ConfigError(f"{self.run}: no checkpoint to resume from")
        self._broken = []
        for path in found:
            try:
                state = read_checkpoint(path)
            except (ConfigError, OSError) as error:
                lines.append(f"passed over {error}")
                self._broken.append(path)
                continue
            if path.name == OLD:
                lines.append(f"{path} has no manifest: it is of an older version, and only known to be readable")
            return state, path, lines
        raise ConfigError(f"{self.run}: none of {len(found)} checkpoints can be resumed from: {'; '.join(lines)}")

    def job(self) -> str | None:
        """The torchrun under which the newest one was written, as its manifest says; None: under none."""
        for path in self._all():
            with suppress(OSError, ValueError, AttributeError):
                return json.loads(_manifest(path).read_text(encoding="utf-8")).get("job")
        return None

    def write(self, state: dict[str, Any]) -> Path:
        """Write `state` (tensors and plain values, among them "step"; "job", as `dynroute.train.restart` has it), then
        drop what is broken or too old.

        Raises:
            OSError: it cannot be written, with its name; those that were there still are.
        """
        path = self.folder / f"step-{state['step']:07d}.pt"
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        manifest = {
            "file": path.name,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "step": state["step"],
            "job": state.get("job"),
        }
        _manifest(path).unlink(missing_ok=True)  # of a broken one of the same step
        try:
            write_whole(path, content)
            write_whole(_manifest(path), json.dumps(manifest, indent=1) + "\n")
        except OSError:
            path.unlink(missing_ok=True)
            raise
        whole = [other for other in self._all() if other not in self._broken or other == path]
        for other in {*self._broken, *whole[self.keep :]} - {path}:
            _manifest(other).unlink(missing_ok=True)
            other.unlink(missing_ok=True)
        self._broken = []
        return path

    def tidy(self, anew: bool) -> list[str]:
        """Removes what a killed process left half written; for whoever holds the run's lock.

        anew: a run begins; files without manifests, of which there may be some, are set aside, as the lines say.
        """
        partials = [*self.folder.glob(".step-*"), self.run / f"{OLD}.partial"]
        for folder, names in ((self.run, WRITTEN), (self.run / "model", (CONFIG, MODEL, PREPROCESS))):
            for name in names:
                partials += folder.glob(f".{name}.*")
        for partial in partials:
            partial.unlink(missing_ok=True)
        for partial in self.run.glob(".model-*"):
            shutil.rmtree(partial, ignore_errors=True)
        lines = []
        for path in self._all() if anew else ():
            path.replace(path.with_suffix(".unfinished"))
            lines.append(f"{path}: no manifest, its writing never ended; renamed to {path.stem}.unfinished")
        return lines

    def _all(self) -> list[Path]:
        """Newest first."""
        # a manifest alone speaks of a file that is missing
        names = {path.stem for path in self.folder.glob("step-*") if path.suffix in (".pt", ".json")}
        steps = sorted((name for name in names if name[5:].isdigit()), key=lambda name: int(name[5:]), reverse=True)
        old = self.run / OLD
        return [self.folder / f"{name}.pt" for name in steps] + ([old] if old.is_file() else [])


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, once it is what its manifest says; one of the old form has none. Runs no code of it.

    Raises:
        ConfigError: it is not whole, or its network is not finite, with the reason.
    """
    content = path.read_bytes() if path.is_file() else None
    if path.name != OLD:
        _verify(path, content)
    try:
        state = torch.load(io.BytesIO(content or b""), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch's reader makes of bytes that are no checkpoint
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{path}: broken, {len(content or b'')} bytes that torch cannot read ({reason})") from error
    missing = NEEDED - set(state) if isinstance(state, dict) else NEEDED
    if missing:
        raise ConfigError(f"{path}: no checkpoint of a run, it lacks {', '.join(sorted(missing))}")
    for name, value in state["model"].items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ConfigError(f"{path}: {name} is not finite")  # as older versions wrote it
    return state


def _verify(path: Path, content: bytes | None) -> None:
    """Raises ConfigError where the content (None: no file) is not what the manifest speaks of."""
    if not _manifest(path).is_file():
        raise ConfigError(f"{path}: it has no manifest {_manifest(path).name}, its writing never ended")
    try:
        manifest = json.loads(_manifest(path).read_text(encoding="utf-8"))
        size, digest = int(manifest["bytes"]), str(manifest["sha256"])
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}: its manifest {_manifest(path).name} is broken") from None
    if content is None:
        raise ConfigError(f"{path}: the file is missing, there is only its manifest")
    if len(content) != size:
        raise ConfigError(f"{path}: {len(content)} bytes, its manifest says {size}")
    if hashlib.sha256(content).hexdigest() != digest:
        raise ConfigError(f"{path}: its bytes have changed, their SHA-256 is not the manifest's")


def _manifest(path: Path) -> Path:
    return path.with_suffix(".json")
