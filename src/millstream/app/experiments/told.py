"""What an experiment's report holds."""

from __future__ import annotations

import msgspec

from millstream.watch.experiments.verdict import Finding, State


class ArmFigures(msgspec.Struct, frozen=True, kw_only=True):
    """An arm. `share` of the people that it was to have; `people` who were in it alone; `value` of the metric, None
    where nothing is below it; `followed`: share of its lists that the version of this arm made (1 for rules)."""

    arm: str
    share: float
    people: int
    lists: int
    value: float | None
    followed: float


class Lift(msgspec.Struct, frozen=True, kw_only=True):
    """How much more of the metric `arm` has than `control`, as a share, from `low` to `high` at any look; None where it
    is too early. `finding`: better, worse, alike (less apart than matters), open or early. `less`: share of the
    variance that these people's past took out of it; `wanted`: people of both arms it takes, about, to see the least
    that matters."""

    arm: str
    control: str
    finding: Finding
    lift: float | None = None
    low: float | None = None
    high: float | None = None
    less: float = 0.0
    wanted: int | None = None


class Rail(msgspec.Struct, frozen=True, kw_only=True):
    """A guardrail of `arm`: its `metric` may be worse than the control's by the share `allowed`. `state`: kept, broken,
    open or early; the others as in `Lift`."""

    metric: str
    arm: str
    allowed: float
    state: State
    lift: float | None
    low: float | None
    high: float | None
    said: str


class SampleCheck(msgspec.Struct, frozen=True, kw_only=True):
    """Whether people are split as configured. `chance`: of shares so far off, at all looks together; `crossed`: people
    who were in several arms, and are left out; `why`: what is wrong, "" where it is `fine`."""

    fine: bool
    chance: float
    crossed: int
    why: str


class Shadowed(msgspec.Struct, frozen=True, kw_only=True):
    """A shadow version beside what was answered to the same requests: `correlation` of all scores (Pearson's);
    `rank_correlation` within a request, on average (Spearman's); `apart`: mean difference of two scores, without its
    sign; `other_first`: share of the requests whose best candidate is another one. None where the log has too
    little."""

    version: str
    requests: int
    correlation: float | None
    rank_correlation: float | None
    apart: float | None
    other_first: float | None


class ExperimentReport(msgspec.Struct, frozen=True, kw_only=True):
    """`name`: of the experiment's settings, "" where it was asked for ad hoc; `split`: what is compared; `metric`: in
    words; `since`, `until`: unix seconds of the first and last list that counts; `past`: share of the people of whom a
    past is known; `verdict`: all of it in a sentence. No lifts and rails where the sample is not fine."""

    name: str
    split: str
    metric: str
    control: str
    least: float
    confidence: float
    since: float
    until: float
    past: float
    sample: SampleCheck
    arms: list[ArmFigures]
    lifts: list[Lift]
    rails: list[Rail]
    shadows: list[Shadowed]
    verdict: str
