"""Which people are in which arm of an experiment, and since when.

Rules of the room:
- An experiment begins when the split became what it is now: the rules of every arm, or the shares of every version.
  What was done under another split counts for nobody.
- Somebody's arm is the one that the draw gave, whatever answered: where a version was too late or not loaded, that is
  what this arm does to people.
- A past is what was done before anybody was treated, and after the last split before: earlier experiments drew the same
  people into the same arms, so what they left behind is no chance.
"""

from __future__ import annotations

import datetime
import math
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from millstream.app.installation import Installation
from millstream.app.report.matching import Listed, Policy
from millstream.engine.route import assigned
from millstream.errors import BadInput, NotFound
from millstream.models import policy as policies
from millstream.watch.experiments.people import ARMS_MAX, PAST
from millstream.watch.experiments.settings import ExperimentSettings

DAY_S: Final = 86400.0
PAST_S: Final = 28 * DAY_S
"""How far back a past goes."""
_PLAIN, _OTHER = Policy("", "(before)", ""), Policy("", "(another split)", "")


class Split(Protocol):
    """`arms` with their `shares`, which sum to 1; `control`: the place of the one that others are compared with; `what`
    it is of. `name` is told each list of the log, in any order, and gives its label; then `window` knows the times:
    the first that counts, and from and to when there is a past."""

    arms: list[str]
    shares: list[float]
    control: int
    what: str

    def name(self, event: Listed) -> Policy: ...

    def followed(self, event: Listed) -> bool: ...

    def window(self, since: float) -> tuple[float, float, float]: ...


def split_of(at: Installation, asked: ExperimentSettings, until: float) -> Split:
    """The split that is asked about, as it was at `until`. NotFound: there is no such placement or model; BadInput: it
    is not split, or not by people."""
    split: Split = _Versions(at, asked, until) if asked.model else _Rules(at, asked)
    if len(split.arms) > ARMS_MAX:
        raise BadInput(f"{split.what} has {len(split.arms)} arms; an experiment compares {ARMS_MAX} at most")
    if asked.control and asked.control not in split.arms:
        raise NotFound(f"control: {split.what} has no arm {asked.control!r}; there are: {', '.join(split.arms)}")
    if asked.control:
        split.control = split.arms.index(asked.control)
    return split


def groups(
    split: Split, labels: list[Policy], label: NDArray[np.integer[Any]], time: NDArray[np.float64], since: float
) -> NDArray[np.int64]:
    """Of n lists, `label` int [n] of `labels` and `time` [n]: the place of its arm, PAST, or -1 for what does not
    count."""
    start, past_from, past_to = split.window(since)
    arm_of = {Policy("", arm, ""): place for place, arm in enumerate(split.arms)}
    arm = np.array([arm_of.get(one, -1) for one in labels] or [-1], np.int64)[label]
    treated = time >= start
    before = (time > past_from) & (time < past_to) & (np.array([one != _OTHER for one in labels] or [False])[label])
    return np.where(treated & (arm >= 0), arm, np.where(before & ~treated, PAST, -1)).astype(np.int64)


