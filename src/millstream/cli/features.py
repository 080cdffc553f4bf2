"""`features`: what is defined, what of it changed, what it is in SQL, and what it is of somebody now."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millstream.cli import materialise
from millstream.cli.verbs import Verbs
from millstream.errors import BadInput, Error, NotFound

if TYPE_CHECKING:
    from millstream.app.installation import Installation
    from millstream.features.define import Feature
    from millstream.features.registry import Registry
    from millstream.features.sets import FeatureSet

Row = dict[str, Any]


def add(verbs: Verbs) -> None:
    """The verbs of this file."""
    features = Verbs(verbs.add("features", _list, "the feature sets of an installation, and their values"))
    listed = features.add("list", _list, "sets, their features, what these are made of and who takes them")
    show = features.add("show", _show, "all that is said of a set, or of a feature")
    show.add_argument("name", help="of a set or of a feature")
    diff = features.add("diff", _diff, "features whose values another file of definitions makes otherwise")
    diff.add_argument("other", type=Path, help="the other file: what was before")
    sql = features.add("sql", _sql, "a set as SQL: one statement for a warehouse, or a job for Flink")
    sql.add_argument("name", help="of a set")
    sql.add_argument(
        "--dialect", default="duckdb", help="duckdb, bigquery, spark, hive, snowflake or flink (default: duckdb)"
    )
    sql.add_argument("--labels", help="the table with entities and times (default: labels); Flink has none")
    get = features.add("get", _get, "features as serving reads them now, out of the installation's rows")
    get.add_argument("name", help="of a set")
    get.add_argument("--user", type=_names, metavar="NAME[,NAME ...]", help="users: as many as items, or one for all")
    get.add_argument("--item", type=_names, metavar="NAME[,NAME ...]", help="items")
    get.add_argument(
        "--of",
        type=_said,
        action="append",
        default=[],
        metavar="KIND=NAME[,NAME ...]",
        help="entities of another kind",
    )
    get.add_argument(
        "--request",
        type=_said,
        action="append",
        default=[],
        metavar="NAME=NUMBER[,NUMBER ...]",
        help="what transforms take of a request",
    )
    checked = features.add("verify", _verify, "recompute what serving read from the log; exit code 1 where it differs")
    materialise.add(features)
    for one in (listed, show, diff, sql, get, checked):
        where = one.add_mutually_exclusive_group(required=True)
        where.add_argument("-c", "--config", type=Path, help="millstream.toml of the installation")
        if one not in (get, checked):
            where.add_argument("--definitions", type=Path, metavar="FILE", help="the file of definitions itself")


def _names(text: str) -> list[str]:
    return [one for one in text.split(",") if one]


def _said(text: str) -> tuple[str, list[str]]:
    name, said, values = text.partition("=")
    if not name or not said:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, _names(values)


def _registry(args: argparse.Namespace) -> tuple[Registry, Path | None]:
    """The definitions, and the installation's repository if there is one."""
    from millstream.features.registry import Registry

    if args.config is None:
        return Registry.load(args.definitions), None
    from millstream.app.installation import Installation

    with Installation.open(args.config) as installation:
        return _defined(installation), installation.folder / "models"


def _defined(installation: Installation) -> Registry:
    registry = installation.registry
    if not registry.sets:
        raise NotFound(f"{installation.folder}: no feature sets; name their file in [feature_store] definitions")
    return registry


def _list(args: argparse.Namespace) -> object:
    registry, models = _registry(args)
    users = _users(models)
    sets = [_set(registry, one, users) for _, one in sorted(registry.sets.items())]
    return sets if args.json else [line for one in sets for line in _lines(one)]


def _show(args: argparse.Namespace) -> object:
    registry, models = _registry(args)
    users = _users(models)
    if args.name in registry.sets:
        found = _set(registry, registry.sets[args.name], users, whole=True)
        return found if args.json else _lines(found)
    if not (sets := registry.users(args.name)):
        raise NotFound(f"no feature set and no feature {args.name[:80]!r}; sets: {', '.join(sorted(registry.sets))}")
    one = registry.sets[sets[0]]
    feature = _feature(registry, one, one.by_name[args.name], whole=True) | {
        "models": sorted(model for name in sets for model in users.get(registry.sets[name].hash, ()))
    }
    return feature if args.json else [f"{name} {said}" for name, said in _words(feature).items()]


def _set(registry: Registry, one: FeatureSet, users: dict[str, list[str]], whole: bool = False) -> Row:
    more = _whole_set(one) if whole else {}
    return {
        "set": one.name,
        "hash": one.hash,
        "owner": one.owner,
        "description": one.description,
        "entities": list(one.entities),
        "columns": list(one.columns),
        "models": users.get(one.hash, []),
        **more,
        "features": [_feature(registry, one, feature, whole) for feature in one.by_name.values()],
    }


def _whole_set(one: FeatureSet) -> Row:
    from millstream.features.plan import Plan

    return {
        "datatype": one.datatype,
        "ttl": one.ttl,
        "sources": [source.name for source in one.sources],
        "state_bytes": [f"{kind} {Plan(one, kind).state_bytes}" for kind in one.entities],
    }


