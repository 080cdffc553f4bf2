"""The log on a Kafka cluster: the laws of the embedded one, and what only a cluster can do to it."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import msgspec
import numpy as np
import pytest

from kafka_broker import Broker, limits
from millstream import errors
from millstream.app.forget import forget
from millstream.app.installation import Installation
from millstream.cli import main
from millstream.clock import FakeClock, SystemClock
from millstream.guard.pii import Redacted
from millstream.meter import Meter
from millstream.stream import Join, JoinSettings, LenientReader, Log, Operation, decode, encode
from millstream.stream.kafka import KafkaLog
from millstream.stream.log import LogLimits, open_log
from millstream.stream.operator import group
from millstream.testing import check_log
from millstream.types import Entity, Outcome, Served


@pytest.fixture(scope="module")
def cluster():
    """None where the environment names a cluster."""
    broker = None if os.environ.get("KAFKA_BOOTSTRAP") else Broker()
    yield broker
    if broker is not None:
        broker.close()


@pytest.fixture
def own():
    """A broker that a test may stop."""
    broker = Broker()
    yield broker
    broker.close()


def some(*numbers: int) -> list[tuple[bytes, Redacted]]:
    return [(b"k", Redacted(b"%d" % number)) for number in numbers]


def values(log: Log, topic: str = "t", partition: int = 0) -> list[int]:
    return [int(record.value) for record in log.reader(topic).records(partition)]


def test_it_keeps_the_promises_of_a_log(tmp_path, cluster):
    where = limits(cluster)
    check_log(lambda: open_log(tmp_path, SystemClock(), where))
    with open_log(tmp_path, SystemClock(), where) as log:
        assert isinstance(log, KafkaLog)
        assert not any(log.verify(topic).corrupt for topic in log.topics())
        assert log.verify("check-order").records == 50
        assert {"readers", "others"} == set(log.groups())
        log.forget("others")
        assert log.groups() == ["readers"] and log.committed("others", "check-order") == {}


def test_offsets_leap_over_markers_and_nobody_reads_one(tmp_path, cluster):
    with open_log(tmp_path, FakeClock(5.0), limits(cluster)) as log:
        writer, reader = log.writer("t"), log.reader("t")
        first = [writer.append_frame(some(n, n + 1), meta=b"step %d" % n) for n in (0, 2, 4)]
        assert writer.append_frame([], meta=b"alone") > first[-1]
        assert values(log) == list(range(6))
        records = reader.read(0, 0)
        assert [r.offset for r in records] != list(range(6)), "this test is about leaps"
        after = records[-1].offset + 1
        assert after < reader.end(0) == writer.end
        assert reader.read(0, after) == [] == reader.read(0, after), "between the last record and the end is nothing"
        writer.append(b"k", Redacted(b"6"))
        assert [int(r.value) for r in reader.read(0, after)] == [6]
        frames = list(reader.frames(0))
        assert [(f.first, f.count, f.meta) for f in frames[:3]] == [
            (at, 2, b"step %d" % n) for at, n in zip(first, (0, 2, 4), strict=True)
        ]
        assert [f.meta for f in frames[3:]] == [b"alone"] and frames[3].count == 0
        assert [f.meta for f in reader.frames(0, first[2])] == [b"step 2", b"step 4", b"alone"]
        assert next(iter(reader.frames(0, writer.end))).meta == b"alone", "the last one before it is repeated"


def test_arrival_keeps_its_microseconds_and_never_goes_back(tmp_path, cluster):
    clock, where = FakeClock(1_000_000.123456), limits(cluster)
    with open_log(tmp_path, clock, where) as log:
        log.writer("t").append(b"", Redacted(b"0"))
        clock.jump(-3600.0)
        log.writer("u").append(b"", Redacted(b"0"))
    with open_log(tmp_path, clock, where) as log:
        log.writer("t").append_frame(some(1, 2))
        assert [r.arrival for r in log.reader("t").records(0)] == [1_000_000.123456] * 3
        assert log.reader("u").read(0, 0)[0].arrival == 1_000_000.123456 - 3600.0


def test_a_newer_writer_on_another_machine_ends_the_older_ones_frames(tmp_path, cluster):
    where = limits(cluster)
    with open_log(tmp_path / "a", SystemClock(), where) as a, open_log(tmp_path / "b", SystemClock(), where) as b:
        older = a.writer("t")
        older.append_frame(some(0), meta=b"0")
        newer = b.writer("t")
        newer.append_frame(some(1), meta=b"1")
        with pytest.raises(errors.Conflict, match="newer writer"):
            older.append_frame(some(9), meta=b"9")
        with pytest.raises(errors.Conflict):
            older.append_frame(some(9), meta=b"9")
        assert "newer" in a.failed and values(b) == [0, 1]
        assert [f.meta for f in b.reader("t").frames(0)] == [b"0", b"1"]


def test_who_decided_by_a_log_that_has_grown_since_may_not_write(tmp_path, cluster):
    where = limits(cluster)
    with open_log(tmp_path / "a", SystemClock(), where) as a, open_log(tmp_path / "b", SystemClock(), where) as b:
        one, other = a.writer("t"), b.writer("t")
        one.append_frame([], meta=b"step 1")
        with pytest.raises(errors.Conflict, match="since this writer was opened"):
            other.append_frame([], meta=b"step 1, too")
        assert [f.meta for f in b.reader("t").frames(0)] == [b"step 1"]


CHILD = textwrap.dedent(
    """
    import os, sys, time
    from pathlib import Path
    import msgspec
    from millstream.clock import SystemClock
    from millstream.stream.kafka_writer import KafkaWriter
    from millstream.stream.log import LogLimits, open_log

    writer = open_log(Path(sys.argv[1]), SystemClock(), msgspec.json.decode(sys.argv[2], type=LogLimits)).writer("t")
    for number in range(int(sys.argv[3])):
        writer.append_frame([(b"k", b"%d" % (2 * number)), (b"k", b"%d" % (2 * number + 1))], meta=b"%d" % number)

    def hang(self, producer):
        producer.flush(10.0)  # all of it is on the broker, and the transaction is open
        os.write(1, b"in the middle\\n")
        time.sleep(60.0)

    KafkaWriter._commit = hang
    writer.append_frame([(b"k", b"1000"), (b"k", b"1001")], meta=b"never")
    """
)


def test_kill_nine_in_the_middle_of_a_frame_leaves_none_of_it(tmp_path, cluster):
    where = limits(cluster)
    command = [sys.executable, "-c", CHILD, str(tmp_path), msgspec.json.encode(where).decode(), "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"in the middle\n"
        os.kill(child.pid, signal.SIGKILL)
    with open_log(tmp_path, SystemClock(), where) as log:
        writer = log.writer("t")  # ends the transaction that was left open
        writer.append(b"k", Redacted(b"6"))
        assert values(log) == list(range(7)), "what is appended after it is not held up by it"
        writer.append_frame(some(7), meta=b"3")
        assert values(log) == list(range(8))
        assert [f.meta for f in log.reader("t").frames(0)] == [b"0", b"1", b"2", b"3"]


DURABLE = textwrap.dedent(
    """
    import asyncio, os, sys
    from pathlib import Path
    import msgspec
    from millstream.clock import SystemClock
    from millstream.stream.log import LogLimits, open_log

    async def main(root, limits, at):
        writer = open_log(Path(root), SystemClock(), msgspec.json.decode(limits, type=LogLimits)).writer("t")
        while True:
            sent = []
            for _ in range(40):
                sent.append((at, writer.append_durable(b"k", b"%d" % at)))
                at += 1
            for number, future in sent:
                os.write(1, b"%d %d\\n" % (number, await future))

    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
    """
)


@pytest.mark.slow
def test_kill_nine_at_random_moments_loses_nothing_acknowledged_and_doubles_nothing(tmp_path, cluster):
    where, moments, acked = limits(cluster), random.Random(20), {}
    for round_ in range(3):
        command = [sys.executable, "-c", DURABLE, str(tmp_path), msgspec.json.encode(where).decode()]
        with subprocess.Popen([*command, str(round_ * 1_000_000)], stdout=subprocess.PIPE) as child:
            lines = [child.stdout.readline()]
            until = time.monotonic() + moments.uniform(0.02, 0.3)
            while time.monotonic() < until:
                lines.append(child.stdout.readline())
            os.kill(child.pid, signal.SIGKILL)
            rest = child.stdout.read()
        for line in b"".join([*lines, rest]).splitlines(keepends=True):
            if line.endswith(b"\n"):
                sent, offset = line.split()
                acked[int(offset)] = int(sent)
    with open_log(tmp_path, SystemClock(), where) as log:
        held = {record.offset: int(record.value) for record in log.reader("t").records(0)}
    assert len(acked) > 100 and acked.items() <= held.items()
    assert len(set(held.values())) == len(held), "a record is there twice"
    for begin in range(0, 3_000_000, 1_000_000):
        ours = [number for number in held.values() if begin <= number < begin + 1_000_000]
        assert ours == list(range(begin, begin + len(ours))), "order, without a gap"


def test_a_cluster_that_hangs_stops_nobody_for_long_and_comes_back(tmp_path, own):
    with open_log(tmp_path, SystemClock(), limits(own, frame_bytes_max=1000)) as log:
        writer, known = log.writer("t"), LenientReader(log.reader("users"), Meter())
        log.writer("users").append(b"", encode(Entity(id="u0", attributes={})))
        assert len(list(known.events(0, 0))) == 1
        own.pause()

        async def meanwhile() -> int:
            first = writer.append_durable(b"k", Redacted(b"0"))
            with pytest.raises(errors.Full, match="try again when it is back"):
                writer.append(b"k", Redacted(b"1"))
            begun = time.monotonic()
            for _ in range(100):
                with pytest.raises(errors.Full):
                    writer.append(b"k", Redacted(b"2"))
                assert list(known.events(0, 1)) == []
            assert time.monotonic() - begun < 5.0, "who must not wait is refused at once"
            with pytest.raises(errors.Full):
                log.commit("g", "t", {0: 1})
            with pytest.raises(errors.Busy, match="frame_bytes_max"):
                for _ in range(100):
                    writer.append_durable(b"k", Redacted(bytes(100))).cancel()
            own.resume()
            return await first

        assert asyncio.run(meanwhile()) == 0
        while writer.away:
            time.sleep(0.01)
        assert not log.failed
        writer.append(b"k", Redacted(b"3"))
        held = [record.value for record in log.reader("t").records(0)]
        assert held[:2] == [b"0", b"1"], "what waited was sent, once"
        assert held[-1] == b"3" and b"2" not in held


def test_a_frame_that_cannot_be_committed_says_whether_it_is_there(tmp_path, own, monkeypatch):
    monkeypatch.setattr("millstream.stream.kafka_writer.CALL_S", 0.5)
    where = limits(own)
    with open_log(tmp_path, SystemClock(), where) as log:
        writer = log.writer("t")
        writer.append_frame(some(0), meta=b"0")
        own.pause()
        with pytest.raises((errors.Full, errors.Corrupt)) as refused:
            writer.append_frame(some(1), meta=b"1")
        own.resume()
        assert isinstance(refused.value, errors.Full) or "not known" in str(refused.value)
    with open_log(tmp_path, SystemClock(), where) as log:
        writer = log.writer("t")
        held, metas = values(log), [f.meta for f in log.reader("t").frames(0)]
        assert (held, metas) in (([0], [b"0"]), ([0, 1], [b"0", b"1"])), "all of it or nothing"
        writer.append_frame(some(2), meta=b"2")
        assert values(log) == [*held, 2]


@pytest.mark.slow
def test_a_cluster_that_lost_what_it_had_ends_the_writer_and_a_new_one_goes_on(tmp_path, own):
    with open_log(tmp_path, SystemClock(), limits(own)) as log:
        writer = log.writer("t")
        for number in range(5):
            writer.append(b"k", Redacted(b"%d" % number))
        own.stop(signal.SIGKILL)
        with pytest.raises(errors.Full):
            writer.append(b"k", Redacted(b"5"))
        own.start()
        until = time.monotonic() + 20.0
        while not log.failed and time.monotonic() < until:  # the sequence of records is broken: it may not go on
            with pytest.raises(errors.Error):
                writer.append(b"k", Redacted(b"6"))
        assert "open the log again" in log.failed
        with pytest.raises(errors.Corrupt):
            writer.append(b"k", Redacted(b"7"))
        writer.close()
        again = log.writer("t")
        assert again.append(b"k", Redacted(b"8")) + 1 == again.end
        assert values(log)[-1] == 8


SETTINGS = JoinSettings(idle_s=1000.0)


def history(seed: int) -> list[tuple[str, object]]:
    """(topic, event) in the order of their appends: requests, and outcomes late, early, repeated, misdirected."""
    draw, events, at = random.Random(seed), [], 0.0
    for number in range(60):
        at += draw.uniform(0.0, 8.0)
        items = [f"i{n}" for n in range(4)]
        tokens = np.arange(number, number + 8, dtype=np.uint32).tobytes()
        scores = np.full(4, draw.random(), np.float32).tobytes()
        request = Served(
            request=f"r{number}", model="ranker", version="1@0", policy=0, arm="live", user="u", candidates=items,
            event_time=at, tokens=tokens, scores=scores,
        )  # fmt: skip
        events.append(("served", request))
        for _ in range(draw.randrange(6)):
            outcome = Outcome(
                request=f"r{draw.randrange(max(0, number - 4), number + 2)}",
                item=f"i{draw.randrange(5)}",
                kind=draw.choice(("impression", "impression", "like", "click")),
                value=1.0,
                event_time=at + draw.uniform(-5.0, 40.0),
            )
            events.append(("outcomes", outcome))
    return [*events, ("outcomes", Outcome(kind="watermark", event_time=at + 500.0))]


def joined(folder, where: LogLimits, events, abandoned) -> list[tuple[float, bytes, bytes]]:
    """What the join makes, a process being abandoned after each of these steps: (arrival, key, value) in order."""
    clock = FakeClock(1e6)
    with open_log(folder, clock, where) as log:
        writers = {topic: log.writer(topic) for topic in ("served", "outcomes")}

        def begin() -> Operation:
            settings = {"records_max": 7, "snapshot_steps": 5}
            return Operation(Join(SETTINGS), log, Join.inputs, "examples", folder / "snapshot", clock, **settings)

        joining, steps = begin(), 0
        for at, (topic, event) in enumerate(events):
            clock.advance(0.25)
            writers[topic].append(b"", encode(event))
            if at % 3 == 0 or at == len(events) - 1:
                while joining.step() or joining.operator.pending():
                    steps += 1
                    if steps in abandoned:
                        joining.abandon()
                        joining = begin()
        joining.close()
        assert log.committed(group("examples"), "outcomes") == joining.step_done.offsets["outcomes"]
        return [(r.arrival, r.key, r.value) for r in log.reader("examples").records(0)]


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3, 4))])
def test_the_join_makes_the_same_examples_in_the_same_order_as_on_the_embedded_log(tmp_path, cluster, seed):
    events = history(seed)
    here = joined(tmp_path / "here", LogLimits(), events, abandoned=())
    assert len([1 for _, _, value in here if type(decode(value)).__name__ == "Example"]) > 20
    assert joined(tmp_path / "there", limits(cluster), events, abandoned={3, 4, 11, 27}) == here


def test_what_a_process_left_between_a_frame_and_its_snapshot_is_replayed(tmp_path, cluster):
    """The join's steps are frames of its output: a start finds them by their metas, beyond what the snapshot has."""
    clock, where = FakeClock(1e6), limits(cluster)
    with open_log(tmp_path, clock, where) as log:
        to_served, to_outcomes = log.writer("served"), log.writer("outcomes")
        joining = Operation(Join(SETTINGS), log, Join.inputs, "examples", tmp_path / "snapshot", clock)
        for topic, event in history(3)[:40]:
            (to_served if topic == "served" else to_outcomes).append(b"", encode(event))
            joining.step()
        done = joining.step_done
        joining.abandon()
        again = Operation(Join(SETTINGS), log, Join.inputs, "examples", tmp_path / "snapshot", clock)
        assert again.step_done == done and done.number > 10
        assert again.step() == 0, "nothing is taken twice"


