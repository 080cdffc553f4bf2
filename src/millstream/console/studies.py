"""What the pages Learning, Features and Recommend are given: small structs, and who gives them.

Rules of the room:
- A struct holds what is drawn and nothing else; None and an empty list say that nothing is known.
- Times are unix seconds, spans seconds; names of people and items, reasons and titles are data.
"""

from __future__ import annotations

from typing import Protocol

import msgspec


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """How good some scores are, now that labels came. `who` scored: served, learner, previous or frozen; `part`: the
    slice of the rows, "" for all."""

    who: str
    part: str
    examples: float
    auc: float | None
    logloss: float | None
    ece: float | None
    ratio: float | None


class Point(msgspec.Struct, frozen=True):
    """The AUC of all rows at a moment, by who scored."""

    at: float
    auc: dict[str, float]


class Bin(msgspec.Struct, frozen=True):
    """Examples of neighbouring scores: their mean `score`, the share of positives (`rate`) with a 95 % interval
    (Wilson), and how many they are."""

    score: float
    rate: float
    low: float
    high: float
    examples: float


class Pushed(msgspec.Struct, frozen=True, kw_only=True):
    """New weights that went to the servers: the `sequence`th on this base, of so many examples and slots."""

    at: float
    base: str
    sequence: int
    examples: int
    slots: int
    size: int


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """A change of what may learn. `what`: paused, resumed, pinned, unpinned, base (learning made a version live) or
    live (somebody else did); `gate`: whether the gate decided it."""

    when: str
    who: str
    why: str
    what: str
    version: str
    gate: bool


class LearningNow(msgspec.Struct, frozen=True, kw_only=True):
    """How a model learns; `policy`: its number. `state`: run, paused, pinned, off, or "" where there is no version yet,
    with who stopped it and why; `offset`, `end`: examples that are in the served weights, and all there are;
    `set_aside`: outcomes that will not be learnt, by cause; `a_second`: examples learnt lately; `bins`: of the last
    `binned` examples, as they were served."""

    model: str
    state: str
    policy: int = 0
    who: str = ""
    why: str = ""
    live: str = ""
    offset: int = 0
    end: int = 0
    learnt: int = 0
    a_second: float = 0.0
    pushes: int = 0
    refused: int = 0
    staleness_p50: float | None = None
    staleness_p99: float | None = None
    label_wait_p50: float | None = None
    slope: float = 1.0
    intercept: float = 0.0
    judged: list[Judged] = []
    points: list[Point] = []
    bins: list[Bin] = []
    binned: int = 0
    positives: float = 0.0
    pushed: list[Pushed] = []
    decisions: list[Decision] = []
    set_aside: dict[str, int] = {}


class LearningViews(Protocol):
    """What the page Learning reads and does."""

    def learning(self) -> LearningNow:
        """How the installation's model learns."""

    def let_learn(self, go_on: bool, policy: int, who: str, why: str) -> str:
        """Pause learning, or let it go on, if the policy is still this one; a sentence that says what came of it.
        Errors of the house."""


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """A column of a feature set: the share of values that are `missing`, where the others lie, and how far that has
    moved (a monitor's PSI, None where nobody measures); `dead`: it has one value, or none."""

    name: str
    missing: float | None
    low: float | None
    middle: float | None
    high: float | None
    drift: float | None = None
    dead: bool = False


class SetNow(msgspec.Struct, frozen=True, kw_only=True):
    """A feature set as it is kept and read. `age`: of the rows that serving reads; `stale_after`: from when they are
    called stale; `wrong` of `checked` rows that were read again; `without`: rankings that had to do without the set, by
    cause."""

    name: str
    age: float | None
    stale_after: float
    events: int
    rows: int
    reads: int
    read_p50: float | None
    read_p99: float | None
    unknown: int
    checked: int
    wrong: int
    odd: int
    without: dict[str, int]
    columns: list[Spread]


class Skew(msgspec.Struct, frozen=True, kw_only=True):
    """The last time that what was served was compared with the log. `state`: never, running, done or failed; `values`:
    by set, how many values ended where (features/verify.py); `odd`: in words, some that nothing explains."""

    state: str
    at: float = 0.0
    took: float = 0.0
    reads: int = 0
    sound: bool = True
    values: dict[str, dict[str, int]] = {}
    odd: list[str] = []
    said: str = ""


class FeaturesNow(msgspec.Struct, frozen=True, kw_only=True):
    """Every feature set, and the last comparison."""

    sets: list[SetNow]
    skew: Skew


class FeaturesViews(Protocol):
    """What the page Features reads and does."""

    def features(self) -> FeaturesNow:
        """The sets as they are."""

    def compare(self) -> None:
        """Begin to compare what was served with the log, unless that goes on already."""


class Film(msgspec.Struct, frozen=True, kw_only=True):
    """An item of a list, with its path through the stages: the recall paths that `found` it with their score, its place
    by the ranker's `score` (1 is first), and the `place` and `reasons` that the rules gave it."""

    item: str
    title: str
    about: str
    place: int
    score: float
    ranked: int
    found: list[str]
    found_score: float
    reasons: list[str]
    outputs: dict[str, float] = {}


