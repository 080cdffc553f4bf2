"""Feature sets: what a model consumes, checked as a whole, in its order, and hashed.

Rules of the room:
- The hash of a set travels in the model's manifest, and its rows are kept apart from those of any other hash: two
  versions live side by side.
- Whatever a feature is made of is in the set, as a feature or as a part.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Final, Literal

import msgspec

from millstream import errors
from millstream.features.define import LIFETIME, SEMANTICS, Aggregate, Feature, Ratio, Source, check_name, span

DEPTH_MAX: Final = 100
FEATURES_MAX: Final = 4096


class FeatureSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """The features that a model consumes, in the order of its columns. Whatever they are made of must be among
    `features` or in `parts`, which are computed and not given to the model. `ttl`: rows of entities that had no event
    for so long may be dropped."""

    name: str
    features: tuple[Feature, ...]
    parts: tuple[Feature, ...] = ()
    ttl: str = LIFETIME
    owner: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        check_name(self.name, "feature set")
        where = f"feature set {self.name}"
        if not 1 <= len(self.features) + len(self.parts) <= FEATURES_MAX or not self.features:
            raise errors.Misconfigured(f"{where}: it names no feature, or with its parts over {FEATURES_MAX}")
        for one in self.ordered:
            self._check_parts(one)
        if len(set(self.columns)) < len(self.columns):
            twice = next(name for name in self.columns if self.columns.count(name) > 1)
            raise errors.Misconfigured(f"{where}: it has two columns {twice!r}; give a feature another name")
        ttl = span(self.ttl, where)
        for one in self.aggregates:
            if ttl and not 0 < one.span <= ttl:
                raise errors.Misconfigured(
                    f"{where}: {one.name} looks back {one.window}, longer than rows are kept (ttl {self.ttl})"
                )
        sources: dict[str, Source] = {}
        for one in self.aggregates:
            if sources.setdefault(one.source.name, one.source).content != one.source.content:
                raise errors.Misconfigured(f"{where}: two sources are named {one.source.name}")

    def _check_parts(self, one: Feature) -> None:
        """Refuse parts that are several values, or of which there is no ratio."""
        for name in one.inputs:
            part = self.by_name[name]
            if part.width > 1:
                raise errors.Misconfigured(
                    f"feature {one.name}: its part {name} is {part.width} values; take one of one"
                )
            if isinstance(one, Ratio) and part.datatype == "UINT32":
                raise errors.Misconfigured(f"feature {one.name}: its part {name} is text, and a ratio is of numbers")

    @cached_property
    def by_name(self) -> dict[str, Feature]:
        """All of them, parts too."""
        found: dict[str, Feature] = {}
        for one in (*self.features, *self.parts):
            if one.name in found and found[one.name] != one:
                raise errors.Misconfigured(f"feature set {self.name}: two features are named {one.name}")
            found[one.name] = one
        return found

    @cached_property
    def ordered(self) -> tuple[Feature, ...]:
        """All of them, each behind what it is made of."""
        done: dict[str, Feature] = {}

        def place(one: Feature, above: tuple[str, ...]) -> None:
            if one.name in done:
                return
            if len(above) > DEPTH_MAX:
                raise errors.Misconfigured(f"feature {one.name}: over {DEPTH_MAX} features are made of one another")
            if one.name in above:
                raise errors.Misconfigured(f"feature {one.name} is made of itself: {' -> '.join((*above, one.name))}")
            for name in one.inputs:
                if name not in self.by_name:
                    raise errors.Misconfigured(
                        f"feature set {self.name}: {one.name} is made of {name}, which is in neither features nor parts"
                    )
                place(self.by_name[name], (*above, one.name))
            done[one.name] = one

        for one in self.by_name.values():
            place(one, ())
        return tuple(done.values())

    @cached_property
    def aggregates(self) -> tuple[Aggregate, ...]:
        """What is kept of entities; everything else is computed from it when it is read."""
        return tuple(one for one in self.ordered if isinstance(one, Aggregate))

    @cached_property
    def entities(self) -> tuple[str, ...]:
        """The kinds of entities that have rows, in the order of their first feature."""
        return tuple(dict.fromkeys(one.of for one in self.aggregates))

    @property
    def sources(self) -> tuple[Source, ...]:
        return tuple({one.source.name: one.source for one in self.aggregates}.values())

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the model's columns: the feature's, or `name_0`, `name_1` ... of one that is several values."""
        return tuple(
            name
            for one in self.features
            for name in ([one.name] if one.width == 1 else [f"{one.name}_{at}" for at in range(one.width)])
        )

    @cached_property
    def datatype(self) -> Literal["FP32", "FP64"]:
        """Of the matrix: FP32 where that holds every feature exactly as it was declared, else FP64."""
        return "FP32" if all(one.datatype == "FP32" for one in self.features) else "FP64"

    @cached_property
    def hash(self) -> str:
        """16 hex digits of SHA-256 over the content of all of it: the version of the set."""
        parts = {one.name: one.content for one in self.ordered}
        content = [SEMANTICS, [one.name for one in self.features], parts, span(self.ttl)]
        return hashlib.sha256(msgspec.json.encode(content)).hexdigest()[:16]

    def hash_of(self, name: str) -> str:
        """The version of one feature: its own content and that of what it is made of."""
        return self._hashes[name]

    @cached_property
    def _hashes(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for one in self.ordered:
            content = [SEMANTICS, one.content, [found[part] for part in one.inputs]]
            found[one.name] = hashlib.sha256(msgspec.json.encode(content)).hexdigest()[:16]
        return found
