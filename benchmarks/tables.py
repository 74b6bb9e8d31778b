"""Results as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.harness import OURS
from benchmarks.peers import COMPILED, EAGER, EAGER_NHWC, ONNXRUNTIME, OPENVINO, OPENVINO_BF16

GIGA = 1e-9
PEERS = {
    EAGER: "eager", EAGER_NHWC: "eager, channels_last", COMPILED: "torch.compile", ONNXRUNTIME: "ONNX Runtime",
    OPENVINO: "OpenVINO", OPENVINO_BF16: "OpenVINO, bf16",
}  # fmt: skip


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure(value: dict[str, Any], digits: int = 2) -> str:
    """Median [p10-p90]."""
    return f"{value['median']:.{digits}f} [{value['p10']:.{digits}f}-{value['p90']:.{digits}f}]"


def shape_text(shape: dict[str, Any]) -> str:
    """`N=2 C=64 128x256 chain=4` from a shape's numbers."""
    parts = [f"N={shape['n']}"] if "n" in shape else []
    if "c" in shape:
        parts.append(f"C={shape['c']}")
    if "h" in shape:
        parts.append(f"{shape['h']}x{shape['w']}")
    rest = {k: v for k, v in shape.items() if k not in ("n", "c", "h", "w")}
    parts += [f"{v:.0%} open" if k == "share" else f"{k}={v}" for k, v in rest.items()]
    return " ".join(parts)


def rates(result: dict[str, Any], machine: dict[str, Any]) -> dict[str, Any]:
    """Of ours: GFLOP/s and GB/s with their shares of the machine's, and FLOP per compulsory byte."""
    if OURS not in result.get("ms", {}):
        return {}
    seconds, out = result["ms"][OURS]["median"] * 1e-3, {}
    for key, amount, peak in (("gflops", "macs", "peak_gflops"), ("gbs", "bytes", "peak_copy_gbs")):
        if result[amount] is None:
            continue
        rate = result[amount]["value"] * (2 if amount == "macs" else 1) * GIGA / seconds
        out[key] = {"kind": "measured", "value": rate}
        if machine.get(peak):
            out[f"{key}_share_of_peak"] = {"kind": "measured", "value": rate / machine[peak]}
    if result["macs"] and result["bytes"]:
        out["flops_per_byte"] = {"kind": "computed", "value": 2 * result["macs"]["value"] / result["bytes"]["value"]}
    return out


def report(document: dict[str, Any]) -> str:
    """All tables of a results document."""
    results, machine = document["results"], document["machine"]
    parts = [_machine(document)]
    for title, make in (
        ("All open, ms per call", _all_open), ("Random routes", _routed), ("Operators", _operators),
        ("Training steps, ms", _train), ("Training steps without closed samples, ms", _train_routed),
        ("Training operators, ms", _train_ops),
        ("Bars", _bars),
    ):  # fmt: skip
        table = make(results, machine)
        if table:
            parts.append(f"### {title}\n\n{table}")
    missing = _missing(results)
    if missing:
        parts.append("### Not there\n\n" + "\n".join(f"- {line}" for line in missing))
    return "\n\n".join(parts)


def _machine(document: dict[str, Any]) -> str:
    m, where = document["machine"], document["provenance"]["machine"]

    def by_threads(by: dict[str, Any]) -> str:
        return " / ".join(f"{v['best']:.0f} ({t} thr.)" for t, v in by.items()) if "absent" not in by else "-"

    fma = ", ".join(f"{isa} {by_threads(by)}" for isa, by in m["fma_gflops"].items())
    if m.get("tile_gflops"):
        fma += f"; bfloat16 products of tiles: {by_threads(m['tile_gflops'])}, a sixth of it is float32's ceiling"
    copies = m["copy_gbs"]
    return (
        f"{where['cpu']}, {where['cores']} cores, threads: {where['threads']}, float32; medians [p10-p90].\n"
        f"Best rounds: multiply-adds on registers, GFLOP/s: {fma}; copies, GB/s read + written: "
        f"{copies['large']['best']:.1f} in memory, {copies['l2']['best']:.1f} in L2."
    )


