"""The command line: each verb is a few lines over the rooms. Tables and logs go to stderr; with `--json` the result is
one line on stdout, the last thing printed. An error is one sentence on stderr and exit code 1."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from millstream import __version__
from millstream.errors import BadInput, Error, Missing

if TYPE_CHECKING:
    from millstream.stream import Log


T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command `millstream`."""
    args = _parser().parse_args(argv)
    level = logging.DEBUG if args.verbose else logging.INFO
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        result = args.run(args)
        built = msgspec.to_builtins(result)
        if result is not None:
            _show(built, args.json)
    except Error as error:
        sys.exit(f"millstream: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `| head` has seen enough; nothing more can be said to it, at the end neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        sys.exit(f"millstream: {error.filename or args.verb}: {error.strerror or error}")
    if isinstance(built, dict) and built.get("sound") is False:
        sys.exit(1)


def _show(result: object, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result), flush=True)
        return
    for row in result if isinstance(result, list) else [result]:
        print("  ".join(f"{key} {value}" for key, value in row.items()) if isinstance(row, dict) else row)
    sys.stdout.flush()


def _serve(args: argparse.Namespace) -> None:
    from millstream.app.plain import serve_path
    from millstream.engine import EngineLimits

    said = {"rows_max": args.max_batch_size, "wait_ms": args.max_wait_time, "instances": args.instances}
    said |= {"timeout_ms": args.timeout, "p99_ms": args.p99_ms}
    limits = EngineLimits(**{name: value for name, value in said.items() if value is not None})
    asyncio_run(serve_path(args.path, args.host, args.http_port, args.grpc_port, limits, args.device, args.sessions))


def _capacity(args: argparse.Namespace) -> object:
    from millstream.ops.capacity import capacity
    from millstream.ops.report import render

    found = asyncio_run(
        capacity(
            args.path,
            p99_ms=args.p99_ms,
            model=args.model,
            rows=args.rows,
            connections=args.connections,
            requests_per_day=args.requests_per_day,
            machine_cost_per_hour=args.machine_cost,
            peak_factor=args.peak_factor,
            seconds=args.seconds,
            progress=lambda line: print(line, file=sys.stderr, flush=True),
        )
    )
    return found if args.json else render(found)


def _up(args: argparse.Namespace) -> None:
    from millstream.app import roles

    asyncio_run(roles.run_role(args.config, args.role) if args.role else roles.supervise(args.config))


def _demo(args: argparse.Namespace) -> None:
    try:
        from millstream.demo.run import run
    except ImportError as error:
        raise Missing.extra("demo", f"the demo ({error})") from None
    logging.getLogger().setLevel(logging.WARNING)
    asyncio_run(run(args.data, args.dir, args.seconds, args.http_port, args.rate, args.json))


def _train(args: argparse.Namespace) -> object:
    from millstream.app.installation import Installation
    from millstream.app.roles import train

    with Installation.open(args.config) as installation:
        version = train(installation)
        return {"model": installation.model, "version": version}


def _models(args: argparse.Namespace) -> object:
    from millstream.models.repository import Repository

    repository = Repository.open(args.path)
    if args.verb == "verify":
        names = [(m, v) for m in repository.models() for v in repository.versions(m)]
        return [{"model": m, "version": v, "format": repository.verify(m, v).format} for m, v in names]
    found = []
    for model in repository.models():
        roles = repository.policy(model).named()
        for version in repository.versions(model):
            manifest = repository.manifest(model, version)
            found.append(
                {
                    "model": model,
                    "version": version,
                    "role": roles.get(version, "-"),
                    "format": manifest.format,
                    "made_by": str(manifest.lineage.get("made_by", "-")),
                }
            )
    return found


def _traffic(args: argparse.Namespace) -> object:
    from millstream.models import traffic
    from millstream.models.repository import Repository

    repository = Repository.open(args.path)
    if args.verb == "show":
        return repository.policy(args.model)
    change = {
        "promote": lambda: traffic.promote(args.version),
        "rollback": lambda: traffic.roll_back(args.to or traffic.previous(repository, args.model)),
        "split": lambda: traffic.split(args.shares, args.sticky_by),
        "canary": lambda: traffic.canary(args.version, args.share),
        "shadow": lambda: traffic.shadow(args.versions),
        "learning": lambda: traffic.learning(args.state),
    }[args.verb]()
    return repository.change_policy(args.model, change, who=args.who, why=args.why or f"traffic {args.verb}")


