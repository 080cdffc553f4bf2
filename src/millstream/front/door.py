"""What a border asks of the house behind it.

Rules of the room:
- The Door authorises and answers; the border only authenticates, reads and writes. The same Door serves every border.
- An error of `millstream.errors` carries its own status; anything else that comes out of a Door is a bug of ours.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from millstream.types import Description, Outcome, Output, Principal, Rank, Ranked, Request

Call = Request | Rank | list[Outcome]
Answer = asyncio.Future[Output] | asyncio.Future[Ranked] | asyncio.Future[int]


class Door(Protocol):
    """The calls a border makes. None of them blocks; all run on the event loop of the border."""

    def call(self, request: Call, principal: Principal) -> Answer:
        """Start one call: Request -> Output, Rank -> Ranked, outcomes -> how many are durable now.

        May raise at once instead. A caller that goes away cancels the future.
        """

    def admit(self, principal: Principal, model: str, verb: str) -> None:
        """Raise errors.Forbidden where the principal may not do this: for a border to ask before it reads a body."""

    def describe(self, model: str, version: str = "") -> Description:
        """A served model, or errors.NotFound. The same object until it changes: borders look at its identity first."""

    def models(self) -> list[Description]:
        """Every served model."""

    def ready(self, model: str = "", version: str = "") -> bool:
        """Whether the service (or one model of it) answers now."""

    def metrics(self) -> str:
        """The Prometheus text of every process of this service."""

    def principal(self, key: str | None, peer: str) -> Principal:
        """Who presents `key` from the address `peer`, or errors.Unauthenticated."""
