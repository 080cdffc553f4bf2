"""The definitions of an installation: a file of Python, read once, and what differs between two of them.

The file is run as it is: whoever may write it may run code here, as with the settings beside it.
"""

from __future__ import annotations

import runpy
from collections.abc import Iterable
from pathlib import Path

import msgspec

from millstream import errors
from millstream.features.define import Aggregate, Feature, Source
from millstream.features.sets import FeatureSet


class Registry(msgspec.Struct, frozen=True):
    """Feature sets by name, and the sources that any of them takes."""

    sets: dict[str, FeatureSet]
    sources: dict[str, Source]

    @classmethod
    def load(cls, path: Path) -> Registry:
        """What a file of definitions names: every FeatureSet among its globals. A file that cannot be run, two sets of
        one name, two sources of one name that differ, two features of one name that differ, a key and an entity of
        which one is the item: Misconfigured."""
        try:
            found = runpy.run_path(str(path))
        except errors.Error as error:
            raise errors.Misconfigured(f"{path}: {error}") from error
        except OSError as error:
            raise errors.Misconfigured(f"{path}: {error.strerror}; name the file of definitions") from error
        except (Exception, SystemExit) as error:  # sys.exit of a file is no reason for a service to end without a word
            raise errors.Misconfigured(f"{path} cannot be run: {type(error).__name__}: {error}") from error
        sets: dict[str, FeatureSet] = {}
        for one in found.values():
            if isinstance(one, FeatureSet) and sets.setdefault(one.name, one) is not one:
                raise errors.Misconfigured(
                    f"{path}: two feature sets are named {one.name}; a set has one definition here"
                )
        if not sets:
            raise errors.Misconfigured(f"{path}: it names no FeatureSet")
        for one in sets.values():
            _check_names(path, one)
        return cls(sets, _sources(path, sets))

    def find(self, name: str) -> FeatureSet:
        """The set of this name; NotFound."""
        if name not in self.sets:
            raise errors.NotFound(f"no feature set {name[:80]!r}; there are: {', '.join(sorted(self.sets))}")
        return self.sets[name]

    def names(self, topic: str) -> frozenset[str]:
        """The columns of a topic that name something, by all that is defined here; see names_of."""
        known = [names_of(one, ()) for one in self.sources.values() if one.log_topic == topic]
        known += [
            names_of(source, features.aggregates)
            for features in self.sets.values()
            for source in features.sources
            if source.log_topic == topic
        ]
        return frozenset().union(*known)

    def users(self, feature: str) -> list[str]:
        """The sets that a feature is in, or is a part of."""
        return sorted(name for name, one in self.sets.items() if feature in one.by_name)


class Difference(msgspec.Struct, frozen=True):
    """A feature in two definitions: `before` and `after` are its versions, "" where it is not there."""

    feature: str
    before: str
    after: str


def differences(before: FeatureSet, after: FeatureSet) -> list[Difference]:
    """The features whose values differ between two definitions of a set, by name."""
    old, new = ({name: one.hash_of(name) for name in one.by_name} for one in (before, after))
    names = sorted(old.keys() | new.keys())
    return [Difference(name, old.get(name, ""), new.get(name, "")) for name in names if old.get(name) != new.get(name)]


def lineage(features: FeatureSet, one: Feature) -> list[str]:
    """What a feature is made of, down to columns of sources: "outcomes.kind", or other features."""
    if isinstance(one, Aggregate):
        return [f"{one.source.name}.{column}" for column in sorted(one.looks_at)]
    below = [line for name in one.inputs for line in (name, *lineage(features, features.by_name[name]))]
    return list(dict.fromkeys(below))


def names_of(source: Source, aggregates: Iterable[Aggregate]) -> frozenset[str]:
    """The columns of text of a source that name something (its id, the keys of aggregates of it, `user`) and are kept
    under a pseudonym where the name is an address or a number of a person. Those of an item are kept as they are; so is
    the id of an outcome."""
    named = {"user", "" if source.log_topic == "outcomes" else source.id}
    named |= {one.key for one in aggregates if one.source.name == source.name}
    return frozenset(name for name in named - {"item"} if source.columns.get(name) == "text")


def _check_names(path: Path, features: FeatureSet) -> None:
    """Names of items are written and read as they are, all others maybe under a pseudonym: a column and the kind of
    entity that it names must agree on which."""
    for one in features.aggregates:
        if (one.key == "item") != (one.of == "item"):
            raise errors.Misconfigured(
                f"{path}: feature {one.name}: key = {one.key!r} names entity {one.of!r}; names of items are kept as "
                "they are, and all others are not where they are personal: let both be item, or neither"
            )


def _sources(path: Path, sets: dict[str, FeatureSet]) -> dict[str, Source]:
    sources: dict[str, Source] = {}
    features: dict[str, str] = {}
    for features_set in sets.values():
        for source in features_set.sources:
            if sources.setdefault(source.name, source).content != source.content:
                raise errors.Misconfigured(f"{path}: two sources are named {source.name}; give one another name")
        for name in features_set.by_name:
            version = features_set.hash_of(name)
            if features.setdefault(name, version) != version:
                raise errors.Misconfigured(f"{path}: two features are named {name}; give one another name")
    return sources
