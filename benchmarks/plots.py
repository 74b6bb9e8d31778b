"""Results as pictures: time against work of random routes, and the roofline of the operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.peers import OPENVINO_BF16
from benchmarks.tables import PEERS

GIGA = 1e-9
COLOURS = ["#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c"]
OURS_COLOUR = "#111111"


def draw(document: dict[str, Any], folder: Path) -> list[Path]:
    """Writes what there are results for; returns the files."""
    written = []
    for n in (1, 2, 8):
        path = folder / f"time_against_work_n{n}.png"
        if time_against_work(document["results"], n, path):
            written.append(path)
    path = folder / "roofline.png"
    if roofline(document["results"], document["machine"], path):
        written.append(path)
    return written


def time_against_work(results: list[dict[str, Any]], n: int, path: Path) -> bool:
    """Every pattern's time per image against its executed work; peers, which cannot skip, as horizontal lines."""
    routed = [r for r in results if r["benchmark"] == "network.routed" and r["shape"]["n"] == n and "ms" in r]
    if not routed:
        return False
    h, w = routed[0]["shape"]["h"], routed[0]["shape"]["w"]
    points, opens = [], []
    for r in routed:
        for name, ms in r["ms"].items():
            at = (r["facts"]["work"][name]["value"] / n * GIGA, *(ms[k] / n for k in ("median", "p10", "p90")))
            (opens if name == "all_open" else points).append(at)
    figure, axes = plt.subplots(figsize=(8, 5), constrained_layout=True)
    full = np.median(np.array(opens), 0)
    axes.plot([0, full[0]], [0, full[1]], color="#999999", linestyle="--", label="ideal: in proportion to work")
    for rows, marker, label in ((points, "o", "ours, random routes"), ([tuple(full)], "D", "ours, all open")):
        x, y, low, high = np.array(rows, dtype=float).reshape(-1, 4).T
        axes.errorbar(x, y, np.stack([y - low, high - y]).clip(0), fmt=marker, color=OURS_COLOUR,
                      markersize=6 if marker == "o" else 8, elinewidth=1, capsize=2, label=label, zorder=3)  # fmt: skip
    dense = next((r for r in results if r["benchmark"] == "network.all_open" and "ms" in r
                  and (r["shape"]["n"], r["shape"]["h"], r["shape"]["w"]) == (n, h, w)), None)  # fmt: skip
    for colour, (peer, name) in zip(COLOURS, PEERS.items()):
        if dense is not None and peer in dense["ms"]:
            level = dense["ms"][peer]["median"] / n
            # in the legend, not on the line: two peers may be as fast as each other
            axes.axhline(
                level,
                color=colour,
                linewidth=1.4,
                linestyle=":" if peer == OPENVINO_BF16 else "-",
                label=f"{name}, all open ({level:.0f} ms)",
            )
    axes.set(xlim=(0, full[0] * 1.05), ylim=(0, None), xlabel="executed work per image, GMACs (counted)",
             ylabel="ms per image (measured; median, p10 to p90)",
             title=f"Time against work: L16 C=64, {h}x{w}, batch {n}, float32")  # fmt: skip
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def roofline(results: list[dict[str, Any]], machine: dict[str, Any], path: Path) -> bool:
    """GFLOP/s against FLOP per compulsory byte, under the ceilings that were measured in the same run."""
    found = [r for r in results if r["group"] == "ops" and "flops_per_byte" in r.get("rates", {})]
    if not found or not machine["peak_gflops"]:
        return False
    peak, copies = machine["peak_gflops"], machine["copy_gbs"]
    figure, axes = plt.subplots(figsize=(9, 5.2), constrained_layout=True)
    intensity = [r["rates"]["flops_per_byte"]["value"] for r in found]
    low, high = min(intensity) / 2.5, max(max(intensity) * 2, 4 * peak / copies["large"]["best"])
    x = np.geomspace(low, high, 200)
    for key, style, name in (("large", "-", "memory"), ("l2", ":", "L2")):
        rate = copies[key]["best"]
        axes.plot(x, np.minimum(peak, rate * x), style, color="#444444", linewidth=1.3,
                  label=f"{name}: {rate:.0f} GB/s copied; {peak:.0f} GFLOP/s of {machine['peak_of']}")  # fmt: skip
    bottom = min(r["rates"]["gflops"]["value"] for r in found) / 2
    by_name: dict[str, list[dict[str, Any]]] = {}
    for r in found:
        by_name.setdefault(r["benchmark"].partition(".")[2], []).append(r)
    markers = {64: "o", 128: "s", 256: "^", 512: "D"}
    for colour, (name, rows) in zip(COLOURS, by_name.items()):
        for r in rows:
            axes.plot(
                r["rates"]["flops_per_byte"]["value"], r["rates"]["gflops"]["value"], color=colour, linestyle="",
                marker=markers.get(r["shape"]["c"], "x"), markersize=8, markeredgecolor="white",
            )  # fmt: skip
        # a colour says which operator, a shape how many channels
        axes.plot([], [], color=colour, linewidth=6, label=name.replace("_", " "))
    for c, marker in markers.items():
        axes.plot([], [], color="#777777", linestyle="", marker=marker, label=f"C = {c}")
    axes.set(
        xscale="log", yscale="log", xlim=(low, high), ylim=(bottom, 1.6 * peak),
        xlabel="FLOP per compulsory byte (counted / computed)",
        ylabel=f"GFLOP/s (measured; threads: {machine['threads']})",
        title=f"Operators under the machine's ceilings ({machine['isa']})",
    )  # fmt: skip
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True
