"""Where the console listens."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class ConsoleSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The pages for people."""

    on: Annotated[bool, Meta(description="whether `millstream up` runs the console, too")] = False
    host: Annotated[str, Meta(description="the address that the console listens on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="of the console; 0: a free one")] = 8002
    idle_s: Annotated[
        float,
        Meta(ge=60.0, le=30 * 86400.0, description="a key that was entered is forgotten so long after its last use"),
    ] = 12 * 3600.0
