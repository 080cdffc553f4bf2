"""What a rule says: which quantity, of what, must not be above or below what, for how long; and what is done then."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from millstream.errors import Misconfigured
from millstream.watch.quantities import QUANTITIES

Severity = Literal["page", "ticket", "note"]
Action = Literal["", "freeze", "roll_back", "stop_canary"]


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A quantity over a window, for each group of labels apart, beside a limit; see docs/alerts.md."""

    quantity: Annotated[str, Meta(description="what is looked at; `millstream watch quantities` lists them")]
    of: Annotated[str, Meta(description="a count that it is divided by; empty: it stands alone")] = ""
    above: Annotated[float | None, Meta(description="the rule holds while it is more than this")] = None
    below: Annotated[float | None, Meta(description="the rule holds while it is less than this")] = None
    against: Annotated[
        Literal["", "peers", "past"],
        Meta(description="the limit is a multiple: of the median of the other servers, or of the same a day before"),
    ] = ""
    over_s: Annotated[float, Meta(ge=10, le=2678400, description="the window, seconds")] = 60.0
    also_s: Annotated[
        float, Meta(ge=0, le=2678400, description="a shorter window that must be beyond it too, seconds; 0: none")
    ] = 0.0
    for_s: Annotated[float, Meta(ge=0, le=86400, description="how long it must hold before it fires, seconds")] = 0.0
    least: Annotated[
        float, Meta(ge=0, description="fewer than this, of `of` (else of a count itself), say nothing")
    ] = 0.0
    matters: Annotated[
        float, Meta(ge=0, description="against peers or the past: the value itself must be so much at least")
    ] = 0.0
    where: Annotated[dict[str, str], Meta(description="only of what has these labels")] = {}
    by: Annotated[tuple[str, ...], Meta(description="the labels that make a group of its own")] = ()
    severity: Annotated[Severity, Meta(description="who must look: woken, the next day, or when there is time")] = (
        "ticket"
    )
    says: Annotated[str, Meta(max_length=500, description="what it means, in words")] = ""
    runbook: Annotated[str, Meta(max_length=500, description="where to read what to do")] = ""
    action: Annotated[Action, Meta(description="what is done to the model that the labels name")] = ""
    dry_run: Annotated[bool, Meta(description="the action is only said")] = True
    off: Annotated[bool, Meta(description="the rule is not looked at")] = False

    def __post_init__(self) -> None:
        for name in filter(None, (self.quantity, self.of)):
            if name not in QUANTITIES:
                close = ", ".join(sorted(one for one in QUANTITIES if one[:3] == name[:3])) or "see docs/alerts.md"
                raise ValueError(f"no quantity {name!r}: {close}")
        if (self.above is None) == (self.below is None):
            raise ValueError(f"the rule on {self.quantity} needs one of `above` and `below`")
        if self.of and "count" not in (QUANTITIES[self.of].kind,):
            raise ValueError(f"`of` is a count, and {self.of} is a level")
        if self.of and QUANTITIES[self.quantity].kind != "count":
            raise ValueError(f"{self.quantity} is a level: it is of nothing")
        if self.matters and (not self.against or self.above is None):
            raise ValueError("`matters` is for a rule with `above` against peers or the past; others have their limit")
        if self.against == "peers" and "server" not in self.by:
            raise ValueError("a rule against peers has a group for each server: put server in `by`")
        if self.action and "model" not in (*self.by, *self.where):
            raise ValueError(f"action {self.action} needs to know of which model: put model in `by` or `where`")

    @property
    def limit(self) -> float:
        """What it must not pass."""
        return self.above if self.above is not None else self.below or 0.0

    def passes(self, value: float) -> bool:
        """Whether a value is beyond the limit; NaN never is."""
        return value > self.above if self.above is not None else value < self.limit


def merged(shipped: dict[str, Rule], own: dict[str, Rule]) -> dict[str, Rule]:
    """The rules that are in force: one's own beside those that ship, of one name one's own."""
    for name in own:
        if not name.replace("-", "_").isidentifier():
            raise Misconfigured(f"watch.rules.{name}: a rule's name has letters, digits, - and _")
    return {name: rule for name, rule in (shipped | own).items() if not rule.off}
