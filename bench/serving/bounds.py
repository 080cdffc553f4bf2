"""The bounds of the engine, checked on what one run measured: ratios, so that the machine does not matter much."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

FRAMEWORKS = ("mlserver", "kserve", "bentoml", "litserve", "ray", "ray-default")
MEMORY_MB, BOOT_S = 80.0, 2.0


@dataclass(frozen=True)
class Bound:
    """`measured` is nan when something that it needs was not measured in this run."""

    text: str
    limit: float
    measured: float
    at_least: bool = False
    unit: str = "x"

    def line(self) -> str:
        sign, measured = (">=" if self.at_least else "<="), f"{self.measured:.2f} {self.unit}"
        held = self.measured >= self.limit if self.at_least else self.measured <= self.limit
        verdict = "ok" if held else "**missed**"
        if math.isnan(self.measured):
            measured, verdict = "-", "not measured"
        return f"| {self.text} | {sign} {self.limit:g} {self.unit} | {measured} | {verdict} |"


def table(bounds: list[Bound]) -> str:
    return "\n".join(["| bound | limit | measured | |", "|---|---|---|---|", *(bound.line() for bound in bounds)])


def check(result: dict[str, Any]) -> list[Bound]:
    """Every bound on cost, memory and start, from the result of one run."""

    def cpu(server: str, model: str, rows: int, protocol: str) -> float:
        found = [
            row["cpu_us"] for row in result["rows"]
            if (row["server"], row["model"], row["rows"], row["connections"], row["protocol"])
            == (server, model, rows, 64, protocol) and "cpu_us" in row
        ]  # fmt: skip
        return found[0] if found else math.nan

    def alone(model: str, rows: int) -> float:
        return result["alone"].get(f"{model}:{rows}", math.nan)

    one, many, tiny = (cpu("millstream", *case, "binary") for case in (("deepfm", 1), ("deepfm", 100), ("tiny", 1)))
    echoes = [cpu(name, "deepfm", 1, "grpc") for name in ("echo-sync", "echo-aio")]
    echo = min((figure for figure in echoes if not math.isnan(figure)), default=math.nan)
    grpc = cpu("millstream", "deepfm", 1, "grpc")
    model = alone("deepfm", 32) / 32
    memory = result["memory"].get("millstream", math.nan) - result["model_mb"]
    bounds = [
        Bound(
            "HTTP binary, 1 row, 64 connections, of the floor's CPU", 1.25, one / cpu("floor", "deepfm", 1, "binary")
        ),
        Bound("HTTP binary, 100 rows, of ONNX Runtime alone", 1.05, many / alone("deepfm", 100)),
        Bound("tiny model, of the floor's CPU", 1.3, tiny / cpu("floor", "tiny", 1, "binary")),
        Bound("gRPC, 1 row, of the cheaper raw echo + a row's share of a batch of 32", 1.15, grpc / (echo + model)),
        Bound("memory over the model's file", MEMORY_MB, memory, unit="MB"),
        Bound("start to the first answer", BOOT_S, result["boot_s"].get("millstream", math.nan), unit="s"),
    ]
    ours = costs(result, "millstream")
    for name in FRAMEWORKS:
        theirs = costs(result, name)
        if not theirs or not ours:
            bounds.append(Bound(f"{name}'s CPU of ours, 1 row", 10.0, math.nan, at_least=True))
            continue
        same = ", ".join(f"{key} {theirs[key] / ours[key]:.1f} x" for key in theirs if key in ours)
        text = f"{name}'s CPU of ours, 1 row, each in its cheapest protocol (in the same one: {same})"
        bounds.append(Bound(text, 10.0, min(theirs.values()) / min(ours.values()), at_least=True))
    return bounds


def costs(result: dict[str, Any], server: str) -> dict[str, float]:
    """CPU of one row at 64 connections by protocol; BentoML's matrix is JSON."""
    return {
        {"matrix": "json"}.get(row["protocol"], row["protocol"]): row["cpu_us"] for row in result["rows"]
        if (row["server"], row["model"], row["rows"], row["connections"]) == (server, "deepfm", 1, 64)
        and "cpu_us" in row
    }  # fmt: skip
