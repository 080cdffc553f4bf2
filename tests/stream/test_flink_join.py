"""The join beside its Flink SQL: the same recorded events, the same rows. Each is the other's oracle."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from flink_cluster import environment, flink
from kafka_broker import Broker
from millstream import errors
from millstream.clock import FakeClock
from millstream.stream import Join, JoinSettings, Log, Operation, decode, encode
from millstream.stream.flink import configuration, connector, row, script, statements, tables
from millstream.stream.join import Task
from millstream.stream.reader import Record
from millstream.types import Example, Forgotten, Outcome, Served, SetAside

START = 1_700_000_000.0
KINDS = ("impression", "like", "buy", "dwell", "click", "nonsense")
SETTINGS = {
    "corrected": JoinSettings(
        keep_s=600.0, idle_s=3600.0, tasks={"like": Task(window_s=20.0, late="correct", negatives=0.5)}
    ),
    "one": JoinSettings(keep_s=600.0, idle_s=3600.0),
    "many": JoinSettings(
        keep_s=600.0,
        idle_s=3600.0,
        ahead_s=2.0,
        tasks={
            "like": Task({"like": 1.0}, window_s=20.0, late="correct", negatives=0.5),
            "watched": Task({"dwell": 10, "like": 2}, window_s=60.0, late="drop", negatives=0.25, negatives_by="shift"),
            "buy": Task(window_s=100.0, delayed="fnw", negatives=0.8),
            "o'clock": Task({"click": 0.0}, window_s=0.5, delayed="fnc"),
        },
    ),
}  # fmt: skip
Events = list[tuple[float, Served | Outcome]]
Found = tuple[Counter[tuple[Any, ...]], set[str]]


# --- recorded events -------------------------------------------------------------------------------------------------


def stream(seed: int, requests: int, differ: bool) -> Events:
    """Events by arrival: out of order, repeated, late, before their impressions, ahead of time, misdirected; most
    times are whole seconds, so that edges meet. `differ`: outcomes of one key may have different values. What names
    a request comes long before it is forgotten, or after."""
    draw = random.Random(seed)
    events: Events = []
    whole = START
    for number in range(requests):
        whole += draw.choice((0, 1, 3, 10)) + (200 if draw.random() < 0.01 else 0)  # or a quiet night
        at = whole + draw.choice((0, 0, draw.random()))
        items = [f"i{n}" for n in range(draw.randint(1, 4))]
        scores = [draw.choice((-0.5, 0.0, draw.random(), 1.0, 1.5)) for _ in items] if draw.random() < 0.9 else []
        events.append((at, served(f"r{number}", at, items, scores)))
        for item in items + (["stranger"] if draw.random() < 0.05 else []):
            events += _of_item(draw, f"r{number}" if draw.random() < 0.98 else f"unknown{number}", item, at, differ)
    marks = [START + 10 * n for n in range(requests // 5)]
    events += [(at, Outcome(kind="watermark", event_time=at - 30)) for at in marks]
    events.sort(key=lambda one: one[0])
    return [*events, (events[-1][0] + 1e6, Outcome(kind="watermark", event_time=events[-1][0] + 1e6))]


def edges(settings: JoinSettings) -> Events:
    """What comes when the watermark stands right at the end of a window, or of a request, or just before it: feedback
    of what was shown, an impression of what had feedback."""
    events: Events = []
    at = START - 1e6
    for length in sorted({task.window_s for task in settings.tasks.values()} | {settings.keep_s}):
        for early in (0.0, 0.25):
            for first, second in ((("impression",), KINDS[1:]), (KINDS[1:], ("impression",))):
                at += 3 * settings.keep_s
                events.append((at, served(f"edge{at}", at, ["i"], [0.5])))
                named = {"request": f"edge{at}", "item": "i", "value": 10.0}
                events += [(at, Outcome(kind=kind, event_time=at, **named)) for kind in first]
                events.append((at + length, Outcome(kind="watermark", event_time=at + length - early)))
                events += [(at + length, Outcome(kind=kind, event_time=at + 0.125, **named)) for kind in second]
    return events


def served(request: str, at: float, items: list[str], scores: list[float]) -> Served:
    packed = np.array(scores, "<f4").tobytes()
    return Served(request=request, model="m", version="1@0", policy=0, arm="live", user="u", candidates=items,
                  event_time=at, scores=packed)  # fmt: skip


def _of_item(draw: random.Random, request: str, item: str, at: float, differ: bool) -> Events:
    """What people did with an item, and how it came here."""
    found: Events = []
    shown = at + draw.randint(0, 20) + draw.choice((0, 0, draw.random()))
    offline = draw.random() < 0.1  # all of it comes at once, much later
    for kind in [*(["impression"] if draw.random() < 0.9 else []), *draw.choices(KINDS, k=draw.randint(0, 5))]:
        time = shown if kind == "impression" else shown + draw.randint(-60, 150) + draw.choice((0, 0, draw.random()))
        arrival = max(at, time + draw.choice((0, 0, 0.25, 1, 5, 40)) if not offline else at + 250)
        ahead = draw.choice((0, 0, 0, 0, 0, -30, 1, 4, 60))  # of the person's clock
        id = draw.choice(("", "", "", f"{request}{item}{kind}{draw.randint(0, 1)}"))
        values = draw if differ else random.Random(f"{id}{request}{item}{kind}")
        value = values.choice((0.0, 1.0, 2.0, 10.0))
        outcome = Outcome(request=request, item=item, kind=kind, value=value, event_time=time + ahead, id=id)
        found.append((arrival, outcome))
        if draw.random() < 0.15:
            found.append((arrival + draw.choice((0, 1, 100)), outcome))
    if draw.random() < 0.03:
        found.append((at + 1500, Outcome(request=request, item=item, kind="like", event_time=at + 1490, id="expired")))
    return _two_early(found)


def _two_early(events: Events) -> Events:
    """Without what came before the impression but for the first two: Flink tells no more windows apart."""
    shown = min((arrival for arrival, one in events if one.kind == "impression"), default=0.0)
    early = sorted((one for one in events if one[0] <= shown and one[1].kind != "impression"), key=lambda one: one[0])
    return [one for one in events if one not in early[2:]]


def record(folder: Path, events: Events) -> Log:
    """A log that has them, each stamped with its arrival."""
    clock = FakeClock(events[0][0])
    log = Log(folder / "log", clock)
    to = {Served: log.writer("served"), Outcome: log.writer("outcomes")}
    for arrival, event in events:
        clock.advance(arrival - clock.now())
        to[type(event)].append(b"", encode(event))
    for writer in to.values():
        writer.close()
    log.clock = clock
    return log


# --- both engines ----------------------------------------------------------------------------------------------------


def joined(folder: Path, log: Log, settings: JoinSettings) -> Found:
    """The rows of Millstream's own join, and what feedback was late."""
    operation = Operation(Join(settings), log, Join.inputs, "examples", folder / "snapshot", log.clock)
    while operation.step():
        pass
    examples: Counter[tuple[Any, ...]] = Counter()
    late: set[str] = set()
    kinds = {one.key(): one.kind for one in (decode(found.value) for found in log.reader("outcomes").records(0))}
    for found in log.reader("examples").records(0):
        event = decode(found.value)
        if isinstance(event, Example):
            columns = (event.request, event.item, event.task, event.label, event.event_time, event.weight, event.form)
            examples[columns] += 1
        elif isinstance(event, SetAside) and event.cause == "late" and event.outcome:
            late |= {event.outcome} if kinds[event.outcome] != "impression" else set()
    operation.close()
    return examples, late


