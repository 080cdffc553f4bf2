"""Which kind of learner, and how it learns: tables of `millstream.toml`. Imports no kernel."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from millstream.models.online.learner import bounded, refused

Kind = Literal["ftrl", "ftrl_table", "fm", "deepfm"]
BITS: Final = (10, 24)
LINEAR: Final = {"alpha": (1e-6, 100.0), "beta": (1e-6, 1e6), "l1": (0.0, 1e6), "l2": (0.0, 1e6)}
_FACTORS: Final = {
    "bits": BITS, "factors": (1, 64), "rate": (1e-6, 10.0), "ease": (1e-6, 1e6), "decay": (0.0, 1e3),
    "scale": (1e-6, 1.0),
}  # fmt: skip
_LAYERS_MAX, _UNITS_MAX = 3, 512


class LearnerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What learns, and from where."""

    kind: Annotated[
        Kind, msgspec.Meta(description="ftrl, ftrl_table, fm or deepfm, by the settings of that name; see learning.md")
    ] = "ftrl"
    start: Annotated[
        str,
        msgspec.Meta(description="`train` begins from this offline model: .npz, or a learner's file; empty: from none"),
    ] = ""
    start_squares: Annotated[
        float,
        msgspec.Meta(
            ge=0, le=1e9, description="squared gradients that a weight of an .npz counts as having seen; more: slower"
        ),
    ] = 1.0


class FtrlTableSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How FTRL-proximal learns over a table of tokens, and who is in it. Out of bounds: Misconfigured."""

    alpha: Annotated[float, msgspec.Meta(description="rate of a coordinate: alpha / (beta + sqrt(n))")] = 0.2
    beta: Annotated[float, msgspec.Meta(description="see alpha; a larger one is slower at first")] = 1.0
    l1: Annotated[float, msgspec.Meta(description="L1 penalty: what it outweighs stays exactly 0")] = 0.1
    l2: Annotated[float, msgspec.Meta(description="L2 penalty")] = 1.0
    bits: Annotated[
        int, msgspec.Meta(description="log2 of the places, 10 to 24; 3/4 may be taken, then nobody gets in")
    ] = 20
    seen: Annotated[
        int, msgspec.Meta(description="a token gets in once in so many rows that hold it, by chance; 1: at once")
    ] = 2
    keep: Annotated[
        int, msgspec.Meta(description="examples after which a token that was not seen leaves; 0: never")
    ] = 5_000_000

    def __post_init__(self) -> None:
        bounded("ftrl_table", self, {**LINEAR, "bits": BITS, "seen": (1, 1000), "keep": (0, 1e15)})


class FmSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a factorisation machine learns: its linear part by FTRL-proximal, its factors by AdaGrad, a rate to each
    coordinate. Out of bounds: Misconfigured."""

    alpha: Annotated[float, msgspec.Meta(description="linear part, and bias: rate alpha / (beta + sqrt(n))")] = 0.2
    beta: Annotated[float, msgspec.Meta(description="see alpha; a larger one is slower at first")] = 1.0
    l1: Annotated[float, msgspec.Meta(description="linear part: L1 penalty")] = 0.1
    l2: Annotated[float, msgspec.Meta(description="linear part: L2 penalty")] = 1.0
    bits: Annotated[int, msgspec.Meta(description="log2 of the number of slots, 10 to 24")] = 18
    factors: Annotated[int, msgspec.Meta(description="factors of a slot, 1 to 64")] = 8
    rate: Annotated[float, msgspec.Meta(description="factors: rate / (ease + sqrt(squared gradients))")] = 0.04
    ease: Annotated[float, msgspec.Meta(description="see rate; a larger one is slower at first")] = 0.1
    decay: Annotated[float, msgspec.Meta(description="factors: L2 penalty, in each row that has them")] = 0.0
    scale: Annotated[float, msgspec.Meta(description="factors begin between minus and plus so much")] = 0.03

    def __post_init__(self) -> None:
        bounded("fm", self, LINEAR | _FACTORS)


class DeepFmSettings(FmSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How DeepFM learns: as the factorisation machine it contains, and its layers by AdaGrad at a rate of their own."""

    hidden: Annotated[tuple[int, ...], msgspec.Meta(description="units of each hidden layer, 1 to 3 layers")] = (32, 16)
    dense_rate: Annotated[
        float, msgspec.Meta(description="layers: dense_rate / (ease + sqrt(squared gradients)); well below rate")
    ] = 0.01

    def __post_init__(self) -> None:
        bounded("deepfm", self, {**LINEAR, **_FACTORS, "dense_rate": (1e-7, 10.0)})
        if not 1 <= len(self.hidden) <= _LAYERS_MAX or not all(1 <= units <= _UNITS_MAX for units in self.hidden):
            raise refused("deepfm", "hidden", self.hidden, f"1 to {_LAYERS_MAX} layers of 1 to {_UNITS_MAX} units")
