"""Which version answers a request.

Rules of the room:
- A route is compiled once from a policy and the lanes that are loaded, and replaced whole: one pointer.
- The choice is a pure function of (model, key): the same in every process, and the same tomorrow.
- Making a canary's share larger moves nobody out of it. Canary and split draw from independent halves of one hash.
- A canary or split whose version takes or gives other tensors than the live one gets no traffic: a caller who did not
  ask for it could not read its answer. It can be asked for by its number. It gets its share of the requests that leave
  it the leeway (a ranking's, say, whose caller takes any version's answer).
- An arm whose version is not loaded gets no traffic: a canary's share stays with the others, a split's is shared out.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping
from hashlib import blake2b
from itertools import accumulate
from typing import NamedTuple

from millstream.engine.lane import Lane
from millstream.engine.tally import Watched
from millstream.errors import NotFound
from millstream.models.policy import Policy
from millstream.types import Array, Description, Leeway, Request


class Arm:
    """A lane with the name and policy number that its answers carry, the lanes that shadow it, and where its share of a
    guarded canary is counted, by the caller that `sticky_by` tells."""

    __slots__ = ("lane", "name", "policy", "shadows", "sticky_by", "watched")

    def __init__(
        self,
        lane: Lane,
        name: str,
        policy: int,
        shadows: tuple[Lane, ...] = (),
        watched: Watched | None = None,
        sticky_by: str = "user",
    ) -> None:
        self.lane, self.name, self.policy, self.shadows, self.watched = lane, name, policy, shadows, watched
        self.sticky_by = sticky_by

    def refused(self, request: Request) -> None:
        """A request found no room."""
        self.lane.numbers.refused.add()
        self.failed(request)

    def late(self, request: Request) -> None:
        """A request's time was over."""
        self.lane.numbers.late.add()
        self.failed(request)

    def given_up(self, request: Request) -> None:
        """A request's caller went away before it was answered: whatever it would have got, it took too long."""
        self.lane.numbers.dropped.add()
        self.failed(request)

    def failed(self, request: Request) -> None:
        """Count a request that got no answer, where that is watched."""
        if self.watched is not None:
            self.watched.failed(sticky(request, self.sticky_by))

    def answered(self, request: Request, seconds: float, outputs: dict[str, Array]) -> None:
        """Count a request that was answered after so long, where that is watched."""
        if self.watched is not None:
            self.watched.answered(sticky(request, self.sticky_by), seconds, outputs)


def sticky(request: Request, by: str) -> str:
    """What decides the arm of a request: its caller, else its id; empty when it says neither."""
    return (request.key if by == "user" else "") or request.id


class _Choice(NamedTuple):
    """Who answers by policy, of versions that can: a share of the canary's, of the others by `edges`, or `live`."""

    live: Arm
    canary: Arm | None
    share: float
    split: list[Arm]
    edges: list[float]


