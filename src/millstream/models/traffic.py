"""The changes people and guards make to a policy: what they ask for, and the one way in which it is done.

Rules of the room:
- A change is a function from policy to policy, for `Repository.change_policy`: it sees the policy as it is then.
- A move is a change as somebody asks for it, on a command line or over HTTP: one struct, checked once. With `policy` it
  is made only on that very policy, so that of two people who decide at once the second is told who was faster.
- A roll back never gives a version that was rolled away from, also when two people roll back, or one does twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec.structs import replace

from millstream.errors import BadInput, Conflict, NotFound
from millstream.models.policy import Canary, Guard, Policy
from millstream.models.repository import Repository

LOOKED_BACK = 1000
"""Policies of the history that a roll back looks at."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves the cursor of a terminal, or turns its lines about."""

Change = Callable[[Policy], Policy]
Version = str | Annotated[int, msgspec.Meta(ge=1)]


def promote(version: str) -> Change:
    """Everybody gets `version`; canary, split and pin end."""
    return lambda policy: replace(policy, live=version, canary=None, split={}, pin="")


def roll_back(version: str) -> Change:
    """Everybody gets `version`, and it is pinned: learning stays off and nothing moves until somebody promotes."""
    return lambda policy: replace(policy, live=version, canary=None, split={}, pin=version, pinned_by="", pinned_why="")


def previous(repository: Repository, model: str, policy: Policy) -> str:
    """The version to go back to from `policy`: the one that was live before and is still there; where the history has
    none, the next lower one. Never one that was rolled away from. None: NotFound; rolled back already: Conflict."""
    history = repository.history(model, LOOKED_BACK)
    if policy.pin:
        raise Conflict(_rolled_back(model, policy, history))
    good, gone = _lives(history)
    there = repository.versions(model)
    lower = [version for version in there if int(version) < int(policy.live) and version not in gone]
    before = [version for version in good if version != policy.live and version in there] or lower
    if not before:
        raise NotFound(f"no version of {model} was live before {policy.live}: name the one to go back to with --to")
    return before[-1]


def _lives(history: Sequence[Policy]) -> tuple[list[str], set[str]]:
    """The versions that were live, by when each was last, and those among all that were rolled away from since."""
    good: dict[str, None] = {}
    gone: set[str] = set()
    for before, after in zip([None, *history], history, strict=False):
        if before is not None and after.pin and before.live != after.live:
            good.pop(before.live, None)
            gone.add(before.live)
        good.pop(after.live, None)
        good[after.live] = None
        gone.discard(after.live)
    return list(good), gone


def _rolled_back(model: str, policy: Policy, history: Sequence[Policy]) -> str:
    """Who pinned the model, in words."""
    pinned = policy
    for before in reversed(history):
        if before.pin != policy.pin:
            break
        pinned = before
    who, why, at = pinned.who or "somebody", pinned.why or "no reason given", pinned.when and f" at {pinned.when}"
    return f"{model} is already rolled back to {policy.pin} by {who}{at}: {why}; name a version with --to to go further"


def split(weights: Mapping[str, float], sticky_by: Literal["user", "request"]) -> Change:
    """Share traffic by weight."""
    return lambda policy: replace(policy, split=dict(weights), sticky_by=sticky_by)


def weights(shares: Iterable[str]) -> dict[str, float]:
    """`["12=0.9", "13=0.1"]` as version -> weight; BadInput."""
    found = {}
    for share in shares:
        version, _, weight = share.partition("=")
        try:
            found[version] = float(weight)
        except ValueError:
            raise BadInput(f"{share!r} is no share: write VERSION=WEIGHT, such as 13=0.1") from None
    return found


def canary(version: str, share: float, guard: Guard | None = None) -> Change:
    """Give `version` a share of the traffic in (0, 1]; 0 ends the canary. `guard` ends it by itself."""
    return lambda policy: replace(policy, canary=Canary(version, share, guard) if share else None)


def shadow(versions: Sequence[str]) -> Change:
    """Score copies of the traffic with `versions`; none ends it."""
    return lambda policy: replace(policy, shadow=tuple(versions))


