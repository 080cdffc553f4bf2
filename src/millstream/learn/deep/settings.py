"""How deep rankers are made: table [deep] of `millstream.toml`. Imports no framework."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from millstream.errors import Misconfigured

Kind = Literal["deepfm", "din"]
KINDS: Final[tuple[Kind, ...]] = ("deepfm", "din")
PRIMARY: Final = "probability"  # the output of the task that the model learns first of all
_LAYERS_MAX, _UNITS_MAX = 4, 1024
_TABLE_MAX: Final = (
    1 << 28
)  # numbers in the table of factors: 1 GiB of float32, well within what one ONNX file may have


class DeepSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Of DeepFM and DIN. Out of bounds: Misconfigured."""

    bits: Annotated[int, Meta(ge=10, le=22, description="log2 of the slots that tokens share")] = 18
    factors: Annotated[int, Meta(ge=1, le=128, description="numbers that stand for a token")] = 16
    hidden: Annotated[tuple[int, ...], Meta(description="units of each hidden layer, 1 to 4 layers")] = (64, 32)
    seen: Annotated[
        int, Meta(ge=1, le=1000, description="a token counts once so many examples or histories have it; else as none")
    ] = 2
    history: Annotated[
        int, Meta(ge=1, le=500, description="din: items of a user's history that are looked at, the newest")
    ] = 50
    attention: Annotated[
        int, Meta(ge=1, le=256, description="din: units that weigh an item of the history beside a candidate")
    ] = 16
    rate: Annotated[float, Meta(gt=0, le=1, description="step of the layers (Adam)")] = 0.002
    factors_rate: Annotated[float, Meta(gt=0, le=1, description="step of what stands for tokens (Adam)")] = 0.005
    decay: Annotated[float, Meta(ge=0, le=1, description="L2 penalty on the factors of each row")] = 1e-3
    dropout: Annotated[float, Meta(ge=0, lt=1, description="share of the hidden units left out while learning")] = 0.1
    batch: Annotated[int, Meta(ge=1, le=65_536, description="examples of one step")] = 512
    amounts: Annotated[
        tuple[str, ...],
        Meta(description="kinds of outcomes whose value is an output of its own, expected of a shown item: dwell"),
    ] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.hidden) <= _LAYERS_MAX or not all(1 <= units <= _UNITS_MAX for units in self.hidden):
            raise Misconfigured(
                f"deep.hidden = {list(self.hidden)}: 1 to {_LAYERS_MAX} layers of 1 to {_UNITS_MAX} units, please"
            )
        if self.factors << self.bits > _TABLE_MAX:
            raise Misconfigured(
                f"deep: 2^{self.bits} slots of {self.factors} factors are over 1 GiB; take fewer bits or factors"
            )


class Head(msgspec.Struct, frozen=True):
    """One thing to foretell of a shown item, and the output that says it: how likely a task's positive is, or with
    `amount` the value of a kind of outcome. `kept`: the share of the task's negatives that became examples."""

    name: str
    amount: bool = False
    kept: float = 1.0


def heads(primary: str, kept: dict[str, float], amounts: tuple[str, ...]) -> tuple[Head, ...]:
    """Of all tasks, `kept` by name, the primary one first; then of the amounts. Names that meet: Misconfigured."""
    named = [primary, *(name for name in kept if name != primary), *amounts]
    for at, name in enumerate(named):
        if name in named[:at] or name == PRIMARY:
            raise Misconfigured(f"deep.amounts and [join.tasks]: {name!r} would be two outputs; rename one")
    return tuple(Head(name, name not in kept, kept.get(name, 1.0)) for name in named)
