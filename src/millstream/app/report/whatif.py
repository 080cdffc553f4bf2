"""`millstream report --rules FILE`: what other rules would have earned, from lists that these did not make.

Every logged list carries all that its rules looked at (`slate`) and how likely each of its items was to be first. The
new rules order the same slate, so it is known how likely they would put first what was first; learn/estimate.py does
the rest.

Rules of the room:
- The first place is judged, and nothing below it. The new rules explore as much as the log did.
- What the log's rules did not look at is not in the slate. Columns that are attributes of items are filled with what
  they are now, which is said; others cannot be known, and rules that look at them are refused.
- The model behind the doubly robust estimate is a line through the scores that lists were made by, fitted to the
  lists of the other half of the people, so it has not seen what it is asked about (cross-fitting: Chernozhukov et al.,
  2018).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import numpy as np

from millstream import config
from millstream.app.installation import Installation
from millstream.app.report.matching import Matched, Matching, Say, Span
from millstream.app.report.summary import Figure, check_tenant, items, meaning, nothing
from millstream.errors import BadInput, Error, Misconfigured, NotFound
from millstream.flows.recommend.placement import Placement
from millstream.flows.rerank import Rules, Slate, narrow
from millstream.flows.rerank.rules import LENGTH_MAX, Steps
from millstream.flows.rerank.slate import Floats
from millstream.learn import estimate
from millstream.learn.estimate import Estimate, Logged
from millstream.recall.catalogue import Catalogue
from millstream.types import Served

FILLED: Final = ("category", "author", "created", "bid", "quality", "embedding")
"""Columns that are attributes of items: they may be filled with what the log tells of them now."""
LISTS_MAX: Final = 5_000_000
COVERED_LEAST: Final = 0.95
"""Of what new rules put first, how much must have been possible in the log: the rest is left out of what they earn."""
FIRST = "the first place of a list"


class Candidate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of rules to be judged."""

    rerank: Steps = ()
    list_max: Annotated[
        int, msgspec.Meta(ge=0, le=LENGTH_MAX, description="items of a list; 0: as the placement has it")
    ] = 0


class Earned(msgspec.Struct, frozen=True, kw_only=True):
    """What the first place of a list earns of `reward`: `logged` under the rules of the log; `ips`, `snips` and `dr`
    (doubly robust) under the new ones; `gain`: how much more than the log's."""

    reward: str
    logged: Figure
    ips: Figure
    snips: Figure
    dr: Figure
    gain: Figure


class WhatIf(msgspec.Struct, frozen=True, kw_only=True):
    """`lists` that were judged; `skipped`: those logged without chances, or that could not be read; `explored`: share
    of the lists in which chance chose; `effective`: as many lists under the new rules themselves would tell as much;
    `mean_weight`: 1 but for chance where the log can tell; `covered`: how often, on average, what the new rules put
    first could have been first in the log; `filled`: columns that are as items are now; `trusted`: whether the log says
    enough of the new rules."""

    placement: str
    rules_hash: str
    lists: int
    skipped: int
    people: int
    explored: float
    effective: float
    mean_weight: float
    largest_weight: float
    covered: float
    changed: float
    filled: list[str]
    trusted: bool
    earned: list[Earned]
    verdict: str


def what_if(at: Installation, file: Path, span: Span, say: Say = lambda line: None) -> WhatIf:
    """Judge the rules in `file` by the lists of a placement (the span's, else the first one configured). Misconfigured:
    the file; NotFound: the placement; BadInput: the log cannot tell."""
    asked = _read(file)
    check_tenant(at, span)
    placements = at.settings.recommend.places.get(span.tenant, {})
    name = span.placement or next(iter(placements), "")
    if name not in placements:
        raise NotFound(f"placement {name!r} is not configured; there are: {', '.join(placements) or 'none'}")
    rules = _rules(asked, span.tenant, file)
    length = asked.list_max or placements[name].list_max
    judge = _Judge(rules, length, items(at, (*FILLED, "deleted"), span, say) if rules.reads else Catalogue())
    span = span._replace(placement=name)
    matching = Matching(at.log, at.folder / "state", span, meaning(at), judge, say, Served)
    try:
        if not matching.lists:
            raise nothing(span)
        if not judge.judged:
            if judge.missing:
                raise _unlogged(judge.missing, name)
            raise BadInput(
                f"no list of placement {name!r} in that span was logged with how likely each item was to be first: set "
                "recommend.explore above 0 (0.05, say), let it run until some thousand lists are logged, and ask again"
            )
        rows = _Rows.of([_kept(matched) for matched in matching.parts(Catalogue(), 1.0)])
        return _judged(rows, rules.hash(length), name, matching.lists - judge.judged, judge)
    finally:
        matching.close()