def learning(state: Literal["run", "paused"]) -> Change:
    """Pause learning where it is, or let it run. That ends a pin of the gate; with another it could not: Conflict."""

    def change(policy: Policy) -> Policy:
        pin = "" if state == "run" and policy.gate_pinned else policy.pin
        if state == "run" and pin:
            by = f" by {policy.pinned_by}: {policy.pinned_why or 'no reason given'}" if policy.pinned_by else ""
            raise Conflict(
                f"live is pinned to {pin}{by}, and nothing is learnt while it is; `millstream traffic promote` with "
                "the version that shall be live ends that"
            )
        return replace(policy, learning=state, pin=pin, paused_by="", paused_why="")

    return change


def only_on(number: int, model: str, change: Change) -> Change:
    """The change, if the policy it is made on still has this number. Else Conflict, saying who was faster."""

    def checked(policy: Policy) -> Policy:
        if policy.version != number:
            raise Conflict(
                f"the policy of {model} is {policy.version} by now, not {number}: {policy.who or 'somebody'} was "
                f"faster ({policy.why or 'no reason given'}; live = {policy.live}); look at it and decide again"
            )
        return change(policy)

    return checked


# Moves: what somebody asks for.


class Move(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`policy`: the number of the policy that this was decided on, None: whichever there is. `who`, `why`: recorded."""

    policy: Annotated[int, msgspec.Meta(ge=0)] | None = None
    who: Annotated[str, msgspec.Meta(max_length=256)] = ""
    why: Annotated[str, msgspec.Meta(max_length=2000)] = ""

    def change(self, repository: Repository, model: str) -> Change:
        """The change that this asks for."""
        raise NotImplementedError

    def said(self, verb: str) -> str:
        """The reason that is recorded where none was given."""
        return f"traffic {verb}"


class Promote(Move, frozen=True, kw_only=True):
    """Make `version` live."""

    version: Version

    def change(self, repository: Repository, model: str) -> Change:
        return promote(str(self.version))


class RollBack(Move, frozen=True, kw_only=True):
    """Make `to` live, or the version that was live before, and hold it there."""

    to: Version = ""

    def change(self, repository: Repository, model: str) -> Change:
        return lambda policy: roll_back(str(self.to) or previous(repository, model, policy))(policy)


class Split(Move, frozen=True, kw_only=True):
    """Share traffic between versions by weight; none ends it."""

    shares: dict[str, float]
    sticky_by: Literal["user", "request"] = "user"

    def change(self, repository: Repository, model: str) -> Change:
        return split(self.shares, self.sticky_by)


class TryOut(Move, frozen=True, kw_only=True):
    """Give `version` a share of the traffic as a canary; `share` 0 ends it."""

    version: Version
    share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.05
    guard: Guard | None = None

    def change(self, repository: Repository, model: str) -> Change:
        return canary(str(self.version), self.share, self.guard)


class Copy(Move, frozen=True, kw_only=True):
    """Have `versions` compute copies of the traffic as shadows; none ends it."""

    versions: tuple[Version, ...]

    def change(self, repository: Repository, model: str) -> Change:
        def change(policy: Policy) -> Policy:
            if policy.live in map(str, self.versions):
                raise BadInput(f"{policy.live} of {model} is live: as a shadow it would compute nothing; name another")
            return shadow([str(version) for version in self.versions])(policy)

        return change


class Learning(Move, frozen=True, kw_only=True):
    """Pause learning, or let it run."""

    state: Literal["run", "paused"]

    def change(self, repository: Repository, model: str) -> Change:
        return learning(self.state)

    def said(self, verb: str) -> str:
        return "resumed by hand" if self.state == "run" else "paused by hand"


MOVES: dict[str, type[Move]] = {
    "promote": Promote,
    "rollback": RollBack,
    "split": Split,
    "canary": TryOut,
    "shadow": Copy,
    "learning": Learning,
}


def make(repository: Repository, model: str, verb: str, move: Move) -> Policy:
    """Make a move and give the policy after it. Blocks for a file lock and a sync. NotFound; Conflict, when the policy
    is not the one it was decided on; BadInput, Misconfigured, when what is asked for cannot be."""
    for field, text in (("who", move.who), ("why", move.why)):
        if found := _CONTROL.search(text):
            raise BadInput(f"`{field}` holds {found[0]!r}, which terminals act on: write plain text on one line")
    change = move.change(repository, model)
    if move.policy is not None:
        change = only_on(move.policy, model, change)
    return repository.change_policy(model, change, who=move.who, why=move.why or move.said(verb))