def rows(log: Log, topic: str) -> list[dict[str, Any] | None]:
    """As `millstream log export` has them."""
    return [row(one, decode(one.value)) for one in log.reader(topic).records(0)]


def on_files(flink: Any, folder: Path, log: Log, settings: JoinSettings) -> Found:
    """The rows of the job, over what `millstream log export` prints, and what was late."""
    for topic in ("served", "outcomes"):
        (folder / f"{topic}.json").write_text("".join(json.dumps(one) + "\n" for one in rows(log, topic)))
    for statement in statements(settings, _files(folder, settings)):
        result = flink.executeSql(statement)
    getattr(result, "await")()
    late = [one["outcome"] for one in _written(folder / "late")]
    assert len(late) == len(set(late))
    return Counter(tuple(one.values()) for one in _written(folder / "examples")), set(late)


def _files(folder: Path, settings: JoinSettings) -> dict[str, dict[str, str]]:
    paths = {name: folder / f"{name.split('_')[0]}.json" for name in tables(settings)}
    paths |= {name: folder / name for name in ("examples", "late")}
    return {name: {"connector": "filesystem", "path": str(path), "format": "json"} for name, path in paths.items()}


def _written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in folder.glob("part-*") for line in file.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one", "many"])
def test_both_make_the_same_of_the_same_events(name: str, tmp_path: Path, on_flink: Callable[..., Any]) -> None:
    settings = SETTINGS[name]
    log = record(tmp_path, edges(settings) + stream(1, 800, differ=name == "one"))
    ours, ours_late = joined(tmp_path, log, settings)
    theirs, theirs_late = on_files(on_flink(), tmp_path, log, settings)
    assert (ours - theirs, theirs - ours) == ({}, {})
    assert ours_late == theirs_late
    forms = Counter((task, form, label) for _, _, task, label, _, _, form in ours.elements())
    assert all(forms[one] > 20 for one in _forms(settings)) and len(ours_late) > 50, forms