def _log(args: argparse.Namespace) -> object:
    from millstream.clock import SystemClock
    from millstream.stream import Log
    from millstream.stream.audit import audit, read_ledger

    if args.verb == "import":
        from millstream.app.installation import Installation
        from millstream.app.roles import import_history

        with Installation.open(args.config) as installation:
            count = import_history(installation, args.file, args.topic, args.map, args.delay)
        return {"topic": args.topic, "rows": count}
    if not args.dir.is_dir():
        raise BadInput(f"{args.dir}: no such folder; a log is the folder `log` of an installation")
    log = Log(args.dir, SystemClock())
    if args.verb == "list":
        return [
            {"topic": t, "partitions": len(log.reader(t).partitions()), "records": _count(log, t)} for t in log.topics()
        ]
    if args.verb == "verify":
        reports = [log.verify(_known(log, topic)) for topic in args.topic or log.topics()]
        return {"sound": not any(r.corrupt for r in reports), "topics": reports}
    if args.verb == "audit":
        books = audit(log, read_ledger(args.ledger), args.window)
        return {"sound": books.balanced, **msgspec.structs.asdict(books)}
    return _tail(log, args.topic, args.n)


def _count(log: Log, topic: str) -> int:
    reader = log.reader(topic)
    return sum(reader.end(partition) - reader.start(partition) for partition in reader.partitions())


def _known(log: Log, topic: str) -> str:
    if topic not in log.topics():
        raise BadInput(f"no topic {topic!r}; there are: {', '.join(log.topics()) or 'none'}")
    return topic


def _tail(log: Log, topic: str, n: int) -> list[object]:
    """The last n events of each partition; packed arrays are shown by their length."""
    from millstream.stream import decode

    reader = log.reader(_known(log, topic))
    found: list[object] = []
    for partition in reader.partitions():
        at = max(reader.start(partition), reader.end(partition) - n)
        for record in reader.read(partition, at, n):
            event = {
                name: f"<{len(value)} bytes>" if isinstance(value, bytes) else value
                for name, value in msgspec.structs.asdict(decode(record.value)).items()
            }
            found.append({"partition": partition, "offset": record.offset, "arrival": record.arrival, **event})
    return found


def _doctor(args: argparse.Namespace) -> object:
    from millstream.ops.doctor import examine, warm

    if args.warm:
        return warm()
    return examine(args.path)


def asyncio_run(main: Coroutine[object, object, T]) -> T:
    """Run on uvloop, the event loop of every process of this program."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def _bounded(of: Callable[[str], float], low: float, high: float, what: str) -> Callable[[str], float]:
    """A type of argument: a number within [low, high]."""

    def number(text: str) -> float:
        try:
            value = of(text)
        except ValueError:
            value = high + 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return number


_port = _bounded(int, 0, 65535, "a port: 0 to 65535")
_count_of = _bounded(int, 1, 1_000_000, "a number from 1 to 1000000")
_rows = _bounded(int, 1, 65536, "a number from 1 to 65536")
_instances = _bounded(int, 1, 256, "a number from 1 to 256")
_positive = _bounded(float, 0.001, 1e9, "a number above 0")
_from_zero = _bounded(float, 0.0, 1e12, "a number, 0 or more")
_not_negative = _bounded(float, 0.0, 1e9, "a number of seconds, 0 or more")


def _time(text: str) -> float:
    """A time of the command line, in milliseconds."""
    from millstream.models.manifest import milliseconds

    try:
        return milliseconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="millstream", description=__doc__)
    parser.add_argument("--version", action="version", version=f"millstream {__version__}")
    parser.set_defaults(json=False, verbose=False)
    verbs = _Verbs(parser)
    _add_demo(verbs)
    _add_roles(verbs)
    _add_models(verbs)
    _add_traffic(verbs)
    _add_log(verbs)
    _add_capacity(verbs)
    doctor = verbs.add("doctor", _doctor, "what is installed, what is missing, and how to get it")
    doctor.add_argument("path", type=Path, nargs="?", help="an installation's folder to look at too")
    doctor.add_argument("--warm", action="store_true", help="compile the learner's kernels now; the install does this")
    return parser


class _Verbs:
    """The verbs of a parser; each takes the options that every verb has."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        # Suppressed: `models --json list` has said it before `list` could take it back by a default of its own.
        self._shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
        self._shared.add_argument(
            "--json", action="store_true", help="print the result as one line of JSON, last, on stdout"
        )
        self._shared.add_argument("--verbose", action="store_true", help="say more on stderr")
        self._parsers = parser.add_subparsers(required=True, metavar="VERB")

    def add(self, name: str, run: Callable[[argparse.Namespace], object], help: str) -> argparse.ArgumentParser:
        made = self._parsers.add_parser(name, help=help, description=help, parents=[self._shared])
        made.set_defaults(run=run, verb=name)
        return made


