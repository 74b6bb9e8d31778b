"""The report of a tiny run: one file, nothing from outside, a route map per image."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dynroute.cli import main

VOID = {"meta", "br", "img", "hr", "input", "link"}


class Page(HTMLParser):
    """Checks nesting and gathers tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag and kind in ["", *(attrs.get("class") or "").split()]]


def test_report_is_one_whole_file(tiny_run: Path, tmp_path: Path) -> None:
    out, record = tmp_path / "r.html", tmp_path / "r.json"
    assert main(["report", str(tiny_run), "--images", "2", "--out", str(out), "--json", str(record)]) == 0
    text = out.read_text()
    assert len(text) < 5_000_000
    page = Page(text)
    # one route map an image, and one of probabilities
    assert len(page.of("section", "image")) == 2
    assert len(page.of("svg", "routes")) == 3
    assert len(page.of("img")) == 8
    assert all((image["src"] or "").startswith("data:image/") for image in page.of("img"))
    assert len(page.of("svg", "chart")) == 4
    assert not re.search(r"https?://|src=\"(?!data:)|url\(|@import|<script|<link", text)
    for phrase in ("computed from", "counted by", "timed,", "Realised share", "mIoU", "checkers", "commit"):
        assert phrase in text
    found = json.loads(record.read_text())
    assert found["observed"] == 6 and 0 < found["real"] <= found["full_real"]


def test_report_takes_the_timings_it_finds(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = tiny_run / "bench.json"
    assert main(["bench", str(tiny_run), "--repeats", "1", "--batch", "3", "--json", str(bench)]) == 0
    monkeypatch.setattr("dynroute.cli.report.bench", lambda *_: pytest.fail("measured again"))
    out = tmp_path / "r.html"
    try:
        assert main(["report", str(tiny_run), "--images", "1", "--observe", "2", "--out", str(out)]) == 0
    finally:
        bench.unlink()
    assert "Time per image at batch 3" in out.read_text()


def test_another_run_beside(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r.html"
    command = ["report", str(tiny_run), "--images", "1", "--observe", "2", "--out", str(out), "--beside"]
    assert main([*command, str(tiny_run)]) == 0
    text = out.read_text()
    assert len(Page(text).of("svg", "chart")) == 6 and "Beside other runs" in text
    assert main([*command, str(tmp_path)]) == 1
    assert "config.yaml, log.jsonl" in capsys.readouterr().err