def _forms(settings: JoinSettings) -> list[tuple[str, str, float]]:
    """The kinds of examples that must have come up."""
    found = []
    for name, task in settings.tasks.items():
        early = task.delayed != "wait"
        found += [(name, "fake" if early else "", 0.0), (name, "late" if early else "", 1.0)]
        found += [(name, "late", 1.0)] if task.late == "correct" else []
    return found


# --- Kafka -> Flink -> Kafka -----------------------------------------------------------------------------------------


class Topics:
    """The topics of the job on a broker: rows go in by `put`; `committed` and `all` are what has come out."""

    def __init__(self, address: str) -> None:
        self._address = address
        names = [f"{name}-json" for name in ("served", "outcomes", "examples", "late")]
        client = AdminClient({"bootstrap.servers": address})
        for one in client.create_topics([NewTopic(name, 1, 1) for name in names]).values():
            one.result(10)
        self._producer = Producer({"bootstrap.servers": address})

    def put(self, topic: str, rows: list[dict[str, Any]]) -> None:
        for one in rows:
            self._producer.produce(f"{topic}-json", json.dumps(one).encode(), partition=0)
        assert self._producer.flush(10) == 0

    def out(self, topic: str, level: str = "read_committed") -> list[dict[str, Any]]:
        """All rows of a topic, to its end as of now."""
        asked = {"bootstrap.servers": self._address, "group.id": "test", "isolation.level": level}
        consumer = Consumer(asked | {"enable.auto.commit": False, "enable.partition.eof": True})
        consumer.assign([TopicPartition(f"{topic}-json", 0, 0)])
        found = []
        try:
            while True:
                message = consumer.poll(10)
                assert message is not None, "the broker is silent"
                if message.error():
                    assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                    return found
                found.append(json.loads(message.value()))
        finally:
            consumer.close()

    def until(self, enough: Callable[[], bool], seconds: float = 90.0) -> None:
        ends = time.monotonic() + seconds
        while not enough():
            assert time.monotonic() < ends, "Flink did not get so far"