class Route:
    """`live` answers what nothing else claims; `plain` says that it answers everything. The policy's live version must
    be in `lanes`. `watch(lane, arm)` is asked where to count the two arms of a guarded canary. `unlike`: versions of
    canary and split that take or give other tensors than the live one."""

    def __init__(
        self,
        model: str,
        policy: Policy,
        lanes: Mapping[str, Lane],
        watch: Callable[[Lane, str], Watched] | None = None,
    ) -> None:
        self.policy = policy
        self.described: dict[str, Description] = {}  # by the version asked for; the same object until the route changes
        self.widest: dict[str, int] = {}  # by an input's name, over all lanes
        self._model = model
        self._salt = _salt(model)
        self._unnamed = itertools.count()
        self.lanes = dict(lanes)
        self._live = lanes[policy.live]
        self._shadows = tuple(lanes[v] for v in policy.shadow if v in lanes and v != policy.live)
        tried = [policy.canary.version] if policy.canary else []
        self._others = [version for version in dict.fromkeys((*policy.split, *tried)) if version in lanes]
        self.unlike = [version for version in self._others if not lanes[version].alike(self._live)]
        self._watched: dict[str, Watched] = {}
        if watch and policy.canary and policy.canary.guard and policy.canary.version in lanes:
            arms = {"live": policy.live, "canary": policy.canary.version}
            self._watched = {arm: watch(lanes[version], arm) for arm, version in arms.items()}
        self._explicit = {version: Arm(lane, "explicit", policy.version) for version, lane in lanes.items()}
        self._alike = self._among([version for version in self._others if version not in self.unlike])
        self._suiting: dict[Leeway, _Choice] = {}
        self.live = self._alike.live
        self.plain = not self._others

    def _among(self, versions: Collection[str]) -> _Choice:
        """The choice where of all but the live version these can answer."""
        policy, counted = self.policy, dict[str, Watched]()
        canary = policy.canary if policy.canary and policy.canary.version in versions else None
        if canary is not None and self._watched:
            counted = {policy.live: self._watched["live"], canary.version: self._watched["canary"]}

        def arm(version: str, name: str) -> Arm:
            lane = self.lanes[version]
            shadows = tuple(one for one in self._shadows if one is not lane)
            return Arm(lane, name, policy.version, shadows, counted.get(version), policy.sticky_by)

        there = {policy.live, *versions}
        split = sorted((version for version in policy.split if version in there), key=int)
        total = sum(policy.split[version] for version in split)
        return _Choice(
            arm(policy.live, "live"),
            arm(canary.version, "canary") if canary is not None else None,
            canary.share if canary is not None else 0.0,
            [arm(version, f"split-{version}") for version in split],
            list(accumulate(policy.split[version] / total for version in split)),
        )

    def left(self) -> None:
        """Another route is followed now: what still answers by this one is not counted for a guard."""
        for watched in self._watched.values():
            watched.release()

    def explicit(self, version: str) -> Arm:
        """The arm of a version asked for by name. One that does not answer now: NotFound."""
        if found := self._explicit.get(version):
            return found
        raise NotFound(
            f"{self._model} has no version {version[:40]!r} that answers now; "
            f"these do: {', '.join(sorted(self._explicit, key=int))}"
        )

    def choose(self, request: Request) -> Arm:
        """The arm of this request; see `explicit` for one that names a version."""
        if request.version:
            return self.explicit(request.version)
        if self.plain:
            return self.live
        choice = self._alike if request.leeway is None else self._suited(request.leeway)
        if choice.canary is None and not choice.split:
            return choice.live
        key = sticky(request, self.policy.sticky_by) or f"unnamed {next(self._unnamed)}"
        first, second = _drawn(self._salt, key)
        if choice.canary and first < choice.share * 2**64:
            return choice.canary
        if choice.split:
            return choice.split[min(bisect_right(choice.edges, second / 2**64), len(choice.split) - 1)]
        return choice.live

    def _suited(self, leeway: Leeway) -> _Choice:
        """The choice of a request with leeway; made once for each that callers leave, and they leave few."""
        if (choice := self._suiting.get(leeway)) is None:
            suiting = [version for version in self._others if self.lanes[version].suits(self._live, leeway)]
            choice = self._suiting[leeway] = self._among(suiting)
        return choice

    def unasked(self) -> list[str]:
        """Versions that are to have a share, and can have none of any request that came."""
        return [one for one in self.unlike if not any(one in _versions(choice) for choice in self._suiting.values())]


def assigned(model: str, policy: Policy, key: str) -> str:
    """The version that a policy gives a caller, where all that it names can answer: what `Route` does, from nothing but
    names. `key`: as `sticky` tells it."""
    first, second = _drawn(_salt(model), key)
    if policy.canary and first < policy.canary.share * 2**64:
        return policy.canary.version
    if not policy.split:
        return policy.live
    split = sorted(policy.split, key=int)
    edges = list(accumulate(policy.split[version] / sum(policy.split.values()) for version in split))
    return split[min(bisect_right(edges, second / 2**64), len(split) - 1)]


def _salt(model: str) -> bytes:
    return blake2b(model.encode(), digest_size=16).digest()


def _drawn(salt: bytes, key: str) -> tuple[int, int]:
    """A caller's two numbers below 2**64, for canary and split."""
    drawn = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16, salt=salt).digest()
    return int.from_bytes(drawn[:8], "little"), int.from_bytes(drawn[8:], "little")


def _versions(choice: _Choice) -> set[str]:
    return {arm.lane.version for arm in (*choice.split, *([choice.canary] if choice.canary else []))}
