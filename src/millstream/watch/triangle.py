"""What a version gives and takes: latency, throughput and resources beside each other, and what a million answers cost.

Rules of the room:
- All of it is counted anyway, by every process that answers, since the version was loaded there for the first time.
- Every runtime computes a batch in one thread, so the seconds that batches took are core seconds, waiting for a busy
  core or for a GPU included; on a GPU they are GPU seconds, too. Reading and writing requests, features and lists are
  not in it: `millstream capacity` measures the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from millstream.meter import quantile

_HOUR_S = 3600.0


class Triangle(msgspec.Struct, frozen=True, kw_only=True):
    """One version. `answers`: without failed ones; `p50_ms`, `p99_ms`: from submit to the end of the batch, 0 where
    nothing was computed; `core_s`: what all of them took, `answers_a_core_s`: how many a core gives in a second of
    computing; `gpu_s`: as `core_s`, 0 without a GPU; bytes: of memory, as loading and warming took them, in all
    processes; `cost_per_million`: answers, in the unit of the prices."""

    model: str
    version: str
    answers: float
    p50_ms: float
    p99_ms: float
    core_s: float
    answers_a_core_s: float
    gpu_s: float
    memory_bytes: float
    device_bytes: float
    cost_per_million: float


def triangle(
    totals: Mapping[str, Mapping[str, Any]], core_hour_price: float = 0.0, gpu_hour_price: float = 0.0
) -> list[Triangle]:
    """Every version that `totals` (of `Meter.total`) knows, by model and version; without requests it has zeros. Prices
    are of an hour."""
    found: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for series in totals.values():
        labels = series["labels"]
        if set(labels) == {"model", "version"}:
            found.setdefault((labels["model"], labels["version"]), {})[series["name"]] = series
    made = [
        _triangle(model, version, series, core_hour_price, gpu_hour_price)
        for (model, version), series in found.items()
        if "millstream_requests_total" in series
    ]
    return sorted(made, key=lambda one: (one.model, _order(one.version)))


def _triangle(
    model: str, version: str, series: Mapping[str, Mapping[str, Any]], core_price: float, gpu_price: float
) -> Triangle:
    def number(name: str) -> float:
        return float(series[f"millstream_{name}"]["values"][0]) if f"millstream_{name}" in series else 0.0

    answers = max(0.0, number("requests_total") - number("failures_total"))
    compute, whole = series.get("millstream_compute_seconds"), series.get("millstream_answer_seconds")
    core_s = float(compute["values"][-1]) if compute else 0.0
    p50, p99 = (quantile(tuple(whole["bounds"]), whole["values"][:-1], q) * 1e3 if whole else 0.0 for q in (0.5, 0.99))
    device = number("device_bytes")
    gpu_s = core_s if device else 0.0
    cost = (core_s * core_price + gpu_s * gpu_price) / _HOUR_S
    return Triangle(
        model=model,
        version=version,
        answers=answers,
        p50_ms=p50,
        p99_ms=p99,
        core_s=core_s,
        answers_a_core_s=answers / core_s if core_s > 0 else 0.0,
        gpu_s=gpu_s,
        memory_bytes=number("memory_bytes"),
        device_bytes=device,
        cost_per_million=cost / answers * 1e6 if answers else 0.0,
    )


def _order(version: str) -> tuple[int, str]:
    return (int(version) if version.isdecimal() else 0, version)