def start(on: Callable[..., Any], settings: JoinSettings, address: str, checkpoints: Path, since: str = "") -> Any:
    """The job, from a checkpoint if one is given: its client."""
    own = {"execution.checkpointing.interval": "1 s", "execution.checkpointing.dir": checkpoints.as_uri()}
    run = on(configuration(settings) | own | ({"execution.state-recovery.path": since} if since else {}))
    options = {name: connector(name, address) for name in tables(settings)}
    for statement in statements(settings, options):
        result = run.executeSql(statement)
    return result.getJobClient().get()


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_from_kafka_to_kafka_each_example_is_told_once(tmp_path: Path, on_flink: Callable[..., Any]) -> None:
    """The Java that runs the job is killed while a transaction is open, and another goes on from its checkpoint."""
    settings = SETTINGS["corrected"]
    log = record(tmp_path, stream(2, 300, differ=False))
    ours, ours_late = joined(tmp_path, log, settings)
    outcomes, checkpoints = rows(log, "outcomes"), tmp_path / "checkpoints"
    at = len(outcomes) // 2
    broker = Broker()
    try:
        topics = Topics(broker.address)
        topics.put("served", rows(log, "served"))
        topics.put("outcomes", outcomes[:at])
        with flink(tmp_path) as (jvm, java):
            start(partial(environment, jvm), settings, broker.address, checkpoints)
            topics.until(lambda: any(one["form"] == "" and not one["label"] for one in topics.out("examples")))
            while True:
                topics.put("outcomes", outcomes[at : at + 10])
                at += 10
                java.send_signal(signal.SIGSTOP)  # nothing is committed while we look
                if (open := len(topics.out("examples", "read_uncommitted"))) > len(topics.out("examples")):
                    break
                java.send_signal(signal.SIGCONT)
                assert at < len(outcomes), "no transaction was ever open"
            java.kill()
            java.wait()
        assert 0 < len(topics.out("examples")) < open < ours.total()
        topics.put("outcomes", outcomes[at:])
        saved = max(checkpoints.glob("*/chk-*/_metadata"), key=lambda one: one.stat().st_mtime_ns)
        job = start(on_flink, settings, broker.address, checkpoints, saved.parent.as_uri())
        topics.until(lambda: len(topics.out("examples")) >= ours.total() and len(topics.out("late")) >= len(ours_late))
        job.cancel().get()
        assert Counter(tuple(one.values()) for one in topics.out("examples")) == ours
        assert sorted(one["outcome"] for one in topics.out("late")) == sorted(ours_late)
        assert len(topics.out("examples", "read_uncommitted")) > ours.total()  # what was open then is told by nobody
    finally:
        broker.close()


# --- its text --------------------------------------------------------------------------------------------------------


def test_what_flink_cannot_say_is_refused() -> None:
    settings = JoinSettings(tasks={"like": Task(), "buy": Task(delayed="defer", window_s=10.0, attribution_s=60.0)})
    with pytest.raises(errors.Misconfigured, match=r"join.tasks.buy: delayed = 'defer' .* use 'wait', 'fnw' or 'fnc'"):
        script(settings)
    with pytest.raises(
        errors.Misconfigured, match=r"no options for \['examples', 'late', 'outcomes', 'outcomes_30s'\]"
    ):
        statements(JoinSettings(), {"served": {"connector": "datagen"}})


def test_the_script_has_every_table_and_a_text_cannot_leave_its_quotes() -> None:
    evil = "x') OR 1 = 1; --\\`\"ü"
    made = script(JoinSettings(tasks={evil: Task({evil: 1.0}, window_s=0.25), "b": Task(window_s=90.0)}), "broker:9092")
    for name in ("served", "outcomes", "outcomes_0_25s", "outcomes_90s", "examples", "late"):
        assert made.count(f"CREATE TEMPORARY TABLE `{name}` (") == 1
    assert made.count("OR 1 = 1") == made.count("x'') OR 1 = 1; --\\`\"ü") > 5
    assert made.count("'") % 2 == 0 and made.count("(") == made.count(")") - made.count("x'')")
    assert made.count("'broker:9092'") == 6


def test_no_negative_waits_where_all_are_told_at_once() -> None:
    made = script(JoinSettings(tasks={"buy": Task(delayed="fnw")}))
    assert "SYSTEM_TIME" not in made and "outcomes_" not in made and "'fake'" in made


def test_rows_hold_what_the_log_has() -> None:
    at = Record(0, 7, 12.5, b"", b"")
    one = Outcome(request="r", item="i", kind="like", event_time=11.0, text="hello")
    assert row(at, one) == {"request": "r", "item": "i", "kind": "like", "value": 1.0, "event_time": 11.0, "id": "",
                            "arrival": 12.5}  # fmt: skip
    made = row(at, served("r", 10.0, ["a", "b"], [0.5, float("nan")]))
    assert made is not None and made["scores"] == [0.5, None] and made["candidates"] == ["a", "b"]
    assert row(at, served("r", 10.0, ["a"], []))["scores"] == [] and row(at, Forgotten()) is None
