"""Which version answers a request.

Rules of the room:
- A route is compiled once from a policy and the lanes that are loaded, and replaced whole: one pointer.
- The choice is a pure function of (model, key): the same in every process, and the same tomorrow.
- Making a canary's share larger moves nobody out of it. Canary and split draw from independent halves of one hash.
- A canary or split whose version takes or gives other tensors than the live one gets no traffic: a caller who did not
  ask for it could not read its answer. It can be asked for by its number.
- An arm whose version is not loaded gets no traffic: a canary's share stays with the others, a split's is shared out.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Mapping
from hashlib import blake2b
from itertools import accumulate

from millstream.engine.lane import Lane
from millstream.engine.tally import Watched
from millstream.errors import NotFound
from millstream.models.policy import Policy
from millstream.types import Array, Description, Request


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


class Route:
    """`live` answers what nothing else claims; `plain` says that it answers everything. The policy's live version must
    be in `lanes`. `watch(lane, arm)` is asked where to count the two arms of a guarded canary."""

    def __init__(
        self,
        model: str,
        policy: Policy,
        lanes: Mapping[str, Lane],
        watch: Callable[[Lane, str], Watched] | None = None,
    ) -> None:
        self.policy = policy
        self.described: dict[str, Description] = {}  # by the version asked for; the same object until the route changes
        self._model = model
        self._salt = blake2b(model.encode(), digest_size=16).digest()
        self._unnamed = itertools.count()
        live = lanes[policy.live]
        self.unlike = [
            v
            for v in (*policy.split, *([policy.canary.version] if policy.canary else []))
            if v in lanes and not lanes[v].alike(live)
        ]
        shadows = tuple(lanes[v] for v in policy.shadow if v in lanes and v != policy.live)

        tried = policy.canary.version if policy.canary and policy.canary.guard else ""
        counted = {policy.live: "live", tried: "canary"} if tried in lanes and tried not in self.unlike else {}
        self._watched: list[Watched] = []

        def arm(version: str, name: str) -> Arm:
            lane = lanes[version]
            watched = watch(lane, counted[version]) if watch and version in counted else None
            self._watched += [watched] if watched else []
            return Arm(
                lane, name, policy.version, tuple(one for one in shadows if one is not lane), watched, policy.sticky_by
            )

        self.live = arm(policy.live, "live")
        self._explicit = {version: Arm(lane, "explicit", policy.version) for version, lane in lanes.items()}
        self._canary: Arm | None = None
        self._share = 0.0
        if policy.canary and policy.canary.version in lanes and policy.canary.version not in self.unlike:
            self._canary, self._share = arm(policy.canary.version, "canary"), policy.canary.share
        split = sorted(
            (version for version in policy.split if version in lanes and version not in self.unlike), key=int
        )
        self._split = [arm(version, f"split-{version}") for version in split]
        total = sum(policy.split[version] for version in split)
        self._edges = list(accumulate(policy.split[version] / total for version in split))
        self.plain = self._canary is None and not self._split

    def left(self) -> None:
        """Another route is followed now: what still answers by this one is not counted for a guard."""
        for watched in self._watched:
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
        key = sticky(request, self.policy.sticky_by) or f"unnamed {next(self._unnamed)}"
        drawn = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16, salt=self._salt).digest()
        if self._canary and int.from_bytes(drawn[:8], "little") < self._share * 2**64:
            return self._canary
        if self._split:
            place = bisect_right(self._edges, int.from_bytes(drawn[8:], "little") / 2**64)
            return self._split[min(place, len(self._split) - 1)]
        return self.live