def _read(file: Path) -> Candidate:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not TOML: it is not UTF-8"
        raise Misconfigured(f"{file}: {why}; --rules wants a TOML file with [[rerank]] steps") from None
    return config.parse(text, Candidate, str(file))


def _rules(asked: Candidate, tenant: str, file: Path) -> Rules:
    """The rules, with the items that they name as the log names those of a tenant."""
    placement = Placement(rerank=asked.rerank)
    try:
        return (placement.inside(tenant) if tenant else placement).rules("")
    except Misconfigured as error:
        raise Misconfigured(f"{file}: {error}") from None


def _unlogged(missing: set[str], placement: str) -> BadInput:
    return BadInput(
        f"these rules look at {', '.join(sorted(missing))}, and lists of placement {placement!r} were logged without: "
        "their own rules do not. Give a step that looks at it to an arm with a small share, and ask again when it "
        "has made some thousand lists"
    )


class _Judge:
    """Called with every list: (how likely what was first was to be so; how likely the new rules make it; its score; the
    mean score of what the new rules would put first; how likely that is something that could have been). `catalogue`:
    what items are now."""

    def __init__(self, rules: Rules, length: int, catalogue: Catalogue) -> None:
        self._rules, self._length, self._catalogue = rules, length, catalogue
        self.judged = 0
        self.missing: set[str] = set()
        self.filled: set[str] = set()
        self.explored = self.changed = 0
        self._share = 0.0

    def __call__(self, event: Served) -> tuple[float, ...] | None:
        if not (event.propensities and event.slate and event.order) or self.judged >= LISTS_MAX:
            return None
        try:
            slate = self._filled(Slate.unpack(event.slate, event.candidates), event.scores)
            likely = np.frombuffer(event.propensities, "<f4").astype(np.float64)
            first = int(np.frombuffer(event.order, "<u4", 1)[0])
        except (Error, ValueError):
            return None
        if slate is None or len(likely) != len(slate) or not 0 < likely[first] <= 1:
            return None
        could = likely > 0
        if (count := int(could.sum())) > 1:
            self._share = min(1.0, count * float(likely[could].min()))
        wanted = self._rules.first(slate, self._length, self._share)
        scores = slate.finite()
        self.judged += 1
        self.explored += event.explored >= 0
        self.changed += bool(wanted.any()) and int(wanted.argmax()) != int(likely.argmax())
        total = wanted.sum()
        expected = float(wanted @ scores) / total if total else 0.0
        return float(likely[first]), float(wanted[first]), float(scores[first]), expected, float(wanted[could].sum())

    def _filled(self, slate: Slate, probabilities: bytes) -> Slate | None:
        """With every column that the rules look at, and the codes that they name; None where that cannot be."""
        named = self._rules.named
        lacking = {
            name
            for name in self._rules.reads
            if name not in slate.columns or not named.get(name, frozenset()) <= slate.codes.get(name, {}).keys()
        }
        if not lacking:
            return slate
        columns, codes = dict(slate.columns), dict(slate.codes)
        if "probability" in lacking:
            lacking.remove("probability")
            if probabilities:  # else no ranker answered, and rules do without it
                columns["probability"] = np.frombuffer(probabilities, "<f4")
        if unknown := lacking.difference(FILLED):
            self.missing |= unknown
            return None
        numbers = self._catalogue.numbers(slate.items)
        for name in lacking:
            columns[name] = _now(self._catalogue, name, numbers)
            if name in named:
                texts = self._catalogue.categories if name == "category" else self._catalogue.authors
                codes[name] = {text: texts.index(text) for text in named[name] if text in texts}
        self.filled |= lacking
        return msgspec.structs.replace(slate, columns=columns, codes=codes)


def _now(catalogue: Catalogue, name: str, numbers: Any) -> Any:
    """A column of items as they are now; of those that are not known, nothing is."""
    column = getattr(catalogue, name)
    if not len(column):
        column, numbers = np.zeros((1, *column.shape[1:]), column.dtype), np.zeros(len(numbers), np.int32)
    found = column[numbers].copy()
    if (unknown := numbers < 0).any():
        found[unknown] = -1 if found.dtype.kind == "i" else np.nan
    return narrow(found) if name == "embedding" else found


class _Rows(msgspec.Struct, frozen=True):
    """Lists that were judged, [n] each."""

    likely: Floats
    wanted: Floats
    score: Floats
    expected: Floats
    covered: Floats
    person: Any
    rewards: dict[str, Floats]

    @classmethod
    def of(cls, parts: list[_Rows]) -> _Rows:
        """All of them."""
        joined = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("likely", "wanted", "score", "expected", "covered", "person")
        }
        rewards = {name: np.concatenate([part.rewards[name] for part in parts]) for name in parts[0].rewards}
        return cls(**joined, rewards=rewards)