def _add_demo(verbs: _Verbs) -> None:
    demo = verbs.add("demo", _demo, "the whole loop on real data: serve, log, join, learn, push")
    demo.add_argument("--data", choices=("movielens", "simulator"), default="movielens", help="what is replayed")
    demo.add_argument("--seconds", type=_positive, help="end so long after the first request (default: until Ctrl-C)")
    demo.add_argument("--rate", type=_positive, default=600.0, help="requests a second to aim at (default: 600)")
    demo.add_argument("--http-port", type=_port, default=8000, help="port of the service (default: 8000)")
    demo.add_argument("--dir", type=Path, help="an empty folder for its log and models (default: a temporary one)")


def _add_roles(verbs: _Verbs) -> None:
    serve = verbs.add("serve", _serve, "serve a model folder or a single .onnx file over HTTP and gRPC")
    serve.add_argument("path", type=Path, help="FILE.onnx, or a folder with NAME/VERSION/model.onnx")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    serve.add_argument("--http-port", type=_port, default=8000, help="0 picks a free one (default: 8000)")
    serve.add_argument("--grpc-port", type=_port, default=-1, help="0 picks a free one (default: the one after HTTP's)")
    serve.add_argument(
        "--max-batch-size",
        type=_rows,
        metavar="ROWS",
        help="most rows of a call (default: what takes 10 ms)",
    )
    serve.add_argument(
        "--max-wait-time", type=_time, metavar="TIME", help="a batch waits so long to fill, such as 5ms (default: none)"
    )
    serve.add_argument(
        "--instances",
        type=_instances,
        help="calls of a model at once (default: one less than the cores)",
    )
    serve.add_argument(
        "--timeout", type=_time, metavar="TIME", help="drop what is not answered by then (default: never)"
    )
    serve.add_argument(
        "--p99-ms", type=_positive, metavar="MS", help="the goal that the batcher pursues (default: none)"
    )
    serve.add_argument(
        "--device", default="cpu", help="cpu, cuda:0 or tensorrt:0, for models that do not say themselves"
    )
    serve.add_argument(
        "--sessions", type=Path, metavar="FILE", help="hand open sessions over to the next start in FILE"
    )
    up = verbs.add("up", _up, "run every role of an installation, supervised")
    up.add_argument("--role", choices=("serve", "learn"), help="run one role alone, in this process")
    train = verbs.add("train", _train, "fold the examples of the log into a new version")
    for one in (up, train):
        one.add_argument("-c", "--config", type=Path, required=True, help="millstream.toml of the installation")


