"""What may be asked for, and what is made of it before anything is looked up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated

import msgspec

from millstream.errors import BadInput, NotFound, TooLarge
from millstream.flows.recommend.placement import Placement
from millstream.guard.pii import pseudonym, visitor
from millstream.guard.tenants import inside, person
from millstream.types import Ask


class AskLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds on a request for a list."""

    n_max: Annotated[int, msgspec.Meta(ge=1, le=1000, description="items on a page")] = 100
    candidates_max: Annotated[int, msgspec.Meta(ge=1, le=100_000, description="items of the caller's own")] = 1000
    exclude_max: Annotated[int, msgspec.Meta(ge=0, le=1_000_000, description="items that must not come")] = 20_000
    context_bytes_max: Annotated[
        int, msgspec.Meta(ge=0, le=1 << 20, description="what a request tells of the moment, bytes")
    ] = 8192
    name_bytes_max: Annotated[int, msgspec.Meta(ge=16, le=65536, description="longest id, bytes of UTF-8")] = 512
    lists_kept: Annotated[
        int, msgspec.Meta(ge=0, le=1_000_000, description="lists remembered for their next pages and for retries")
    ] = 10_000
    cursor_wait_s: Annotated[
        float, msgspec.Meta(ge=0.0, le=10.0, description="wait for another process's list to be heard of, seconds")
    ] = 0.2
    ahead_s_max: Annotated[
        float, msgspec.Meta(ge=0.0, description="how far event_time may lie ahead of this machine's clock, seconds")
    ] = 86400.0


def checked(ask: Ask, limits: AskLimits, now: float, placements: Mapping[str, Placement], tenant: str = "") -> Ask:
    """The request with its placement named, and people and a `tenant`'s names as the log knows them. BadInput,
    TooLarge, NotFound."""
    placement = ask.placement or next(iter(placements))
    if placement not in placements:
        raise NotFound(f"placement {placement[:80]!r} is not configured; there are: {', '.join(placements)}")
    if not ask.id:
        raise BadInput("id must not be empty: it names this request (yours, used again on a retry)")
    if ask.user and ask.visitor:
        raise BadInput("send user or visitor, not both; POST /v1/users/merge says that they are one")
    check_n(ask.n, limits)
    if len(ask.candidates) > limits.candidates_max:
        raise TooLarge(f"{len(ask.candidates)} candidates, at most {limits.candidates_max} of a caller's own")
    if len(ask.exclude) > limits.exclude_max:
        raise TooLarge(f"{len(ask.exclude)} items to exclude, at most {limits.exclude_max}")
    size = len(msgspec.json.encode(ask.context)) if ask.context else 0
    if size > limits.context_bytes_max:
        raise TooLarge(f"context has {size} bytes, at most {limits.context_bytes_max}: send what a list depends on")
    if odd := [name for name, value in ask.context.items() if isinstance(value, float) and not math.isfinite(value)]:
        raise BadInput(f"context.{odd[0][:80]}: no finite number; send one, or leave it out")
    said = [ask.id, ask.user or "-", ask.visitor or "-", ask.similar or "-"]
    check_names(limits.name_bytes_max, (*said, *ask.candidates, *ask.exclude))
    check_time(ask.event_time, now, limits.ahead_s_max)
    ask = msgspec.structs.replace(
        ask, placement=placement, user=person(tenant, pseudonym(ask.user)) if ask.user else "",
        visitor=person(tenant, visitor(ask.visitor)) if ask.visitor else "",
    )  # fmt: skip
    if not tenant:
        return ask
    return msgspec.structs.replace(
        ask, id=inside(tenant, ask.id), similar=inside(tenant, ask.similar),
        candidates=tuple(inside(tenant, item) for item in ask.candidates),
        exclude=tuple(inside(tenant, item) for item in ask.exclude),
    )  # fmt: skip


def check_n(n: int, limits: AskLimits) -> None:
    """BadInput where a page cannot have so many items; 0 is left to the placement."""
    if not 0 <= n <= limits.n_max:
        raise BadInput(f"n is {n}; a page has 1 to {limits.n_max} items")


def check_time(event_time: float, now: float, ahead_s_max: float) -> None:
    """BadInput for an event time that is none, before 1970, or too far ahead; 0 is left to the service."""
    if event_time < 0 and math.isfinite(event_time):  # its outcomes would all come too late
        raise BadInput(f"event_time {event_time:g} lies before 1970; send unix seconds, or none for now")
    ahead = event_time - now
    if not math.isfinite(ahead) or (event_time and ahead > ahead_s_max):
        raise BadInput(
            f"event_time {event_time:.0f} is {ahead:.0f} s ahead of this server's clock, "
            f"{ahead_s_max:.0f} s are allowed; send unix seconds"
        )


def check_names(bytes_max: int, names: Iterable[str]) -> None:
    """BadInput for an id that is empty or too long."""
    for name in names:
        size = len(name) if name.isascii() else len(name.encode(errors="surrogatepass"))
        if not 1 <= size <= bytes_max:
            raise BadInput(f"ids have 1 to {bytes_max} bytes of UTF-8, got {name[:40]!r} of {size}")