def test_an_installation_is_on_kafka_by_one_line_and_says_what_cannot_be_there(tmp_path, cluster, capsys, monkeypatch):
    where = limits(cluster)
    monkeypatch.setenv("KAFKA_BOOTSTRAP", where.kafka)
    file, table = tmp_path / "millstream.toml", tmp_path / "users.csv"
    file.write_text(f'[log]\nkafka = "${{KAFKA_BOOTSTRAP}}"\nkafka_prefix = "{where.kafka_prefix}"\n')
    table.write_text("id,age\nu1,20\nu2,30\n")
    main(["log", "import", str(table), "-c", str(file), "--topic", "users", "--map", "id=id", "age=age:int"])
    capsys.readouterr()
    main(["log", "list", str(file), "--json"])
    assert json.loads(capsys.readouterr().out) == [{"topic": "users", "partitions": 1, "records": 2}]
    main(["log", "tail", str(file), "users", "-n", "1", "--json"])
    assert json.loads(capsys.readouterr().out)[0]["attributes"] == {"age": 30}
    main(["log", "verify", str(file), "--json"])
    assert json.loads(capsys.readouterr().out)["sound"]
    with Installation.open(file) as at, pytest.raises(errors.Misconfigured, match="nothing was forgotten"):
        asyncio.run(forget(at, ["u1"]))


def test_without_the_extra_its_install_line_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    monkeypatch.delitem(sys.modules, "millstream.stream.kafka")
    with pytest.raises(errors.Missing, match=r"millstream\[kafka\]"):
        open_log(tmp_path, SystemClock(), LogLimits(kafka="127.0.0.1:1"))


def test_settings_that_cannot_be_are_refused_with_words(tmp_path, cluster):
    for options, said in (({"acks": "1"}, "acks"), ({"no.such.property": "1"}, "no.such.property")):
        with pytest.raises(errors.Misconfigured, match=said):
            open_log(tmp_path, SystemClock(), LogLimits(kafka="127.0.0.1:1", kafka_options=options))


def test_a_record_larger_than_its_limit_is_refused(tmp_path, cluster):
    with open_log(tmp_path, SystemClock(), limits(cluster, value_bytes_max=2_000_000)) as log:
        writer = log.writer("t")
        with pytest.raises(errors.TooLarge, match="value_bytes_max"):
            writer.append(b"", Redacted(bytes(2_000_001)))
        writer.append(b"", Redacted(bytes(1_999_999)))
        assert len(log.reader("t").read(0, 0)[0].value) == 1_999_999