class Shelf(msgspec.Struct, frozen=True, kw_only=True):
    """A list that was answered. `seconds`: how long that took; `missed`: stages that were late."""

    id: str
    model: str
    version: str
    arm: str
    seconds: float
    films: list[Film]
    missed: list[str]


class Asker(msgspec.Struct, frozen=True, kw_only=True):
    """Whose list is asked for, and with which key; "" for none. One of `user` and `visitor` is set."""

    user: str = ""
    visitor: str = ""
    placement: str = ""
    key: str = ""


class Places(msgspec.Struct, frozen=True):
    """Where lists stand; who came lately; and what somebody can say of an item: kinds of outcomes with the value of a
    yes."""

    placements: list[str]
    people: list[str]
    kinds: dict[str, float]
    address: str


class ListViews(Protocol):
    """What the page Recommend asks of the running service, over HTTP as anybody would."""

    def places(self) -> Places:
        """What can be asked for."""

    def ask(self, who: Asker) -> Shelf:
        """A list of somebody, explained. Errors of the house, as the service gave them."""

    def rate(self, who: Asker, shelf: Shelf, item: str, kind: str, value: float) -> None:
        """Tell that somebody saw an item of a list and what they did; durable when it returns."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A row that waits for a person's word. `why`: in a sentence; `reasons`: the first is the one it is counted for;
    `score`: as it was served, and `calibrated`; `others`: what other models said; `about`: attributes of the item and
    the user, name and value. All of it is data."""

    id: str
    item: str
    title: str
    user: str
    reasons: list[str]
    why: str
    model: str
    version: str
    score: float
    calibrated: float
    others: dict[str, float]
    about: list[tuple[str, str]]
    event_time: float


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a dataset: how many rows by kind and by reason, and who labelled them."""

    name: str
    version: str
    created: str
    rows: int
    parent: str
    digest: str
    kinds: dict[str, int]
    reasons: dict[str, int]
    labellers: dict[str, int]


class ReviewsNow(msgspec.Struct, frozen=True, kw_only=True):
    """The queue: how many wait, by reason, and the first cases of it; what was labelled by this console's people since
    it started."""

    model: str
    waiting: dict[str, int]
    cases: list[Case]
    labelled: dict[str, int]
    datasets: list[Made]


class ReviewViews(Protocol):
    """What the page Review reads and does. Errors of the house."""

    def reviews(self, reason: str) -> ReviewsNow:
        """What waits, of one reason or ("") of all."""

    def label(self, id: str, label: str, who: str) -> None:
        """Say "positive", "negative" or "skip" of a case; durable when it returns."""

    def fill(self) -> int:
        """Choose rows of the log; how many joined the queue."""

    def export(self, name: str) -> str:
        """Put what was labelled as the next version of a dataset; a sentence."""


class Between(msgspec.Struct, frozen=True, kw_only=True):
    """How an arm stands beside the control: how much more it has, as a share, from `low` to `high`; None where it is
    too early. `what`: the metric; `state`: better, worse, alike, open or early, and of a guardrail kept, broken, open
    or early; `allowed`: of a guardrail, by which share it may be worse."""

    what: str
    arm: str
    control: str
    state: str
    lift: float | None
    low: float | None
    high: float | None
    less: float = 0.0
    wanted: int | None = None
    allowed: float | None = None


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """An arm: the share of the people that it was to have, those it has, their lists, and the value of the metric."""

    name: str
    share: float
    people: int
    lists: int
    value: float | None


class Seen(msgspec.Struct, frozen=True):
    """What was known at a moment: the lift of an arm, and its interval, valid at any look."""

    at: float
    arm: str
    lift: float
    low: float
    high: float


class ShadowBeside(msgspec.Struct, frozen=True, kw_only=True):
    """A shadow version beside what was answered: how alike the scores are, and how often another item is first."""

    version: str
    requests: int
    correlation: float | None
    rank_correlation: float | None
    apart: float | None
    other_first: float | None


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """An experiment as it was looked at last. `state`: waiting, done or failed (`verdict` says why then); `looked`:
    unix seconds; `fine`: whether people are split as configured, else `why`; `past`: share of the people with one."""

    name: str
    state: str
    split: str = ""
    metric: str = ""
    control: str = ""
    looked: float = 0.0
    took: float = 0.0
    since: float = 0.0
    until: float = 0.0
    confidence: float = 0.95
    least: float = 0.0
    past: float = 0.0
    fine: bool = True
    chance: float = 1.0
    crossed: int = 0
    why: str = ""
    verdict: str = ""
    arms: list[Arm] = []
    lifts: list[Between] = []
    rails: list[Between] = []
    shadows: list[ShadowBeside] = []
    seen: list[Seen] = []


class TrialsNow(msgspec.Struct, frozen=True):
    """Every experiment; `running`: the name of the one that is looked at now, "" for none."""

    trials: list[Trial]
    running: str


class TrialViews(Protocol):
    """What the page Experiments reads and does."""

    def trials(self) -> TrialsNow:
        """Every experiment as it was looked at last."""

    def look(self) -> None:
        """Look at all of them anew, as soon as may be."""
