"""The changes people make to a policy, each as a function for `Repository.change_policy`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from msgspec.structs import replace

from millstream.errors import BadInput, NotFound
from millstream.models.policy import Canary, Policy
from millstream.models.repository import Repository

Change = Callable[[Policy], Policy]


def promote(version: str) -> Change:
    """Everybody gets `version`; canary, split and pin end."""
    return lambda policy: replace(policy, live=version, canary=None, split={}, pin="")


def roll_back(version: str) -> Change:
    """Everybody gets `version`, and it is pinned: learning stays off and nothing moves until somebody promotes."""
    return lambda policy: replace(policy, live=version, canary=None, split={}, pin=version)


def previous(repository: Repository, model: str) -> str:
    """The version that was live before the live one, and is still there. None: NotFound."""
    live, there = repository.policy(model).live, set(repository.versions(model))
    before = [policy.live for policy in repository.history(model) if policy.live != live and policy.live in there]
    if not before:
        raise NotFound(f"no version of {model} was live before {live}: name the one to go back to with --to")
    return before[-1]


def split(shares: Iterable[str], sticky_by: Literal["user", "request"]) -> Change:
    """Share traffic by weight: `["12=0.9", "13=0.1"]`."""
    weights = {}
    for share in shares:
        version, _, weight = share.partition("=")
        try:
            weights[version] = float(weight)
        except ValueError:
            raise BadInput(f"{share!r} is no share: write VERSION=WEIGHT, such as 13=0.1") from None
    return lambda policy: replace(policy, split=weights, sticky_by=sticky_by)


def canary(version: str, share: float) -> Change:
    """Give `version` a share of the traffic in (0, 1]; 0 ends the canary."""
    return lambda policy: replace(policy, canary=Canary(version, share) if share else None)


def shadow(versions: Sequence[str]) -> Change:
    """Score copies of the traffic with `versions`; none ends it."""
    return lambda policy: replace(policy, shadow=tuple(versions))


def learning(state: Literal["run", "paused"]) -> Change:
    """Pause learning where it is, or let it run."""
    return lambda policy: replace(policy, learning=state)