def _all_open(results: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    rows = []
    for r in (r for r in results if r["benchmark"] in ("network.all_open", "network.stem_decoder") and "ms" in r):
        name = "" if r["benchmark"] == "network.all_open" else "stem, decoder: "
        cells = [name + shape_text(r["shape"]), figure(r["ms"][OURS], 1) if OURS in r["ms"] else "-"]
        for peer in PEERS:
            if peer not in r["ms"]:
                cells.append("-")
            else:
                ratio = f" ({r['ratios'][peer]['median']:.2f}x)" if peer in r["ratios"] else ""
                cells.append(figure(r["ms"][peer], 1) + ratio)
        rows.append(cells)
    return markdown(["", "ours", *PEERS.values()], rows) if rows else ""


def _routed(results: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    rows = []
    for r in results:
        if r["benchmark"] in ("network.routed", "network.own_gates") and "derived" in r:
            d = r["derived"]
            label = shape_text(r["shape"]) + (", own gates" if r["benchmark"] == "network.own_gates" else "")
            rows.append(
                [label, f"{d['work_share']['value']:.2f}", figure(d["time_share"]), figure(d["realised_share"])]
            )
    table = markdown(["", "work of all open", "time of all open", "realised share"], rows) if rows else ""
    mixed = [
        f"Batch with mixed routes, {shape_text(r['shape'])}: each sample by itself takes "
        f"{figure(r['ratios']['each_alone'])} times as long; "
        f"{'the same bits' if r['facts']['same_bits']['value'] else 'the outputs DIFFER'}."
        for r in results
        if r["benchmark"] == "network.mixed_batch" and "each_alone" in r.get("ratios", {})
    ]
    return "\n\n".join(filter(None, [table, *mixed]))


def _operators(results: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    rows = []
    for r in (r for r in results if r["group"] == "ops" and OURS in r.get("ms", {})):
        rate = r["rates"]

        def share(key: str, rate: dict[str, Any] = rate) -> str:
            if key not in rate:
                return "-"
            of = rate.get(f"{key}_share_of_peak")
            return f"{rate[key]['value']:.0f}" + (f" ({of['value']:.0%})" if of else "")

        intensity = f"{rate['flops_per_byte']['value']:.1f}" if "flops_per_byte" in rate else "-"
        others = [
            f"{r['ratios'][p]['median']:.2f}x" if p in r["ratios"] else "-" for p in (EAGER_NHWC, ONNXRUNTIME, OPENVINO)
        ]
        rows.append([r["benchmark"].partition(".")[2], shape_text(r["shape"]), figure(r["ms"][OURS]), share("gflops"),
                     share("gbs"), intensity, *others])  # fmt: skip
    header = [
        "",
        "",
        "ms",
        "GFLOP/s (of peak)",
        "GB/s (of copy)",
        "FLOP/byte",
        "vs eager",
        "vs ONNX Runtime",
        "vs OpenVINO",
    ]
    return markdown(header, rows) if rows else ""


def _train(results: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    rows = []
    for r in (r for r in results if r["benchmark"] == "train.step" and OURS in r.get("ms", {})):
        rate = r["rates"].get("gflops_share_of_peak")
        cells = [shape_text(r["shape"]), figure(r["ms"][OURS], 1), f"{rate['value']:.0%}" if rate else "-"]
        for peer in (EAGER_NHWC, EAGER, COMPILED):
            if peer in r["ratios"]:
                cells.append(f"{figure(r['ms'][peer], 1)} ({r['ratios'][peer]['median']:.2f}x)")
            else:
                cells.append("-")
        for name in ("saved", "peak"):
            megabytes = [f"{r['facts'][key]['value'] / 1e6:.0f}" if key in r["facts"] else "-"
                         for key in (f"{name}_bytes_{OURS}", f"{name}_bytes_{EAGER_NHWC}")]  # fmt: skip
            cells.append(" / ".join(megabytes))
        rows.append(cells)
    header = [
        "", "ours", "of the FMA peak", PEERS[EAGER_NHWC], PEERS[EAGER], PEERS[COMPILED], "MB kept, ours / eager",
        "MB at most",
    ]  # fmt: skip
    return markdown(header, rows) if rows else ""


def _train_routed(results: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    rows = []
    for r in (r for r in results if r["benchmark"] == "train.routed" and OURS in r.get("ms", {})):
        done, everything = (r["facts"][f"macs_{name}"]["value"] for name in (OURS, "all"))
        others = [f"{figure(r['ms'][bn], 1)} ({r['ratios'][bn]['median']:.2f}x)" for bn in ("frozen", "all")]
        rows.append([shape_text(r["shape"]), f"{done / everything:.2f}", figure(r["ms"][OURS], 1), *others])
    return markdown(["", "work of bn=all", "bn=open", "bn=frozen", "bn=all"], rows) if rows else ""


def _train_ops(results: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    rows = []
    for r in (r for r in results if r["group"] == "train_ops" and OURS in r.get("ms", {})):
        shape = {key: value for key, value in r["shape"].items() if key not in ("scale", "backward")}
        direction = {True: ", backward", False: ", forward"}.get(r["shape"].get("backward"), "")
        eager = f"{figure(r['ms'][EAGER_NHWC])} ({r['ratios'][EAGER_NHWC]['median']:.2f}x)"
        rows.append(
            [r["benchmark"].removeprefix("train_ops.") + direction, shape_text(shape), figure(r["ms"][OURS]), eager]
        )
    return markdown(["", "", "ours", PEERS[EAGER_NHWC]], rows) if rows else ""


def _bars(results: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    rows = []
    for r in results:
        if r["group"] == "check":
            continue
        for b in r["bars"]:
            sign = ">=" if b["at_least"] else "<="
            where, wanted = f"{r['benchmark']} {shape_text(r['shape'])}", f"{sign} {_short(b['wanted'])}"
            rows.append([where, b["name"], wanted, _short(b["got"]), "hit" if b["hit"] else "missed"])
    checks = [(b, r) for r in results if r["group"] == "check" for b in r["bars"]]
    if checks:
        worst, at = min(checks, key=lambda pair: pair[0]["got"])
        rows.append([f"check: {len(checks)} operators and shapes, C >= 32; worst: {at['benchmark'].partition('.')[2]} "
                     f"{shape_text(at['shape'])}", worst["name"], f">= {worst['wanted']:g}", _short(worst["got"]),
                     "hit" if all(b["hit"] for b, _ in checks) else
                     f"missed by {sum(not b['hit'] for b, _ in checks)}"])  # fmt: skip
    return markdown(["", "bar", "wanted", "got", ""], rows) if rows else ""


def _short(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:,.0f}"


def _missing(results: list[dict[str, Any]]) -> list[str]:
    """One line per reason, as most are the same for many shapes."""
    by_reason: dict[tuple[str, str, str], int] = {}
    for r in results:
        for name, reason in r["absent"].items():
            key = (r["benchmark"], name, reason)
            by_reason[key] = by_reason.get(key, 0) + 1
        if "error" in r:
            key = (f"{r['benchmark']} {shape_text(r['shape'])}", "all", r["error"])
            by_reason[key] = by_reason.get(key, 0) + 1
    return [f"{b}, {n}{f' ({times} shapes)' if times > 1 else ''}: {why}" for (b, n, why), times in by_reason.items()]