def _kept(matched: Matched) -> _Rows:
    """Of a part of the log what was judged, with what its first place earned."""
    rows = np.flatnonzero((matched.first >= 0) & np.isfinite(matched.extra[:, 0]))
    first, extra, part = matched.first[rows], matched.extra[rows], matched.part
    rewards = {
        "positives": part.positive[first].astype(np.float64),
        "conversions": part.converted[first].astype(np.float64),
        "revenue": part.revenue[first],
    }
    likely, wanted, score, expected, covered = extra.T
    person = part.person[rows].astype(np.int64)
    return _Rows(likely, wanted, score, expected, covered, person, rewards)


def _judged(rows: _Rows, hash: str, placement: str, skipped: int, judge: _Judge) -> WhatIf:
    earned, plain = [], None
    for name, rewards in rows.rewards.items():
        if not rewards.any() and name != "positives":
            continue  # nothing of it in this log
        logged = Logged(rewards, rows.likely, np.minimum(rows.wanted, 1.0), rows.person)
        found = estimate.ips(logged)
        plain = plain or found
        shown, rule = _lines(rows, rewards)
        earned.append(
            Earned(
                reward=name,
                logged=_figure(estimate.ips(Logged(rewards, rows.likely, rows.likely, rows.person))),
                ips=_figure(found),
                snips=_figure(_or_nothing(estimate.snips, logged)),
                dr=_figure(estimate.doubly_robust(logged, shown, rule)),
                gain=_figure(estimate.gain(logged)),
            )
        )
    assert plain is not None  # positives are always among the rewards
    lists = len(rows.likely)
    covered = float(rows.covered.mean())
    return WhatIf(
        placement=placement, rules_hash=hash, lists=lists, skipped=skipped, people=plain.groups,
        explored=judge.explored / lists, effective=plain.effective, mean_weight=plain.mean_weight,
        largest_weight=plain.largest, covered=covered, changed=judge.changed / lists, filled=sorted(judge.filled),
        trusted=plain.trusted and covered >= COVERED_LEAST, earned=earned, verdict=_verdict(plain, covered, earned),
    )  # fmt: skip


def _or_nothing(of: Callable[[Logged], Estimate], logged: Logged) -> Estimate | None:
    """None where the log has nothing that the new rules do."""
    return of(logged) if logged.weights.any() else None


def _figure(found: Estimate | None) -> Figure:
    if found is None:
        return Figure(0.0)
    known = np.isfinite(found.low)
    return Figure(found.value, found.low if known else None, found.high if known else None)


def _lines(rows: _Rows, rewards: Floats) -> tuple[Floats, Floats]:
    """What a line through the scores expects of what was first, and of the new rules, [n] each: for each half of the
    people by a line through the lists of the other half."""
    shown, rule = np.zeros(len(rewards)), np.zeros(len(rewards))
    half = (rows.person >> 20) & 1 > 0
    for mine in (half, ~half):
        score, reward = rows.score[~mine], rewards[~mine]
        if not len(score):
            continue
        middle, mean = float(score.mean()), float(reward.mean())
        spread = float(((score - middle) ** 2).sum())
        slope = float(((score - middle) * (reward - mean)).sum()) / spread if spread else 0.0
        shown[mine] = mean + slope * (rows.score[mine] - middle)
        rule[mine] = mean + slope * (rows.expected[mine] - middle)
    return shown, rule


def _verdict(plain: Estimate, covered: float, earned: list[Earned]) -> str:
    """A sentence: whether to trust it, and what it says."""
    if not plain.trusted or covered < COVERED_LEAST:
        why = (
            f"it is worth {plain.effective:.0f} lists of theirs, and {estimate.EFFECTIVE_LEAST:.0f} are the least"
            if not plain.effective >= estimate.EFFECTIVE_LEAST
            else f"what they put first could have been first in {covered:.1%} of the lists, weights are "
            f"{plain.mean_weight:.3f} on average"
        )
        return f"not to be trusted: the log says too little of these rules: {why}; explore more, or log more lists"
    said = []
    for one in earned:
        low, high = one.gain.low, one.gain.high
        if low is None or high is None or low <= 0 <= high:
            said.append(f"no difference shown in {one.reward}")
        else:
            said.append(
                f"{'more' if low > 0 else 'fewer'} {one.reward}: {one.gain.value:+.4g} ({low:.4g} to {high:.4g})"
            )
    return f"at {FIRST}, beside the rules that were logged: " + "; ".join(said)
