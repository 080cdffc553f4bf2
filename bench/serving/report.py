"""What one run measured, as markdown and as a picture."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import bounds
from environments import ROOT
from servers import entries

# From the project's notes of an earlier run on a quiet machine of the same kind: no package has this server.
QUOTED = {
    ("deepfm", 1): ("15-19", (("binary", "29-38"), ("grpc", "41-78"))),
    ("deepfm", 100): ("493-647", (("binary", "509-522"), ("grpc", "520-594"))),
}
QUOTED_NAME = "Triton C++, ONNX backend: quoted, not re-measured; the floor was"
SHOWN = {"matrix": "JSON", "json": "JSON", "binary": "binary", "grpc": "gRPC"}
COLOURS = {"binary": "#2f6f9f", "json": "#c98a2b", "matrix": "#c98a2b", "grpc": "#5b8c5a"}


def machine() -> str:
    name = platform.machine()
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    return f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"


def titles() -> dict[str, str]:
    return {entry.name: entry.title for entry in entries()}


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"CPU microseconds of the server's whole process tree per request, in a closed loop; medians of "
        f"{result['repeats']} windows of {result['seconds']:g} s (the bounds' cases: {result['decisive_repeats']}).",
        f"ONNX Runtime {result['runtime']}, one instance, one thread, everywhere. {result['machine']}.",
        "",
        "## Bounds",
        "",
        bounds.table(bounds.check(result)),
    ]
    names = titles()
    cases = dict.fromkeys((row["model"], row["rows"], row["connections"]) for row in result["rows"])
    for case in cases:
        lines += ["", *_case(result, case, names)]
    if result["failed"]:
        lines += ["", "## Not measured", "", "| server | why |", "|---|---|"]
        lines += [f"| {names[name]} | {_cell(why)} |" for name, why in result["failed"].items()]
    if result.get("plot"):
        lines += ["", f"![CPU of one-row requests]({result['plot']})"]
    return "\n".join(lines)


def _case(result: dict[str, Any], case: tuple[str, int, int], names: dict[str, str]) -> list[str]:
    model, rows, connections = case
    lines = [
        f"## {model}, {rows} row{'s' * (rows > 1)}, {connections} connection{'s' * (connections > 1)}",
        "",
        "| server | protocol | CPU us | of the floor | requests/s | p50 ms | p99 ms | MB | boot s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    found = [row for row in result["rows"] if (row["model"], row["rows"], row["connections"]) == case]
    floor = {row["protocol"]: row["cpu_us"] for row in found if row["server"] == "floor" and "cpu_us" in row}
    base = floor.get("binary")
    shown: list[tuple[float, str]] = []
    for row in found:
        name = f"| {names[row['server']]} | {SHOWN[row['protocol']]} |"
        if "cpu_us" not in row:
            shown.append((float("inf"), f"{name} {_cell(row['error'])} | | | | | | |"))
            continue
        ratio = f"{row['cpu_us'] / base:.2f}" if base else "-"
        boot = result["boot_s"].get(row["server"], float("nan"))
        shown.append((
            row["cpu_us"],
            f"{name} {row['cpu_us']:.1f} | {ratio} | {row['requests_s']:.0f} | {row['p50_ms']:.2f} | "
            f"{row['p99_ms']:.2f} | {row['memory_mb']:.0f} | {boot:.1f} |",
        ))  # fmt: skip
    alone = result["alone"].get(f"{model}:{rows}")
    if alone:
        shown.append((alone, f"| ONNX Runtime alone, no server | - | {alone:.1f} | | | | | | |"))
    lines += [line for _, line in sorted(shown, key=lambda one: one[0])]
    then, quoted = QUOTED.get((model, rows), ("", ())) if connections == 64 else ("", ())
    return lines + [
        f"| {QUOTED_NAME} {then} | {SHOWN[protocol]} | {figure} | | | | | | |" for protocol, figure in quoted
    ]


def _cell(text: str) -> str:
    """One line that fits a table, without this machine's folders."""
    for folder, name in ((ROOT, "."), (Path.home(), "~")):
        text = text.replace(str(folder), name)
    return " ".join(text.split()).replace("|", "/")[-400:]


def plot(result: dict[str, Any], path: Path) -> bool:
    """A bar a server and protocol, one-row requests at 64 connections; whether there was something to draw it with."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "millstream", "font.size": 9}
    import matplotlib.pyplot as plt

    names = titles()
    rows = [
        row for row in result["rows"]
        if (row["model"], row["rows"], row["connections"]) == ("deepfm", 1, 64) and "cpu_us" in row
    ]  # fmt: skip
    rows.sort(key=lambda row: -row["cpu_us"])
    figure, axes = plt.subplots(figsize=(9, 0.28 * len(rows) + 1.2), layout="constrained")
    labels = [f"{names[row['server']]}, {SHOWN[row['protocol']]}" for row in rows]
    bars = axes.barh(labels, [row["cpu_us"] for row in rows], color=[COLOURS[row["protocol"]] for row in rows])
    axes.bar_label(bars, [f"{row['cpu_us']:.0f}" for row in rows], padding=3)
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_fontweight("bold" if row["server"] == "millstream" else "normal")
    axes.set_xscale("log")
    axes.set_xlim(left=min((row["cpu_us"] for row in rows), default=1.0) / 2)
    axes.margins(x=0.12)
    figure.supxlabel("CPU microseconds per one-row DeepFM request, 64 connections (log scale; less is better)", size=9)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)
    return True
