"""`train`: models that learn, from the log and while they serve."""

from __future__ import annotations

import argparse
import datetime
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millstream.cli.verbs import Verbs, count_of, moment, say
from millstream.errors import BadInput

if TYPE_CHECKING:
    from millstream.app.towers import Made as Towers
    from millstream.app.training import Made, Status
    from millstream.learn.validation import Figures


def add(verbs: Verbs) -> None:
    """The verbs of this file."""
    train = Verbs(verbs.add("train", _status, "models that learn"))

    def verb(name: str, run: Callable[[argparse.Namespace], object], help: str) -> argparse.ArgumentParser:
        made = train.add(name, run, help)
        made.add_argument("-c", "--config", type=Path, required=True, help="millstream.toml of the installation")
        return made

    _add_offline(verb("offline", _offline, "train a new version from the examples of the log"))
    verb("status", _status, "how a model learns: where it is, how good, how fresh")
    moves = [
        verb("pause", _move, "stop learning where it is; servers keep what they have"),
        verb("resume", _move, "let learning go on"),
        verb("rollback", _roll_back, "serve what was live at a time, as learnt by then, and learn on from there"),
    ]
    moves[-1].add_argument(
        "--to",
        type=moment,
        required=True,
        metavar="WATERMARK",
        help="2026-03-01T12:00:00Z, or unix seconds; not in the future",
    )
    for one in moves:
        one.add_argument("--who", default="command line", help="recorded with the change")
        one.add_argument("--why", default="", help="recorded with the change")


def _add_offline(offline: argparse.ArgumentParser) -> None:
    offline.add_argument("--since", type=moment, metavar="TIME", help="only examples that came later than this")
    offline.add_argument(
        "--until", type=moment, metavar="TIME", help="only up to this; those after it judge the version"
    )
    offline.add_argument(
        "--model", choices=("deepfm", "din", "towers"), default="",
        help="a deep ranker with an output for each task, by the settings of [deep]; it does not learn while it "
        "serves. Or two towers for recall, by those of [towers], from all that was liked",
    )  # fmt: skip
    offline.add_argument(
        "--passes", type=count_of, default=0, metavar="N",
        help="times over the examples (default: 1, of towers as [towers] says)",
    )  # fmt: skip
    offline.add_argument("--search", type=count_of, default=0, metavar="N", help="try so many other settings first")
    offline.add_argument("--seed", type=int, default=0, help="of what is tried (default: 0)")
    offline.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the learner: bits=22"
    )
    offline.add_argument(
        "--dataset", default="", metavar="NAME[@VERSION]",
        help="learn labelled rows of `millstream curate export` beside the examples, and judge by its gold rows, too",
    )  # fmt: skip
    offline.add_argument(
        "--as", dest="role", choices=("shadow", "canary"), default="",
        help="the part it gets at once; as a shadow it takes the place of an earlier one that was trained",
    )  # fmt: skip


def _offline(args: argparse.Namespace) -> object:
    from millstream.app import deep
    from millstream.app.installation import Installation
    from millstream.app.training import train
    from millstream.learn.offline import Plan

    plan = Plan(
        since=args.since,
        until=args.until,
        passes=args.passes or 1,
        trials=args.search,
        seed=args.seed,
        settings=dict(map(_setting, args.set)),
    )
    if args.model and args.dataset:
        raise BadInput(
            f"--dataset is for the model that learns row by row, and --model {args.model} is none: leave one out"
        )
    with Installation.open(args.config) as installation:
        if args.model == "towers":
            from millstream.app import towers

            found = towers.train(installation, plan, args.role, say, args.passes)
            return found if args.json else list(_retrieved(found))
        if args.model:
            made = deep.train(installation, args.model, plan, args.role, say)
        else:
            made = train(installation, plan, args.role, say, args.dataset)
    return made if args.json else list(_shown(made))


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        raise BadInput(f"--set {text!r}: write NAME=VALUE, as in millstream.toml") from None


def _shown(made: Made) -> Iterator[str]:
    """A new version for a person."""
    yield f"{made.model}: version {made.version} from {made.examples} examples" + (
        f", {made.role}" if made.role else ""
    )
    if made.figures:
        yield f"  {'judged by what came after':28}{'examples':>10}{'AUC':>8}{'logloss':>9}{'ECE':>8}{'p/y':>7}"
    for name, one in made.figures.items():
        yield f"  {name:28}{_row(one)}"


def _retrieved(made: Towers) -> Iterator[str]:
    """New towers for a person."""
    yield f"{made.model}: version {made.version} from {made.likes} likes of {made.people} people" + (
        f", {made.role}" if made.role else ""
    )
    if made.figures:
        yield f"  {'judged by what came after':28}{'people':>10}{'Recall@20':>11}{'NDCG@20':>9}"
    for name, one in made.figures.items():
        yield f"  {name:28}{one.people:10d}{one.recall:11.4f}{one.ndcg:9.4f}"


def _move(args: argparse.Namespace) -> object:
    from millstream.app.installation import Installation
    from millstream.app.training import change

    with Installation.open(args.config) as installation:
        return change(installation, "run" if args.verb == "resume" else "paused", args.who, args.why)


def _roll_back(args: argparse.Namespace) -> object:
    from millstream.app.installation import Installation
    from millstream.app.training import roll_back

    with Installation.open(args.config) as installation:
        return roll_back(installation, args.to, args.who, args.why)


def _status(args: argparse.Namespace) -> object:
    from millstream.app.installation import Installation
    from millstream.app.training import status

    with Installation.open(args.config) as installation:
        found = status(installation)
    return found if args.json else list(_told(found))


def _told(found: Status) -> Iterator[str]:
    """The status for a person."""
    why = f": {found.why} ({found.who})" if found.learning in ("paused", "pinned") else ""
    yield f"{found.model}: learning {found.learning}{why}"
    at = datetime.datetime.fromtimestamp(found.watermark, datetime.UTC).isoformat(timespec="seconds")
    yield (
        f"  served: version {found.live}@{found.pushes_on_base}, offset {found.offset} of {found.end} in `examples`"
        + (f", the last label came {at}" if found.watermark else "")
    )
    yield f"  calibration: slope {found.slope:g}, intercept {found.intercept:g}"
    for one in found.staleness:
        yield f"  staleness of {one.process}: p50 {one.p50_s:g} s, p99 {one.p99_s:g} s"
    if found.figures:
        yield f"  {'slice':24}{'scores':10}{'examples':>10}{'AUC':>8}{'logloss':>9}{'ECE':>8}{'p/y':>7}"
    for name, sources in found.figures.items():
        for source, figures in sources.items():
            yield f"  {name or 'all':24}{source:10}{_row(figures)}"


def _row(one: Figures) -> str:
    def told(value: float | None, width: int, digits: int) -> str:
        return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"

    honest = told(one.ece, 8, 4) + told(one.ratio, 7, 3)
    return f"{one.examples:10.0f}{told(one.auc, 8, 4)}{told(one.logloss, 9, 4)}{honest}"