def _add_capacity(verbs: _Verbs) -> None:
    capacity = verbs.add(
        "capacity", _capacity, "the highest rate that this machine serves a model at, and what that costs"
    )
    capacity.add_argument("path", type=Path, help="FILE.onnx, or a folder with NAME/VERSION/model.onnx")
    capacity.add_argument("--p99-ms", type=_positive, required=True, metavar="MS", help="99 of 100 answers under this")
    capacity.add_argument("--model", default="", help="which one, where the folder has several")
    capacity.add_argument("--rows", type=_count_of, default=1, help="rows of a request (default: 1)")
    capacity.add_argument("--connections", type=_count_of, default=64, help="requests at once (default: 64)")
    capacity.add_argument("--requests-per-day", type=_from_zero, default=0.0, metavar="X", help="to be served")
    capacity.add_argument(
        "--machine-cost", type=_from_zero, default=0.0, metavar="Y", help="of a machine like this, an hour"
    )
    capacity.add_argument(
        "--peak-factor",
        type=_bounded(float, 1.0, 1000.0, "a number from 1"),
        default=3.0,
        help="the busiest time beside the average (default: 3)",
    )
    capacity.add_argument("--seconds", type=_positive, default=2.0, help="of one trial; longer is surer (default: 2)")


def _add_models(verbs: _Verbs) -> None:
    models = _Verbs(verbs.add("models", _models, "what is in a repository"))
    for name, help in (("list", "versions and their roles"), ("verify", "check every file against its digest")):
        models.add(name, _models, help).add_argument("path", type=Path, help="the repository")


def _add_traffic(verbs: _Verbs) -> None:
    traffic = _Verbs(verbs.add("traffic", _traffic, "who gets which version"))
    of = {
        name: traffic.add(name, _traffic, help)
        for name, help in (
            ("show", "the policy of a model"),
            ("promote", "make a version live"),
            ("rollback", "make the version before it live and hold it there"),
            ("split", "share traffic between versions: 12=0.9 13=0.1"),
            ("canary", "give a version a share of the traffic"),
            ("shadow", "score with versions whose answers nobody gets"),
            ("learning", "pause or resume learning"),
        )
    }
    for one in of.values():
        one.add_argument("path", type=Path, help="the repository")
        one.add_argument("model")
        one.add_argument("--who", default="command line", help="recorded with the change")
        one.add_argument("--why", default="", help="recorded with the change")
    of["promote"].add_argument("version")
    of["rollback"].add_argument("--to", default="", help="the version to go back to (default: the one before)")
    of["split"].add_argument("shares", nargs="+", help="VERSION=WEIGHT ...")
    of["split"].add_argument("--sticky-by", choices=("user", "request"), default="user")
    of["canary"].add_argument("version")
    of["canary"].add_argument("--share", type=float, default=0.05, help="of the traffic (default: 0.05)")
    of["shadow"].add_argument("versions", nargs="*", help="none: no shadow")
    of["learning"].add_argument("state", choices=("run", "paused"))


def _add_log(verbs: _Verbs) -> None:
    log = _Verbs(verbs.add("log", _log, "the event log"))
    listed = log.add("list", _log, "topics and how much they hold")
    tail = log.add("tail", _log, "the last events of a topic")
    verify = log.add("verify", _log, "read every frame and check it")
    audit = log.add("audit", _log, "do the books balance: acknowledged = learnt + set aside")
    for one in (listed, tail, verify, audit):
        one.add_argument("dir", type=Path, help="the log's folder")
    tail.add_argument("topic")
    tail.add_argument("-n", type=_count_of, default=10, help="events of each partition (default: 10)")
    verify.add_argument("topic", nargs="*")
    audit.add_argument("--ledger", type=Path, required=True, help="what the client was acknowledged")
    audit.add_argument("--window", type=_not_negative, default=30.0, help="the join's window, seconds (default: 30)")
    history = log.add("import", _log, "bring existing history into topics")
    history.add_argument("file", type=Path, help=".csv, .tsv, .jsonl or .parquet")
    history.add_argument("-c", "--config", type=Path, required=True, help="millstream.toml of the installation")
    history.add_argument("--topic", choices=("users", "items", "outcomes"), default="outcomes")
    history.add_argument("--map", nargs="+", required=True, help="FIELD=COLUMN[:TYPE][>=NUMBER] ...")
    history.add_argument(
        "--delay", type=_not_negative, default=1.0, help="feedback arrived so long after, seconds (default: 1)"
    )