def _feature(registry: Registry, features: FeatureSet, one: Feature, whole: bool = False) -> Row:
    from millstream.features.define import Aggregate
    from millstream.features.registry import lineage

    found: Row = {
        "feature": one.name,
        "version": features.hash_of(one.name),
        "made_of": lineage(features, one),
        "sets": registry.users(one.name),
        "description": one.description,
    }
    if not whole:
        return found
    found |= {"kind": type(one).__name__.lower(), "datatype": one.datatype, "owner": one.owner}
    if isinstance(one, Aggregate):
        found |= {"entity": one.of, "op": one.op, "window": one.window, "values": one.n}
        found |= {"grain_s": one.hop / 1e6} if one.hop else {}
        found |= {name: said for name in ("where", "half_life") if (said := getattr(one, name))}
        found |= {"q": one.q} if one.op == "quantile" else {}
    return found


def _lines(one: Row) -> list[str]:
    """A set as lines: its own, then one for each feature; what is empty is left out."""
    own = {name: said for name, said in one.items() if name != "features"} | {"columns": len(one["columns"])}
    return [_line(own), *("  " + _line(feature) for feature in one["features"])]


def _line(row: Row) -> str:
    return "  ".join(f"{name} {said}" for name, said in _words(row).items())


def _words(row: Row) -> Row:
    """Its fields in plain words: lists with commas, a whole number without a point; what is empty is left out."""
    words: Row = {}
    for name, said in row.items():
        whole = isinstance(said, float) and said.is_integer()
        words[name] = ",".join(said) if isinstance(said, list) else int(said) if whole else said
    return {name: said for name, said in words.items() if said != ""}


def _users(models: Path | None) -> dict[str, list[str]]:
    """The models and versions that were trained on a set, by its hash. A version that cannot be read has none."""
    from millstream.models.repository import Repository

    found: dict[str, list[str]] = {}
    if models is None or not models.is_dir():
        return found
    repository = Repository(models)
    for model in repository.models():
        for version in repository.versions(model):
            try:
                features = repository.manifest(model, version).features
            except Error:
                continue
            if features:
                found.setdefault(features, []).append(f"{model}/{version}")
    return found


def _diff(args: argparse.Namespace) -> object:
    from millstream.features.registry import Registry, differences

    now, before = _registry(args)[0].sets, Registry.load(args.other).sets
    rows: list[Row] = []
    for name in sorted(now.keys() | before.keys()):
        old, new = before.get(name), now.get(name)
        hashes = {"before": old.hash if old else "", "after": new.hash if new else ""}
        if hashes["before"] == hashes["after"]:
            continue
        rows.append({"set": name, "feature": "", **hashes})
        if old is not None and new is not None:
            rows += [
                {"set": name, "feature": one.feature, "before": one.before, "after": one.after}
                for one in differences(old, new)
            ]
    if args.json:
        return rows
    return [
        f"{'  feature ' + row['feature'] if row['feature'] else 'set ' + row['set']}  "
        f"{row['before'] or 'not there'} -> {row['after'] or 'not there'}"
        for row in rows
    ]


def _sql(args: argparse.Namespace) -> object:
    from millstream.features.flink import DIALECT, flink
    from millstream.features.sql import sql

    features = _registry(args)[0].find(args.name)
    if args.dialect == DIALECT:
        if args.labels is not None:
            raise BadInput("--labels: Flink answers for every entity at every hop, there are no labels; leave it out")
        text = flink(features)
    else:
        text = sql(features, args.dialect, "labels" if args.labels is None else args.labels)
    return {"set": args.name, "dialect": args.dialect, "sql": text} if args.json else text.rstrip()


def _get(args: argparse.Namespace) -> object:
    from millstream.app.installation import Installation
    from millstream.flows.features import Features
    from millstream.front.features import document
    from millstream.meter import Meter

    given = {"user": args.user, "item": args.item, **dict(args.of)}
    entities = {kind: names for kind, names in given.items() if names is not None}
    request = {name: _numbers(name, values) for name, values in args.request}
    with Installation.open(args.config) as at:
        reads = Features(_defined(at), at.rows, at.clock, Meter(), at.settings.feature_store.stale_s_max)
        read = reads.read(args.name, entities, request)
    found: Row = json.loads(document(read))
    if args.json:
        return found
    unknown = [f"{kind} {entities[kind][at]}" for kind, gone in read.missing.items() for at in gone.nonzero()[0]]
    told = f"; without a row: {', '.join(unknown)}" if unknown else ""
    print(f"as of {read.age_s:.1f} s ago{', stale' if read.stale else ''}{told}", file=sys.stderr)
    return [
        {kind: names[row % len(names)] for kind, names in entities.items()}
        | dict(zip(read.columns, values, strict=True))
        for row, values in enumerate(found["values"])
    ]


def _verify(args: argparse.Namespace) -> object:
    from millstream.app.installation import Installation
    from millstream.features.offline import events_of
    from millstream.features.verify import verify

    with Installation.open(args.config) as at:
        registry = _defined(at)
        before = {name: events_of(one, at.folder / one.table) for name, one in registry.sources.items() if one.table}
        found = verify(registry.sets, at.log, before)
    return {"sound": found.sound, "reads": found.reads, "values": found.values, "odd": found.odd}


def _numbers(name: str, values: list[str]) -> list[float | None]:
    try:
        return [float(one) for one in values]
    except ValueError:
        raise BadInput(f"--request {name}={','.join(values)}: numbers, with commas between them") from None
