"""Where a list stands, and how it is made there: paths of recall, filters, the ranker's part, and rules of order.

A placement may have several arms: sets of rules that different users' lists are put in order by, so that two policies
can be compared. Who gets which is decided by a hash of the user: the same one each time.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Annotated

import msgspec

from millstream.errors import Misconfigured
from millstream.flows.rerank.rules import Rules, Steps
from millstream.guard.tenants import inside

Meta = msgspec.Meta
QUOTA_MAX = 10_000


class PathSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A path of recall in a placement."""

    quota: Annotated[int, Meta(ge=1, le=QUOTA_MAX, description="items that the path may bring")] = 100
    deadline_ms: Annotated[
        float, Meta(gt=0, le=10_000, description="a path that takes longer is skipped and counted, milliseconds")
    ] = 20.0


class Filtering(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What must not come, whatever else fails. Items that are deleted or blocked never do."""

    stock: Annotated[bool, Meta(description="only items in stock")] = True
    seen_s: Annotated[
        float,
        Meta(ge=0.0, description="items that were shown to the user within so many seconds do not come; 0: they may"),
    ] = 0.0
    done: Annotated[
        tuple[str, ...], Meta(description="nor items with which the user did one of these kinds of things")
    ] = ()
    region: Annotated[
        str, Meta(description="context or attribute of a user with the region, for items that have some")
    ] = "region"
    age: Annotated[
        str, Meta(description="context or attribute of a user with the age, years, for items that ask for one")
    ] = "age"


class Arm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of several sets of rules of a placement."""

    share: Annotated[float, Meta(gt=0.0, le=1.0, description="share of the users whose lists follow these rules")]
    rerank: Steps = ()


class Placement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A place where a list stands. `rerank` counts where there are no `arms`."""

    n: Annotated[int, Meta(ge=1, le=1000, description="items on a page when a request does not say")] = 20
    list_max: Annotated[int, Meta(ge=1, le=1000, description="items of a list, all its pages together")] = 100
    candidates: Annotated[int, Meta(ge=1, le=10_000, description="items that are ranked, the best of recall")] = 500
    paths: Annotated[
        dict[str, PathSettings], Meta(description="paths of recall; none said: all that this installation has")
    ] = {}
    filters: Filtering = Filtering()
    score: Annotated[
        str, Meta(description="what a ranker's outputs are worth together, such as click * (1 + 2 * conversion)")
    ] = "probability"
    rank_ms: Annotated[
        float, Meta(gt=0, le=60_000, description="a ranker that takes longer is replaced for this list, milliseconds")
    ] = 50.0
    rerank: Steps = ()
    arms: Annotated[dict[str, Arm], Meta(description="sets of rules to compare; shares sum to 1")] = {}

    def __post_init__(self) -> None:
        if self.arms:
            if self.rerank:
                raise Misconfigured("a placement has rules of its own (rerank) or arms, not both")
            total = sum(arm.share for arm in self.arms.values())
            if abs(total - 1.0) > 1e-6:
                raise Misconfigured(f"the shares of arms {', '.join(self.arms)} sum to {total:g}; they must sum to 1")

    def arm_of(self, placement: str, user: str) -> str:
        """The arm of a user, "" where there are none."""
        if not self.arms:
            return ""
        digest = hashlib.blake2b(f"{placement}/{user}".encode(errors="surrogatepass"), digest_size=8, person=b"arm")
        left = int.from_bytes(digest.digest(), "big") / 2**64
        for name, arm in self.arms.items():
            left -= arm.share
            if left < 0:
                return name
        return next(reversed(self.arms))

    def inside(self, tenant: str) -> Placement:
        """This placement with the items that its rules name as the log names those of a tenant."""
        arms = {name: msgspec.structs.replace(of, rerank=_inside(tenant, of.rerank)) for name, of in self.arms.items()}
        return msgspec.structs.replace(self, rerank=_inside(tenant, self.rerank), arms=arms)

    def rules(self, arm: str) -> Rules:
        """The rules of an arm."""
        return Rules(self.arms[arm].rerank if arm else self.rerank)


class Tenant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A brand, shop or customer that an installation serves beside others, none of whom knows of the others."""

    placements: Annotated[
        dict[str, Placement], Meta(description="where its lists stand; without any, those of [recommend] are its own")
    ] = {}


def _inside(tenant: str, steps: Steps) -> Steps:
    return tuple(step.named(partial(inside, tenant)) for step in steps)
