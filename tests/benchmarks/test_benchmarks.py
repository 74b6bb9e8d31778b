"""The benchmarks run at tiny shapes and their results have what tables and plots read. No times are judged."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from benchmarks import machine, ops, peers, plots, tables
from benchmarks.__main__ import run
from benchmarks.harness import KINDS, OURS, REGISTRY, Settings, plan, run_case
from dynroute.native import library

pytestmark = pytest.mark.skipif(library.why_not_loaded() is not None, reason=str(library.why_not_loaded()))


def settings(tmp_path, *names: str) -> Settings:
    return Settings(rounds=1, scale="tiny", peers=names, cache=tmp_path / "cache")


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """All benchmarks once, beside eager PyTorch."""
    small = settings(tmp_path_factory.mktemp("bench"), peers.EAGER, peers.EAGER_NHWC)
    return run(small, plan(small), probe_rounds=1)


def numbers(value):
    """Every labelled number in a results document."""
    if isinstance(value, dict):
        if "kind" in value:
            yield value
        for inner in value.values():
            yield from numbers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers(inner)


def test_every_benchmark_ran(document):
    assert {r["benchmark"] for r in document["results"]} == set(REGISTRY)
    for r in document["results"]:
        assert "error" not in r, r
        assert "ms" in r or r["facts"] or r["absent"], r
        for name, ms in r.get("ms", {}).items():
            assert 0 < ms["p10"] <= ms["median"] <= ms["p90"], (r["benchmark"], name)
        for name, error in r["errors"].items():
            assert error["value"] <= peers.F32_ERROR, (r["benchmark"], name)


def test_document_is_json_with_provenance_and_kinds(document):
    assert json.loads(json.dumps(document)) == document
    assert {"machine", "versions", "command", "commit"} <= set(document["provenance"])
    found = list(numbers(document["results"]))
    assert len(found) > 50
    assert {value["kind"] for value in found} <= set(KINDS)


def test_results_hold_what_is_compared(document):
    by_name = {r["benchmark"]: r for r in document["results"]}
    network = by_name["network.all_open"]
    assert set(network["ms"]) == {OURS, peers.EAGER, peers.EAGER_NHWC}
    assert set(network["absent"]) == {peers.COMPILED, peers.ONNXRUNTIME, peers.OPENVINO, peers.OPENVINO_BF16}
    assert network["macs"]["kind"] == "counted" and network["macs"]["value"] > 0
    routed = by_name["network.routed"]["derived"]
    assert 0 < routed["work_share"]["value"] < 1 and routed["realised_share"]["median"] > 0
    assert by_name["network.mixed_batch"]["facts"]["same_bits"]["value"] is True
    memory = by_name["memory.steady_state"]["facts"]
    assert memory["engine_bytes_beside_outputs"]["value"] == 0
    assert memory["eager_peak_bytes"]["value"] > 0
    assert by_name["ops.cell"]["rates"]["flops_per_byte"]["value"] > 1
    assert by_name["check.cell"]["bars"][0]["name"] == f"{peers.EAGER_NHWC} / {OURS}"


def test_tables_and_plots(document, tmp_path):
    text = tables.report(document)
    for heading in ("All open", "Random routes", "Operators", "Bars", "Not there"):
        assert f"### {heading}" in text
    assert {path.name for path in plots.draw(document, tmp_path)} == {"time_against_work_n2.png", "roofline.png"}


@pytest.mark.parametrize("name", [peers.ONNXRUNTIME, peers.OPENVINO])
def test_exported_cell(name, tmp_path):
    reason = peers._why_not(name)
    if reason:
        pytest.skip(reason)
    result = run_case(REGISTRY["ops.cell"], {"n": 2, "c": 32, "h": 16, "w": 16, "chain": 2}, settings(tmp_path, name))
    assert name in result["ms"], result["absent"]


def test_a_wrong_peer_gets_no_time():
    found = peers.Peers()
    wanted = torch.tensor([1.0, 2.0])
    peers.admit(found, "right", lambda: wanted * (1 + 1e-6), wanted)
    peers.admit(found, "wrong", lambda: wanted * 1.001, wanted)
    peers.admit(found, "nan", lambda: wanted * float("nan"), wanted)
    assert set(found.jobs) == {"right"}
    assert set(found.absent) == {"wrong", "nan"} and found.errors["wrong"] > peers.F32_ERROR


def test_a_peer_that_is_not_installed_is_said_to_be(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "openvino", None)
    found = peers.make_peers(torch.nn.ReLU(), torch.ones(1, 1, 2, 2), torch.ones(1), settings(tmp_path, peers.OPENVINO))
    assert not found.jobs and found.absent[peers.OPENVINO].startswith("not installed: ")
    assert found.absent[peers.EAGER] == "not asked for"


def test_only_names_that_exist():
    assert {b.name for b, _ in plan(Settings(scale="tiny"), ["check"])} == {n for n in REGISTRY if "check" in n}
    with pytest.raises(ValueError, match="--only nothing"):
        plan(Settings(), ["nothing"])


def test_fma_flops_counts_and_refuses():
    flops = torch.ops.dynroute.fma_flops("portable", 10)
    assert flops > 0 and torch.ops.dynroute.fma_flops("portable", 20) == 2 * flops
    with pytest.raises(RuntimeError, match="isa: wanted one of"):
        torch.ops.dynroute.fma_flops("sse", 10)
    with pytest.raises(RuntimeError, match="iterations"):
        torch.ops.dynroute.fma_flops("portable", 0)
    assert machine.l2_bytes() > 0


def test_tile_flops_counts_and_refuses():
    with pytest.raises(RuntimeError, match="has no tiles"):
        torch.ops.dynroute.tile_flops("portable", 10)
    if library.build_info()["isa"] == "amx":
        flops = torch.ops.dynroute.tile_flops("amx", 10)
        assert flops > 0 and torch.ops.dynroute.tile_flops("amx", 20) == 2 * flops
        found = machine.probe(rounds=2)
        assert found["peak_gflops"] == found["tile_gflops"][str(found["threads"])]["best"] / 6


def test_operators_know_their_work():
    case = ops.cell(Settings(peers=()), n=1, c=32, h=8, w=8, chain=1)
    assert case.macs == {"kind": "counted", "value": 2 * 8 * 8 * 32 * (32 + 9)}
