"""`log`: the event log."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from millstream.cli.verbs import Verbs, count_of, not_negative
from millstream.errors import BadInput

if TYPE_CHECKING:
    from millstream.stream import Log


def add(verbs: Verbs) -> None:
    """The verbs of this file."""
    log = Verbs(verbs.add("log", _log, "the event log"))
    listed = log.add("list", _log, "topics and how much they hold")
    tail = log.add("tail", _log, "the last events of a topic")
    verify = log.add("verify", _log, "read every frame and check it")
    audit = log.add("audit", _log, "do the books balance: acknowledged = learnt + set aside")
    for one in (listed, tail, verify, audit):
        one.add_argument("dir", type=Path, help="the log's folder")
    tail.add_argument("topic")
    tail.add_argument("-n", type=count_of, default=10, help="events of each partition (default: 10)")
    verify.add_argument("topic", nargs="*")
    audit.add_argument("--ledger", type=Path, required=True, help="what the client was acknowledged")
    audit.add_argument("--window", type=not_negative, default=30.0, help="the join's window, seconds (default: 30)")
    history = log.add("import", _log, "bring existing history into topics")
    history.add_argument("file", type=Path, help=".csv, .tsv, .jsonl or .parquet")
    history.add_argument("-c", "--config", type=Path, required=True, help="millstream.toml of the installation")
    history.add_argument("--topic", choices=("users", "items", "outcomes"), default="outcomes")
    history.add_argument("--map", nargs="+", required=True, help="FIELD=COLUMN[:TYPE][>=NUMBER] ...")
    history.add_argument(
        "--delay", type=not_negative, default=1.0, help="feedback arrived so long after, seconds (default: 1)"
    )


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
