"""`log`: the event log."""

from __future__ import annotations

import argparse
import json
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from millstream.cli.verbs import Verbs, count_of, not_negative
from millstream.errors import BadInput

if TYPE_CHECKING:
    from millstream.app.installation import Settings
    from millstream.stream import Log


def add(verbs: Verbs) -> None:
    """The verbs of this file."""
    log = Verbs(verbs.add("log", _log, "the event log"))
    listed = log.add("list", _log, "topics and how much they hold")
    tail = log.add("tail", _log, "the last events of a topic")
    verify = log.add("verify", _log, "read every frame and check it")
    audit = log.add("audit", _log, "do the books balance: acknowledged = learnt + set aside")
    export = log.add("export", _log, "a topic as JSON lines, which the join's Flink SQL reads")
    for one in (listed, tail, verify, audit, export):
        one.add_argument("dir", type=Path, help="the log's folder, or millstream.toml of an installation")
    tail.add_argument("topic")
    export.add_argument("topic", choices=("served", "outcomes"))
    export.add_argument("--to", type=Path, required=True, metavar="FILE", help="the file to write")
    sql = log.add("sql", _sql, "the join of an installation as a job for Flink SQL")
    sql.add_argument("-c", "--config", type=Path, required=True, help="millstream.toml of the installation")
    sql.add_argument("--kafka", default="", metavar="HOST:PORT", help="the brokers (default: to be filled in)")
    tail.add_argument("-n", type=count_of, default=10, help="events of each partition (default: 10)")
    verify.add_argument("topic", nargs="*")
    audit.add_argument("--ledger", type=Path, required=True, help="what the client was acknowledged")
    audit.add_argument(
        "--window", type=not_negative, help="the join's longest window, seconds (default: millstream.toml's, else 30)"
    )
    history = log.add("import", _log, "bring existing history into topics")
    history.add_argument("file", type=Path, help=".csv, .tsv, .jsonl or .parquet")
    history.add_argument("-c", "--config", type=Path, required=True, help="millstream.toml of the installation")
    history.add_argument("--topic", choices=("users", "items", "outcomes"), default="outcomes")
    history.add_argument("--map", nargs="+", required=True, help="FIELD=COLUMN[:TYPE][>=NUMBER] ...")
    history.add_argument(
        "--delay", type=not_negative, default=1.0, help="feedback arrived so long after, seconds (default: 1)"
    )


def _log(args: argparse.Namespace) -> object:
    if args.verb == "import":
        from millstream.app.installation import Installation
        from millstream.app.roles import import_history

        with Installation.open(args.config) as installation:
            count = import_history(installation, args.file, args.topic, args.map, args.delay)
        return {"topic": args.topic, "rows": count}
    with _opened(args.dir) as log:
        return _looked_at(log, args)


def _opened(where: Path) -> Log:
    """A folder's log, or the one of an installation, on Kafka too."""
    from millstream.clock import SystemClock
    from millstream.stream.log import Log, open_log

    if where.is_file():
        return open_log(where.parent / "log", SystemClock(), _settings(where).log)
    if not where.is_dir():
        raise BadInput(f"{where}: no such folder; a log is the folder `log` of an installation")
    return Log(where, SystemClock())


def _settings(file: Path) -> Settings:
    from millstream import config
    from millstream.app.installation import Settings

    return config.read(file, Settings)


def _looked_at(log: Log, args: argparse.Namespace) -> object:
    from millstream.stream.audit import audit, read_ledger

    if args.verb == "list":
        return [
            {"topic": t, "partitions": len(log.reader(t).partitions()), "records": _count(log, t)} for t in log.topics()
        ]
    if args.verb == "verify":
        reports = [log.verify(_known(log, topic)) for topic in args.topic or log.topics()]
        return {"sound": not any(r.corrupt for r in reports), "topics": reports}
    if args.verb == "audit":
        window_s, ahead_s, said_by = _windows(args.dir, args.window)
        books = audit(log, read_ledger(args.ledger), window_s, ahead_s)
        return {
            "sound": books.balanced, **msgspec.structs.asdict(books), "window_s": window_s, "window_by": said_by,
        }  # fmt: skip
    if args.verb == "export":
        return {"topic": args.topic, "rows": _export(log, _known(log, args.topic), args.to)}
    return _tail(log, args.topic, args.n)


def _windows(where: Path, asked: float | None) -> tuple[float, float, str]:
    """The longest window, how far clocks may run ahead, both in seconds, and who said the window."""
    from millstream.stream import JoinSettings

    settings = _settings(where).join if where.is_file() else JoinSettings()
    if asked is not None:
        return asked, settings.ahead_s, "--window"
    by = where.name if where.is_file() else "nobody (the default; give millstream.toml, or --window)"
    return settings.window_s, settings.ahead_s, by


def _sql(args: argparse.Namespace) -> object:
    from millstream.app.installation import Installation
    from millstream.stream.flink import script

    with Installation.open(args.config) as installation:
        text = script(installation.settings.join, args.kafka)
    return {"sql": text} if args.json else text.rstrip()


def _export(log: Log, topic: str, to: Path) -> int:
    """A line a record, in the log's order; what was forgotten has none. Of how many."""
    from millstream.stream import decode
    from millstream.stream.flink import row

    reader, count = log.reader(topic), 0
    with to.open("w") as file:
        for partition in reader.partitions():
            for record in reader.records(partition):
                if (one := row(record, decode(record.value))) is not None:
                    file.write(json.dumps(one) + "\n")
                    count += 1
    return count


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
        at = reader.end(partition) - 4 * n - 8  # offsets leap over what Kafka marks
        for record in deque(reader.records(partition, max(0, at)), maxlen=n):
            event = {
                name: f"<{len(value)} bytes>" if isinstance(value, bytes) else value
                for name, value in msgspec.structs.asdict(decode(record.value)).items()
            }
            found.append({"partition": partition, "offset": record.offset, "arrival": record.arrival, **event})
    return found
