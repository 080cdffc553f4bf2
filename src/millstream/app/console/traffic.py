"""What the pages Overview, Models and Traffic show, and what they do: by the repository, the counters and the tails.

Rules of the room:
- A move is made as the control API and the command line make it (`models/traffic.py`), on the policy that the page
  showed: of two people who decide at once, the second is told who was faster.
- A manifest never changes, so it is read once; policies and histories are small files and are read anew.
- How a shadow differs is counted from the last requests of which the log has both answers; counts are those of all
  processes since the shadow began.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.app.console.alerts import AlertsSeen
from millstream.app.console.counts import STREAMS, Counts
from millstream.app.console.tails import Tails
from millstream.app.installation import Installation
from millstream.console.views import (
    Change,
    GuardWord,
    Loop,
    ModelRow,
    ShadowRow,
    Share,
    Stream,
    TrafficNow,
    VersionRow,
    Well,
)
from millstream.console.views import Served as ServedModel
from millstream.meter import Meter
from millstream.models import traffic
from millstream.models.manifest import Manifest
from millstream.models.policy import Guard, Policy
from millstream.models.traffic import Move
from millstream.stream.event import decode
from millstream.types import Served, Shadow
from millstream.watch.alarms.action import undo
from millstream.watch.canary.guard import last_word
from millstream.watch.shadow import spearman
from millstream.watch.triangle import triangle

VERSIONS: Final = 40
HISTORY: Final = 20
MANIFESTS: Final = 2000
PAIRS: Final = 300
BINS: Final = 24
Floats = NDArray[np.float32]


class Models:
    """The views of models and their traffic."""

    def __init__(self, at: Installation, counts: Counts, tails: Tails, alerts: AlertsSeen) -> None:
        self._at, self._repository = at, at.repository
        self._counts, self._tails, self._alerts = counts, tails, alerts
        self._manifests: OrderedDict[tuple[str, str], tuple[Manifest, int, float]] = OrderedDict()
        self._lock = threading.Lock()

    def well(self) -> Well:
        """Whether it is well."""
        return self._alerts.well()

    def loop(self) -> Loop:
        """The loop as it stands."""
        counts = self._counts
        streams = {
            name: Stream(counts.rate(metric), counts.total(metric), counts.past(name))
            for name, metric in STREAMS.items()
        }
        models = []
        for model in self._repository.models()[:50]:
            with suppress(errors.Error):
                policy = self._repository.policy(model)
                answers = counts.rate("millstream_requests_total", {"model": model})
                learns = policy.learning if model == self._at.model else ""
                models.append(ServedModel(model, policy.live, answers, learns))
        return Loop(
            well=self.well(),
            streams=streams,
            models=models,
            answer_p50_s=counts.quantile("millstream_answer_seconds", 0.5),
            answer_p99_s=counts.quantile("millstream_answer_seconds", 0.99),
            staleness_s=counts.quantile("millstream_staleness_seconds", 0.5),
            processes=counts.processes,
            firing=self._alerts.firing(),
        )

    def names(self) -> list[str]:
        """The models that there are."""
        return self._repository.models()

    def models(self) -> list[ModelRow]:
        """Every model."""
        costs = self._costs()
        return [self._model(model, costs) for model in self.names()]

    def _costs(self) -> dict[tuple[str, str], float]:
        """Of a million answers of each version; none where no price is set."""
        settings = self._at.settings.watch
        prices = settings.core_hour_price, settings.gpu_hour_price
        if not any(prices):
            return {}
        totals = Meter.reading(self._at.folder / "state" / "meters").total()
        return {(one.model, one.version): one.cost_per_million for one in triangle(totals, *prices)}

    def _model(self, model: str, costs: Mapping[tuple[str, str], float]) -> ModelRow:
        try:
            policy = self._repository.policy(model)
        except errors.Error as error:
            return ModelRow(
                model=model, policy=0, live="", learning="", paused_by="", paused_why="", pin="", pinned_by="",
                previous="", versions=[], more=0, problem=str(error),
            )  # fmt: skip
        versions, named = self._repository.versions(model), policy.named()
        listed = [one for one in versions if one in named or one in versions[-VERSIONS:]][::-1]
        before = ""
        with suppress(errors.Error):
            before = traffic.previous(self._repository, model, policy)
        return ModelRow(
            model=model,
            policy=policy.version,
            live=policy.live,
            learning=policy.learning if model == self._at.model else "",
            paused_by=policy.paused_by,
            paused_why=policy.paused_why,
            pin=policy.pin,
            pinned_by=policy.pinned_by,
            previous=before,
            versions=[self._version(model, one, named.get(one, ""), costs.get((model, one), 0.0)) for one in listed],
            more=len(versions) - len(listed),
        )

    def _version(self, model: str, version: str, role: str, cost: float) -> VersionRow:
        manifest, size, put = self._manifest(model, version)
        labels, counts = {"model": model, "version": version}, self._counts
        rows = counts.count("millstream_rows_total", labels)
        computed = counts.grew("millstream_compute_seconds", labels)
        lineage = {} if manifest is None else {name: str(value)[:200] for name, value in manifest.lineage.items()}
        return VersionRow(
            version=version,
            role=role,
            format=manifest.format if manifest else "",
            size_bytes=size,
            put=put,
            parent=lineage.get("parent", ""),
            lineage=lineage,
            requests=counts.rate("millstream_requests_total", labels),
            p50_s=counts.quantile("millstream_answer_seconds", 0.5, labels),
            p99_s=counts.quantile("millstream_answer_seconds", 0.99, labels),
            compute_s=float(f"{computed / rows * 1000:.3g}") if rows else math.nan,
            memory_bytes=counts.total("millstream_memory_bytes", labels),
            cost=float(f"{cost:.3g}"),
        )

    def _manifest(self, model: str, version: str) -> tuple[Manifest | None, int, float]:
        """(manifest, bytes of the files, when it was put) of a version; read once."""
        with self._lock:
            if (known := self._manifests.get((model, version))) is not None:
                self._manifests.move_to_end((model, version))
                return known
        try:
            manifest, folder = self._repository.manifest(model, version), self._repository.folder(model, version)
            size = sum((folder / name).stat().st_size for name in self._repository.files(model, version))
            found = manifest, size, folder.stat().st_mtime
        except (errors.Error, OSError):
            return None, 0, 0.0
        with self._lock:
            self._manifests[model, version] = found
            while len(self._manifests) > MANIFESTS:
                self._manifests.popitem(last=False)
        return found

    def traffic(self, model: str) -> TrafficNow:
        """Who gets which version."""
        problem = ""
        try:
            policy = self._repository.policy(model)
        except errors.Misconfigured as error:
            if (last := self._repository.last_usable(model)) is None:
                raise
            policy, problem = last, str(error)
        word = last_word(self._repository, model) if policy.canary and policy.canary.guard else None
        return TrafficNow(
            model=model,
            policy=policy.version,
            versions=self._repository.versions(model)[::-1][:VERSIONS],
            live=policy.live,
            sticky_by=policy.sticky_by,
            shares=self._shares(model, policy),
            guard=GuardWord(word.canary, word.said, word.when, word.requests, word.beside) if word else None,
            shadows=[self._shadow(model, version) for version in policy.shadow],
            history=changes(self._repository.history(model, HISTORY + 1)),
            problem=problem,
        )

    def _shares(self, model: str, policy: Policy) -> list[Share]:
        due = shares(policy)
        rates = {
            version: self._counts.rate("millstream_requests_total", {"model": model, "version": version})
            for version in due
        }
        total, named = sum(rates.values()), policy.named()
        return [
            Share(version, named.get(version, ""), part, round(rates[version] / total, 3) if total else math.nan)
            for version, part in due.items()
        ]

    def _shadow(self, model: str, version: str) -> ShadowRow:
        labels, counts = {"model": model, "version": version}, self._counts
        both = list(self._both(model, version))
        pairs = np.array([pair for a, b in both for pair in zip(a.tolist(), b.tolist(), strict=True)], np.float64)
        pairs = pairs[np.isfinite(pairs).all(1)] if len(pairs) else pairs.reshape(0, 2)
        ranks = [
            found for a, b in both if len(a) >= 3 and (found := spearman(a.astype("f8"), b.astype("f8"))) is not None
        ]
        bins, edges = _histogram(pairs[:, 1] - pairs[:, 0])
        few = pairs[:: max(1, len(pairs) // PAIRS)][:PAIRS]
        return ShadowRow(
            version=version,
            copies=int(counts.total("millstream_shadow_total", labels)),
            lost=int(counts.total("millstream_shadow_lost_total", labels)),
            compared=int(counts.total("millstream_shadow_compared_total", labels)),
            differing=int(counts.total("millstream_shadow_differs_total", labels)),
            requests=len(both),
            pairs=[(round(a, 5), round(b, 5)) for a, b in few.tolist()],
            edges=edges,
            bins=bins,
            rank=round(float(np.mean(ranks)), 4) if ranks else math.nan,
            apart=float(f"{np.abs(pairs[:, 1] - pairs[:, 0]).mean():.3g}") if len(pairs) else math.nan,
        )

    def _both(self, model: str, version: str) -> Iterable[tuple[Floats, Floats]]:
        """The scores of live and shadow, of the last requests that have both."""
        said: dict[str, Floats] = {}
        for record in self._tails.latest("shadow"):
            event = _decoded(record.value)
            if isinstance(event, Shadow) and event.model == model and event.version.partition("@")[0] == version:
                said[event.request] = np.frombuffer(event.scores, "<f4")
        for record in self._tails.latest("served") if said else ():
            event = _decoded(record.value)
            if isinstance(event, Served) and event.model == model and (other := said.get(event.request)) is not None:
                scores = np.frombuffer(event.scores, "<f4")
                if len(scores) == len(other) > 0:
                    yield scores, other


class Moves:
    """What the pages do."""

    def __init__(self, at: Installation, alerts: AlertsSeen) -> None:
        self._repository, self._alerts = at.repository, alerts

    def promote(self, model: str, version: str, policy: int, who: str, why: str) -> str:
        """Make a version live."""
        return self._make(model, "promote", traffic.Promote(version=version, policy=policy, who=who, why=why))

    def roll_back(self, model: str, to: str, policy: int, who: str, why: str) -> str:
        """Make `to` live, or what was live before, and hold it there."""
        return self._make(model, "rollback", traffic.RollBack(to=to, policy=policy, who=who, why=why))

    def split(self, model: str, shares: dict[str, float], policy: int, who: str, why: str) -> str:
        """Share traffic by weight; none ends it."""
        return self._make(model, "split", traffic.Split(shares=shares, policy=policy, who=who, why=why))

    def canary(self, model: str, version: str, share: float, policy: int, who: str, why: str) -> str:
        """Try a version out with a guard; a share of 0 ends the canary."""
        guard = Guard() if share else None
        move = traffic.TryOut(version=version, share=share, guard=guard, policy=policy, who=who, why=why)
        return self._make(model, "canary", move)

    def shadow(self, model: str, versions: tuple[str, ...], policy: int, who: str, why: str) -> str:
        """Have versions compute copies; none ends it."""
        return self._make(model, "shadow", traffic.Copy(versions=versions, policy=policy, who=who, why=why))

    def learning(self, model: str, state: Literal["run", "paused"], policy: int, who: str, why: str) -> str:
        """Pause learning, or let it run."""
        return self._make(model, "learning", traffic.Learning(state=state, policy=policy, who=who, why=why))

    def undo(self, alert: str, who: str, why: str) -> str:
        """Take back what was done by an alert."""
        after = undo(self._repository, self._alerts.alert(alert), who, why)
        return f"policy {after.version}: {what(after)}"

    def _make(self, model: str, verb: str, move: Move) -> str:
        after = traffic.make(self._repository, model, verb, move)
        return f"{model}, policy {after.version}: {what(after)}"


def shares(policy: Policy) -> dict[str, float]:
    """What each version is due of the traffic, 0 to 1; the canary first, as it takes its share first."""
    due: dict[str, float] = {}
    left = 1.0
    if policy.canary is not None:
        due[policy.canary.version] = policy.canary.share
        left -= policy.canary.share
    total = sum(policy.split.values())
    for version, weight in (policy.split or {policy.live: 1.0}).items():
        due[version] = round(due.get(version, 0.0) + left * weight / (total or 1.0), 6)
    return due


def what(policy: Policy) -> str:
    """What a policy says, in a line."""
    parts = [f"live {policy.live}"]
    if policy.canary:
        parts.append(f"canary {policy.canary.version} at {policy.canary.share:g}")
    if policy.split:
        parts.append("split " + ", ".join(f"{version}={weight:g}" for version, weight in policy.split.items()))
    if policy.shadow:
        parts.append(f"shadow {', '.join(policy.shadow)}")
    if policy.pin:
        parts.append(f"pinned to {policy.pin}")
    if policy.learning == "paused":
        parts.append("learning paused")
    return "; ".join(parts)


def changes(history: list[Policy]) -> list[Change]:
    """A history as a person reads it, newest first."""
    return [Change(one.version, one.who, one.why, one.when, what(one)) for one in history[::-1]][:HISTORY]


def unix(when: str) -> float:
    """RFC 3339 as unix seconds; 0 where it is none."""
    try:
        return datetime.fromisoformat(when).timestamp()
    except ValueError:
        return 0.0


def _histogram(deltas: NDArray[np.float64]) -> tuple[list[int], list[float]]:
    """(counts, edges) of differences, about zero."""
    if not len(deltas):
        return [], []
    far = float(np.quantile(np.abs(deltas), 0.99)) or 1e-6
    counts, edges = np.histogram(np.clip(deltas, -far, far), BINS, (-far, far))
    return counts.tolist(), [float(f"{edge:.3g}") for edge in edges]


def _decoded(value: bytes) -> object:
    try:
        return decode(value)
    except (errors.Corrupt, msgspec.MsgspecError):
        return None
