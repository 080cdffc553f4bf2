"""What the pages of traffic see and do: protocols, and the small structs that cross them.

Every reading may be called from any thread, costs milliseconds however long the log is, and gives structs that are
equal where nothing changed. Those that look for something in the log (`find`, `story`) say so.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import msgspec

from millstream.types import Alert

State = Literal["well", "firing", "unwatched", "silent"]


class Stream(msgspec.Struct, frozen=True):
    """A place in the loop where things pass: how many a second over the last ten, and in all; `past`: the rate every
    five seconds of the last minutes, oldest first."""

    rate: float = 0.0
    total: float = 0.0
    past: tuple[float, ...] = ()


class Well(msgspec.Struct, frozen=True):
    """Is it well? "firing": `alerts` fire, `pages` of them to wake somebody; "silent": no process answers;
    "unwatched": nobody has looked for `ago_s` seconds, 0: never. `rules` are in force."""

    state: State
    alerts: int = 0
    pages: int = 0
    rules: int = 0
    ago_s: float = 0.0


class Served(msgspec.Struct, frozen=True):
    """A model as the overview names it: what is live, and whether it learns ("run", "paused", or "" where it never
    learnt)."""

    model: str
    live: str
    answers: float
    learning: str


class Loop(msgspec.Struct, frozen=True, kw_only=True):
    """The loop as it stands. `streams`: requests, outcomes, examples, learnt, pushes, applied, aside, failures; seconds
    of an answer and of staleness, NaN where there was none in the last minute."""

    well: Well
    streams: dict[str, Stream]
    models: list[Served]
    answer_p50_s: float
    answer_p99_s: float
    staleness_s: float
    processes: tuple[str, ...]
    firing: list[Alert]


class VersionRow(msgspec.Struct, frozen=True, kw_only=True):
    """A version. `role`: in the policy, "" for none; `lineage`: what its manifest says of where it comes from;
    `requests`: a second now; seconds of an answer in the last minute and of computing a thousand rows, NaN where
    unknown; `cost`: of a million answers, 0 where no price is set."""

    version: str
    role: str
    format: str
    size_bytes: int
    put: float
    parent: str
    lineage: dict[str, str]
    requests: float
    p50_s: float
    p99_s: float
    compute_s: float
    memory_bytes: float
    cost: float


class ModelRow(msgspec.Struct, frozen=True, kw_only=True):
    """A model and its newest versions, newest first; `policy`: its number; `more`: versions that are not listed."""

    model: str
    policy: int
    live: str
    learning: str
    paused_by: str
    paused_why: str
    pin: str
    pinned_by: str
    previous: str
    versions: list[VersionRow]
    more: int
    problem: str = ""


class Change(msgspec.Struct, frozen=True):
    """A line of a policy's history; `what` it came to."""

    number: int
    who: str
    why: str
    when: str
    what: str


class Share(msgspec.Struct, frozen=True):
    """What a version is due of the traffic, and what of the last ten seconds it got (NaN: there was none)."""

    version: str
    role: str
    due: float
    got: float


class GuardWord(msgspec.Struct, frozen=True):
    """What a guard said last of its canary."""

    canary: str
    said: str
    when: float
    requests: int
    beside: int


class ShadowRow(msgspec.Struct, frozen=True, kw_only=True):
    """A shadow beside live. Counts since it began; of the last requests that the log has of both: `pairs` of scores
    (live, shadow), a sample; `bins`: how many scores differ by so much (`edges`, one fewer); `rank`: mean Spearman
    correlation within a request, NaN where none has three rows; `apart`: mean absolute difference, NaN without any."""

    version: str
    copies: int
    lost: int
    compared: int
    differing: int
    requests: int
    pairs: list[tuple[float, float]]
    edges: list[float]
    bins: list[int]
    rank: float
    apart: float


class TrafficNow(msgspec.Struct, frozen=True, kw_only=True):
    """Who gets which version of a model."""

    model: str
    policy: int
    versions: list[str]
    live: str
    sticky_by: str
    shares: list[Share]
    guard: GuardWord | None
    shadows: list[ShadowRow]
    history: list[Change]
    problem: str = ""


