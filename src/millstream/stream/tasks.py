"""What outcomes are to become: the join's settings, and the weights of examples told before all is known, or in part.

Rules of the room:
- A *task* is a question about a shown item ("was it liked?"). Each asks for itself: its kinds, its window, its weights.
- What can never mean what it says is refused here, so that no role starts with it: a window longer than its request is
  remembered, a threshold that nothing reaches, a kind that is no feedback.
- A weight uses nothing but the logged score, as the model's own estimate p of a positive, and counts in the join's
  state: so examples stay a pure function of the log. Without scores every weight is 1.
"""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, ClassVar, Literal

import msgspec

from millstream.errors import Misconfigured

TASKS_MAX = 16
P_MAX = 0.9  # an estimate counts as no more than this in a correction, which so weighs 1 + 9 / share kept at most
NO_FEEDBACK = ("impression", "watermark", "")  # an item was shown, time has moved, nothing said: never about an item
SHARE_OVER = 1000  # positives over which the share of late ones fades


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a task's examples come about. `JoinSettings.tasks` names it."""

    kinds: Annotated[
        dict[str, float],
        msgspec.Meta(description="feedback kind = value from which it is a positive; empty: the task's name, from 1"),
    ] = {}
    window_s: Annotated[
        float, msgspec.Meta(ge=0.0, le=30 * 86400.0, description="event time a negative waits for a positive, seconds")
    ] = 30.0
    late: Annotated[
        Literal["count", "correct", "drop"],
        msgspec.Meta(
            description="feedback after its example: set aside each (count) or as a number (drop), or a positive takes "
            "the negative back (correct)"
        ),
    ] = "count"
    delayed: Annotated[
        Literal["wait", "fnw", "fnc", "defer"],
        msgspec.Meta(
            description="a negative when the window ends (wait), at once and weighted (fnw) or corrected by serving "
            "(fnc), or at the window's end and again when all is known (defer)"
        ),
    ] = "wait"
    attribution_s: Annotated[
        float,
        msgspec.Meta(ge=0.0, le=60 * 86400.0, description="defer: event time after which a label is final, seconds"),
    ] = 0.0
    negatives: Annotated[float, msgspec.Meta(gt=0.0, le=1.0, description="share of negatives kept")] = 1.0
    negatives_by: Annotated[
        Literal["weight", "shift"],
        msgspec.Meta(description="a kept negative weighs 1/share, or serving shifts the log odds by the log of it"),
    ] = "weight"


class JoinSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How outcomes become examples."""

    moved: ClassVar[dict[str, str]] = {"window_s": "tasks.NAME.window_s", "positive": "tasks.NAME.kinds"}

    tasks: Annotated[
        dict[str, Task],
        msgspec.Meta(min_length=1, max_length=TASKS_MAX, description="what is asked of a shown item, by name"),
    ] = msgspec.field(default_factory=lambda: {"like": Task()})
    ahead_s: Annotated[
        float,
        msgspec.Meta(
            ge=0.0, le=3600.0, description="how far a client's clock may run ahead and still move time, seconds"
        ),
    ] = 5.0
    keep_s: Annotated[
        float,
        msgspec.Meta(
            ge=1.0,
            le=60 * 86400.0,
            description="event time a request is remembered, seconds: above every window_s and attribution_s, by as "
            "much as people take until they see an item",
        ),
    ] = 3600.0
    idle_s: Annotated[
        float, msgspec.Meta(ge=0.1, le=3600.0, description="silence after which time moves with the clock, seconds")
    ] = 5.0
    requests_max: Annotated[
        int, msgspec.Meta(ge=1, le=10_000_000, description="requests remembered at most; the oldest go first")
    ] = 200_000
    feedback: Annotated[
        tuple[str, ...], msgspec.Meta(description="other feedback kinds that are known but never a positive")
    ] = ("click", "dwell", "skip", "rating", "comment")

    def __post_init__(self) -> None:
        for name, task in self.tasks.items():
            where = f"join.tasks.{name}"
            if task.late == "correct" and task.delayed != "wait":
                raise Misconfigured(
                    f"{where}: late = 'correct' goes with delayed = 'wait', got {task.delayed!r}, which corrects itself"
                )
            if task.delayed == "defer" and not task.window_s < task.attribution_s:
                raise Misconfigured(
                    f"{where}: delayed = 'defer' needs window_s < attribution_s, got {task.window_s:g} and "
                    f"{task.attribution_s:g}"
                )
            self._check_kept(where, task)
            self._check_kinds(f"{where}.kinds", self.kinds(name))
        self._check_kinds("join.feedback", dict.fromkeys(self.feedback, 0.0))

    def _check_kept(self, where: str, task: Task) -> None:
        """A request that is forgotten sooner would take its negatives with it: the labels that are left would lie."""
        least, of = max((task.window_s, "window_s"), (task.attribution_s * (task.delayed == "defer"), "attribution_s"))
        if least >= self.keep_s:
            raise Misconfigured(
                f"{where}: {of} = {least:g} with join.keep_s = {self.keep_s:g}: a request would be forgotten before "
                f"its labels are known, and its negatives set aside as expired; set join.keep_s above {least:g}, by as "
                "much as people take until they see an item"
            )

    def _check_kinds(self, where: str, kinds: dict[str, float]) -> None:
        for kind, least in kinds.items():
            if kind in NO_FEEDBACK:
                raise Misconfigured(
                    f"{where}: {kind!r} is no feedback about an item; name what people do with one, such as 'like'"
                )
            if not math.isfinite(least):
                raise Misconfigured(f"{where}: {kind} = {least}: no value is at or above it; write a number")

    @property
    def window_s(self) -> float:
        """The longest window of any task: how long an outcome may wait for its place, seconds of event time."""
        return max(task.window_s for task in self.tasks.values())

    @property
    def settled_s(self) -> float:
        """The event time after which nothing more comes of an impression in any task, seconds."""
        return max(task.attribution_s if task.delayed == "defer" else task.window_s for task in self.tasks.values())

    def kinds(self, name: str) -> dict[str, float]:
        """A task's feedback kinds with the value from which each is a positive."""
        return self.tasks[name].kinds or {name: 1.0}


