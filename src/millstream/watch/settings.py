"""What is watched, and by which rules."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from millstream.watch.alarms.defaults import DEFAULTS
from millstream.watch.alarms.levels import Level
from millstream.watch.alarms.rule import Rule, merged
from millstream.watch.alarms.targets import Delivery


class WatchSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The role `watch`; see docs/alerts.md."""

    on: Annotated[bool, Meta(description="whether `millstream up` runs the role")] = True
    every_s: Annotated[
        float, Meta(ge=1, le=60, description="how often counters are read and rules looked at, seconds")
    ] = 10.0
    keys_max: Annotated[
        int, Meta(ge=64, le=100_000, description="quantities times labels whose history is kept; 37 kB each")
    ] = 4096
    rules: Annotated[
        dict[str, Rule], Meta(description="rules of one's own, by name; one of a shipped rule's name replaces it")
    ] = {}
    levels: Annotated[
        dict[str, Level], Meta(description="what is promised, by model; `default`: of all models that are not named")
    ] = {}
    deliver: Annotated[
        dict[str, Delivery], Meta(description="where alerts are delivered beside the log, by name; see docs/alerts.md")
    ] = {}
    core_hour_price: Annotated[
        float, Meta(ge=0, description="of a CPU core for an hour, in any unit; costs of answers come in the same")
    ] = 0.0
    gpu_hour_price: Annotated[float, Meta(ge=0, description="of a GPU for an hour")] = 0.0

    def __post_init__(self) -> None:
        merged(DEFAULTS, self.rules)

    @property
    def in_force(self) -> dict[str, Rule]:
        """The rules by name: those that ship, and one's own."""
        return merged(DEFAULTS, self.rules)