class AlertRow(msgspec.Struct, frozen=True):
    """An alert's last word; `ended`: when it was resolved, 0 while it fires; `undoable`: something was done by it, and
    nobody changed the policy since."""

    alert: Alert
    ended: float
    undoable: bool


class RuleRow(msgspec.Struct, frozen=True):
    """A rule that is in force, in words; `holds`: it fires now."""

    name: str
    severity: str
    condition: str
    says: str
    action: str
    dry_run: bool
    runbook: str
    holds: bool


class Target(msgspec.Struct, frozen=True):
    """Where alerts are delivered, and how many were and were not."""

    name: str
    kind: str
    delivered: int
    lost: int


class AlertsNow(msgspec.Struct, frozen=True, kw_only=True):
    """What fires, what did (newest first), the rules, and who is told."""

    well: Well
    firing: list[AlertRow]
    past: list[AlertRow]
    rules: list[RuleRow]
    targets: list[Target]


class Topic(msgspec.Struct, frozen=True):
    """A topic of the log: records in all, and how many a second came lately. `ready`: its tail is followed by now."""

    name: str
    records: int
    rate: float
    ready: bool


class Record(msgspec.Struct, frozen=True):
    """A record as a person reads it. `key`: its text; `said`: the event in a line; `whole`: all of it, as JSON, cut."""

    topic: str
    partition: int
    offset: int
    arrival: float
    key: str
    kind: str
    said: str
    whole: str


class Found(msgspec.Struct, frozen=True):
    """Records that were looked for by key, newest first; `looked`: records that were passed; `more`: it was cut."""

    records: list[Record]
    looked: int
    more: bool


class OverviewViews(Protocol):
    """What the overview reads."""

    def well(self) -> Well:
        """Whether it is well."""
        ...

    def loop(self) -> Loop:
        """The loop as it stands."""
        ...


class ModelsViews(Protocol):
    """What the page of models reads."""

    def models(self) -> list[ModelRow]:
        """Every model."""
        ...


class TrafficViews(Protocol):
    """What the page of traffic reads."""

    def names(self) -> list[str]:
        """The models that there are."""
        ...

    def traffic(self, model: str) -> TrafficNow:
        """Who gets which version. NotFound, Misconfigured."""
        ...


class AlertsViews(Protocol):
    """What the page of alerts reads."""

    def alerts(self) -> AlertsNow:
        """What fires and what did."""
        ...


class LogViews(Protocol):
    """What the page of the log reads."""

    def topics(self) -> list[Topic]:
        """The topics of the log."""
        ...

    def tail(self, topic: str) -> list[Record]:
        """The newest records of a topic, newest first."""
        ...

    def find(self, key: str, topics: tuple[str, ...]) -> Found:
        """Records of this key. Passes headers of the whole log: a second a million records."""
        ...

    def story(self, request: str) -> dict[str, Any]:
        """What is known of a request, as `app/story.py` tells it, in builtins. NotFound. As `find`."""
        ...


class Actions(Protocol):
    """What moves traffic. Each blocks for a file lock, and gives a sentence of what it came to. Errors of the house."""

    def promote(self, model: str, version: str, policy: int, who: str, why: str) -> str:
        """Make a version live, if the policy is still this one."""
        ...

    def roll_back(self, model: str, to: str, policy: int, who: str, why: str) -> str:
        """Make `to` live ("": what was live before) and hold it there, if the policy is still this one."""
        ...

    def split(self, model: str, shares: dict[str, float], policy: int, who: str, why: str) -> str:
        """Share traffic by weight; none ends it."""
        ...

    def canary(self, model: str, version: str, share: float, policy: int, who: str, why: str) -> str:
        """Try a version out with a guard; 0 ends the canary."""
        ...

    def shadow(self, model: str, versions: tuple[str, ...], policy: int, who: str, why: str) -> str:
        """Have versions compute copies; none ends it."""
        ...

    def learning(self, model: str, state: Literal["run", "paused"], policy: int, who: str, why: str) -> str:
        """Pause learning, or let it run."""
        ...

    def undo(self, alert: str, who: str, why: str) -> str:
        """Take back what was done by an alert."""
        ...