class Replayed(JoinSettings, frozen=True, forbid_unknown_fields=True):
    """Settings that steps in the log were made under: a replay goes by them, also where today's checks refuse them."""

    def __post_init__(self) -> None:
        pass


class Rule(msgspec.Struct, frozen=True, gc=False):
    """A task as the join applies it. `bit`: its place in masks of tasks; `until_s`: event time from the impression to
    where nothing more comes of it."""

    name: str
    bit: int
    delayed: str
    window_s: float
    until_s: float
    share: float
    by_weight: bool

    def keeps(self, request: str, item: str) -> bool:
        """Whether this negative is among those kept: the first 8 hex digits of SHA-256("request/item/task") are below
        the share of 16^8. So the same negatives are kept each time, and by anybody who works it out."""
        if self.share >= 1.0:
            return True
        digest = hashlib.sha256(f"{request}/{item}/{self.name}".encode()).digest()
        return int.from_bytes(digest[:4], "big") < int(self.share * 4294967296.0)

    def negative(self, p: float | None, late: float) -> float:
        """The weight of a negative. `p`: the model's estimate, None where it is not logged; `late`: the share of
        positives that come after the window.

        fnw: (1 - p)(1 + p) (Ktena et al., "Addressing delayed feedback for continuous training with neural networks in
        CTR prediction", RecSys 2019). defer: (1 - p) / (1 - p + p late / 2) (Gu et al., "Real negatives matter:
        continuous training with real negatives for delayed feedback modeling", KDD 2021), as of all that is told of x,
        each item being told twice, a part 1 - p + p late / 2 is negative.
        """
        weight = 1.0 / self.share if self.by_weight else 1.0
        if p is None:
            return weight
        if self.delayed == "fnw":
            return weight * (1.0 - p) * (1.0 + p)
        if self.delayed == "defer" and p * late > 0.0:
            return weight * (1.0 - p) / (1.0 - p + p * late / 2.0)
        return weight

    def positive(self, p: float | None, late: float) -> float:
        """The weight of a positive: fnw 1 + p; defer 1 / (1 - late / 2), as p (1 - late / 2) is told positive. fnc
        weighs nothing: its model learns p / (1 + p), which serving takes back."""
        if p is None:
            return 1.0
        if self.delayed == "fnw":
            return 1.0 + p
        return 1.0 / (1.0 - late / 2.0) if self.delayed == "defer" else 1.0

    def correction(self, p: float | None, kept: bool) -> float:
        """The weight of a positive whose negative was learnt. The gradient of log loss by the log odds was p / share
        and that of a positive is p - 1, so the weight w of p / share + w (p - 1) = p - 1 leaves what a positive alone
        would have: w = 1 + p / (1 - p) / share. By "shift" the learner's own odds are those of p by the share, which is
        the same. `kept`: whether the negative was among those kept."""
        if p is None or not kept:
            return 1.0
        p = min(p, P_MAX)
        return 1.0 + p / (1.0 - p) / self.share


class Late(msgspec.Struct, array_like=True):
    """Which share of positives came after the window, of those whose labels are final: fading, over SHARE_OVER."""

    share: float = 0.0
    count: int = 0

    def add(self, late: bool) -> None:
        self.count = min(self.count + 1, SHARE_OVER)
        self.share += (late - self.share) / self.count


def rules(settings: JoinSettings) -> tuple[Rule, ...]:
    """The tasks in order, each with a bit of its own."""
    return tuple(
        Rule(
            name,
            1 << place,
            task.delayed,
            task.window_s,
            task.attribution_s if task.delayed == "defer" else task.window_s,
            task.negatives,
            task.negatives_by == "weight",
        )
        for place, (name, task) in enumerate(settings.tasks.items())
    )