class _Rules:
    """Arms of a placement. Rules are known by their hash: those that an arm has now count."""

    def __init__(self, at: Installation, asked: ExperimentSettings) -> None:
        placements = at.settings.recommend.places.get(asked.tenant, {})
        if asked.placement not in placements:
            raise NotFound(
                f"placement {asked.placement!r} is not configured; there are: {', '.join(placements) or 'none'}"
            )
        placement = placements[asked.placement]
        if len(placement.arms) < 2:
            raise BadInput(
                f"placement {asked.placement} has no two arms to compare: give it recommend.placements."
                f"{asked.placement}.arms, or name a model whose versions are split"
            )
        self.arms = [*placement.arms]
        self.shares = [arm.share for arm in placement.arms.values()]
        self.control, self.what = 0, f"placement {asked.placement}"
        self._hashes = {arm: placement.rules(arm).hash(placement.list_max) for arm in self.arms}
        self._first = dict.fromkeys(self.arms, math.inf)
        self._changed: dict[str, float] = {}  # when an arm had other rules last
        self._other = -math.inf

    def name(self, event: Listed) -> Policy:
        time = event.event_time
        if not event.rules:
            return _PLAIN
        if self._hashes.get(event.rules) == event.rules_hash:
            self._first[event.rules] = min(self._first[event.rules], time)
            return Policy("", event.rules, "")
        self._other = max(self._other, time)
        if event.rules in self._hashes:
            self._changed[event.rules] = max(self._changed.get(event.rules, -math.inf), time)
        return _OTHER

    def followed(self, event: Listed) -> bool:
        return True

    def window(self, since: float) -> tuple[float, float, float]:
        first = min(self._first.values())
        start = max([first, *(self._since(arm) for arm in self._changed)])
        if self._changed:  # somebody was treated by other rules of these arms: there is no past
            return max(start, since), first, first
        earlier = self._other if self._other < first else -math.inf
        return max(start, since), max(earlier, first - PAST_S), first

    def _since(self, arm: str) -> float:
        """When an arm that changed got the rules that it has."""
        first, changed = self._first[arm], self._changed[arm]
        return first if first > changed else math.nextafter(changed, math.inf)


class _Versions:
    """Versions of a model, as its policy splits people."""

    def __init__(self, at: Installation, asked: ExperimentSettings, until: float) -> None:
        self._model = model = asked.model
        if model not in at.repository.models():
            raise NotFound(f"there is no model {model!r}; there are: {', '.join(at.repository.models()) or 'none'}")
        past = [one for one in at.repository.history(model) if _when(one) <= until]
        self._policy = policy = past[-1] if past else at.repository.policy(model)
        shares = _shares(policy)
        self.what = f"model {model}"
        if len(shares) < 2:
            raise BadInput(
                f"model {model} was not split: version {policy.live} had everybody. `millstream traffic split` and "
                "`millstream traffic canary` split it; --until asks about one that has ended"
            )
        if policy.sticky_by != "user":
            raise BadInput(
                f"model {model} is split by request (sticky_by), so that people are in every arm: an experiment needs "
                "people who stay in theirs"
            )
        self.arms, self.shares = [*shares], [*shares.values()]
        self.control = self.arms.index(policy.live) if policy.live in shares else 0
        self._begun = self._first = math.inf
        while past and _shares(past[-1]) == shares:
            self._begun = _when(past.pop())
        self._earlier, after = -math.inf, self._begun  # when everybody had one version, from and to
        for one in reversed(past):
            if len(_shares(one)) > 1:
                self._earlier = after
                break
            after = _when(one)

    def name(self, event: Listed) -> Policy:
        if event.model != self._model:
            return _OTHER
        arm = self._arm(event)
        if arm != self.arms[self.control] and self.followed(event):
            self._first = min(self._first, event.event_time)
        return Policy("", arm, "")

    def followed(self, event: Listed) -> bool:
        return event.version.partition("@")[0] == self._arm(event)

    def window(self, since: float) -> tuple[float, float, float]:
        begun = self._begun if math.isfinite(self._begun) else self._first  # a policy that nobody noted the time of
        return max(begun, since), max(self._earlier, begun - PAST_S), begun

    def _arm(self, event: Listed) -> str:
        return assigned(self._model, self._policy, event.user or event.request)


def _shares(policy: policies.Policy) -> dict[str, float]:
    """The share of the people that each version has, where it is not 0; the lowest number first."""
    canary = {policy.canary.version: policy.canary.share} if policy.canary else {}
    left, total = 1.0 - sum(canary.values()), sum(policy.split.values())
    shares = {version: left * weight / total for version, weight in policy.split.items()} or {policy.live: left}
    for version, share in canary.items():
        shares[version] = shares.get(version, 0.0) + share
    return {version: shares[version] for version in sorted(shares, key=int) if shares[version] > 0.0}


def _when(policy: policies.Policy) -> float:
    """Unix seconds of a policy's change; it is noted to the second."""
    return datetime.datetime.fromisoformat(policy.when).timestamp() if policy.when else -math.inf
