"""From files to rows: whatever was in files and whatever came by the log, each event counts once."""

import os
import random
import signal
import subprocess
import sys

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_pipeline import FEATURES, OUTCOMES, PAGES, World, settle

from millstream import errors
from millstream.clock import FakeClock
from millstream.features import Aggregate, FeatureSet, Source
from millstream.features import backfill as backfill_file
from millstream.features.backfill import materialise
from millstream.features.events import Events
from millstream.features.export import DAY, SETTLE_S, export
from millstream.features.pipeline import Pipeline, folder_of, stores_of
from millstream.features.snapshot import SNAPSHOT, Stand
from millstream.features.snapshot import read as read_snapshot
from millstream.features.state import State
from millstream.meter import Meter
from millstream.stream import Log

TABLES = (OUTCOMES, PAGES)  # items have none: they come from the log alone


class History:
    """A world whose log is exported, and the rows that are filled from the files."""

    def __init__(self, folder, seed=0, partitions=1, events=400):
        self.world, self.folder = World(folder / "world", seed, partitions), folder
        self.world.do(events)

    def export(self):
        """Everything until now; the moment up to which it goes."""
        self.world.clock.advance(SETTLE_S + 1.0)
        for source in TABLES:
            export(source, self.world.log, self.folder / source.name, self.world.clock)
        return int((self.world.clock.now() - SETTLE_S - 0.5) * 1e6)

    def fill(self, to, begin=None, root="rows", **more):
        tables = {source.name: self.folder / source.name for source in TABLES}
        now = more.pop("now", int(self.world.clock.now() * 1e6))
        return materialise(FEATURES, self.folder / root, tables, to, begin, now=now, **more)

    def pipeline(self, root="rows", log=None):
        return Pipeline(FEATURES, log or self.world.log, self.folder / root, self.world.clock, Meter())


def rows_of(root, features=FEATURES):
    """Every row, by key."""
    found = {}
    for name, store in stores_of(features, folder_of(features, root), 10**6, write=False).items():
        keys = np.sort(store.keys())
        found[name] = keys, store.get(keys).rows
    return found


def assert_same(left, right):
    for name, (keys, rows) in left.items():
        assert len(keys) and (keys == right[name][0]).all(), name
        np.testing.assert_array_equal(rows, right[name][1], err_msg=name)


def copied(world, folder, begin):
    """The world's log without what came before `begin` but for what was served and what is said of items."""
    clock = FakeClock()
    log = Log(folder, clock)
    for topic in ("served", "items", "outcomes", "pages"):
        reader = world.log.reader(topic)
        for partition in reader.partitions():
            writer = log.writer(topic, partition)
            for record in reader.records(partition):
                if topic in ("served", "items") or record.arrival * 1e6 >= begin:
                    clock._wall = record.arrival
                    writer.append(record.key, type(record.value)(record.value))
    return log


@pytest.mark.parametrize("seed", range(8))
def test_files_up_to_any_moment_and_the_log_from_before_it_are_the_log_alone(tmp_path, seed):
    rng = random.Random(seed)
    history = History(tmp_path, seed, partitions=rng.choice([1, 3]))
    world = history.world
    end = history.export()
    arrivals = sorted(round(one["arrival"] * 1e6) for source in TABLES for one in world.events[source.name])
    # Also right at an event's arrival, and beside it: it is in exactly one of the two.
    moments = sorted(rng.choice(arrivals) + rng.choice([-1, 0, 1, 10**9]) for _ in range(rng.choice([1, 3])))
    moments = [min(end, moment) for moment in moments]
    for moment in moments:
        history.fill(moment)
    log = copied(world, tmp_path / "later", moments[-1] - rng.choice([0, 10**9, 10**11])) if seed % 2 else None
    both, alone = history.pipeline(log=log), history.pipeline("alone")
    for pipeline in (both, alone):
        settle(pipeline)
        pipeline.close()
    assert_same(rows_of(tmp_path / "rows"), rows_of(tmp_path / "alone"))


@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_an_event_at_the_very_end_of_the_files_is_in_them_or_in_the_log(tmp_path, beside):
    history = History(tmp_path, 12)
    end = history.export()
    arrival = [one["arrival"] for one in history.world.events["pages"] if one["seconds"]][-1]
    history.fill(round(arrival * 1e6) + beside)
    history.fill(round(arrival * 1e6) + beside, root="twice")
    assert history.fill(end, root="twice").rows and history.fill(end, root="once").rows
    assert_same(rows_of(tmp_path / "twice"), rows_of(tmp_path / "once"))
    both, alone = history.pipeline(), history.pipeline("alone")
    for pipeline in (both, alone):
        settle(pipeline)
        pipeline.close()
    assert_same(rows_of(tmp_path / "rows"), rows_of(tmp_path / "alone"))


def test_the_stream_goes_on_after_a_crash_and_while_more_comes(tmp_path):
    history = History(tmp_path, 11)
    world = history.world
    history.fill(history.export() - 10**10)
    both, alone = history.pipeline(), history.pipeline("alone")
    for turn in range(4):
        world.do(60)
        for pipeline in (both, alone):
            pipeline.step()
        if turn % 2:
            both.save()
        both.abandon()
        both = history.pipeline()
    world.clock.advance(1.0)
    for pipeline in (both, alone):
        settle(pipeline)
        pipeline.close()
    assert_same(rows_of(tmp_path / "rows"), rows_of(tmp_path / "alone"))


def test_rows_are_as_of_the_end_and_vouched_for_as_of_then(tmp_path):
    history = History(tmp_path, 1)
    to = history.export() - 10**9
    done = history.fill(to)
    events = {
        source.name: [one for one in history.world.events[source.name] if one["arrival"] * 1e6 < to - 0.5]
        for source in TABLES
    }
    assert done.events == sum(map(len, events.values())) and done.rows == sum(
        len(keys) for keys, _ in rows_of(tmp_path / "rows").values()
    )
    state = State(FEATURES)
    for source in TABLES:
        state.apply(source.name, Events.of(source, events[source.name]))
    for name, (keys, rows) in rows_of(tmp_path / "rows").items():
        table = state.entities[name]
        np.testing.assert_array_equal(rows, table.plan.pack(table.stored(table.places.find(keys), to)[0]))
    for store in stores_of(FEATURES, folder_of(FEATURES, tmp_path / "rows"), 10**6, write=False).values():
        assert store.vouched() == to


def test_many_runs_are_as_one_and_what_is_done_is_not_done_again(tmp_path):
    history = History(tmp_path, 2, events=900)
    to = history.export()
    first = to // DAY * DAY - 3 * DAY
    for moment in range(first, to, 7 * 3600 * 10**6):
        history.fill(moment, begin=max(moment - 2 * DAY, first - DAY))
    assert history.fill(to).rows and history.fill(to, root="once", begin=first - DAY).rows
    assert_same(rows_of(tmp_path / "rows"), rows_of(tmp_path / "once"))
    folder = folder_of(FEATURES, tmp_path / "rows")
    stat, rows = (folder / SNAPSHOT).stat(), rows_of(tmp_path / "rows")
    told = []
    for earlier in (to, to - 1, first):
        assert (again := history.fill(earlier, tell=told.append)).rows == again.events == 0
    assert "nothing to be done" in told[-1] and (folder / SNAPSHOT).stat().st_mtime_ns == stat.st_mtime_ns
    assert_same(rows, rows_of(tmp_path / "rows"))


def test_a_run_that_ends_before_all_rows_are_written_is_not_taken_for_done(tmp_path, monkeypatch):
    history = History(tmp_path, 2)
    to = history.export()
    history.fill(to, root="once")

    def half(self, at):
        raise errors.Full("no room on the disk")

    with monkeypatch.context() as patched:
        patched.setattr(backfill_file.Writer, "write", half)
        with pytest.raises(errors.Full):
            history.fill(to)
    assert history.fill(to).rows
    assert_same(rows_of(tmp_path / "rows"), rows_of(tmp_path / "once"))


def test_a_large_day_is_read_in_pieces(tmp_path, monkeypatch):
    history = History(tmp_path, 3)
    to = history.export()
    history.fill(to, root="once")
    monkeypatch.setattr(backfill_file, "EVENTS_MAX", 10)
    history.fill(to)
    assert_same(rows_of(tmp_path / "rows"), rows_of(tmp_path / "once"))


def test_files_that_were_made_elsewhere_need_no_order_and_no_days(tmp_path):
    history = History(tmp_path, 4)
    to = history.export()
    history.fill(to, root="once")
    for source in TABLES:
        files = sorted((tmp_path / source.name).rglob("*.parquet"))
        table = pa.concat_tables([pq.read_table(file, partitioning=None) for file in files])
        order = np.random.default_rng(0).permutation(table.num_rows)
        for file in files:
            file.unlink()
        for name in ("arrival", "event_time"):
            when = pa.array(np.rint(table[name].to_numpy() * 1e6).astype("datetime64[us]"))
            table = table.set_column(table.column_names.index(name), name, when)
        table = table.take(order).replace_schema_metadata(None)
        pq.write_table(table, tmp_path / source.name / "all.parquet", row_group_size=50, write_statistics=False)
    history.fill(to)
    assert_same(rows_of(tmp_path / "rows"), rows_of(tmp_path / "once"))


def test_a_snapshot_of_before_there_were_files_is_read(tmp_path):
    history = History(tmp_path, 5)
    for root in ("rows", "alone"):
        pipeline = history.pipeline(root)
        settle(pipeline)
        pipeline.close()
    path = folder_of(FEATURES, tmp_path / "rows") / SNAPSHOT
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = msgspec.msgpack.decode(data[8 : 8 + length])
    assert header["format"] == 1
    line = msgspec.msgpack.encode({k: v for k, v in header.items() if k not in ("since", "begun", "followed")})
    path.write_bytes(len(line).to_bytes(8, "little") + line + data[8 + length :])
    assert read_snapshot(path, State(FEATURES)) == Stand(header["at"], header["offsets"], header["users"])
    history.world.do(50)
    for root in ("rows", "alone"):
        pipeline = history.pipeline(root)
        settle(pipeline)
        pipeline.close()
    assert_same(rows_of(tmp_path / "rows"), rows_of(tmp_path / "alone"))


def test_what_would_lose_or_double_events_is_refused(tmp_path):
    history = History(tmp_path, 6)
    end = history.export()
    with pytest.raises(errors.BadInput, match="is still to come"):
        history.fill(end, now=end - 1)
    with pytest.raises(errors.BadInput, match=r"the files lack what arrived from .* `millstream features export"):
        history.fill(end + 10**9, now=end + 10**9)
    with pytest.raises(errors.BadInput, match=r"is not after .*, where it would begin"):
        history.fill(end - 2 * 10**9, begin=end)
    with pytest.raises(errors.BadInput, match="none of its sources names a table"):
        materialise(FEATURES, tmp_path / "rows", {}, end, now=end)
    history.fill(end - 10**9, begin=end - 2 * 10**9)
    with pytest.raises(errors.BadInput, match="would leave out what arrived in between; take --from 2023-"):
        history.fill(end, begin=end - 10**8)
    with pytest.raises(errors.BadInput, match=r"it was filled from .* on; to fill it from earlier on, stop"):
        history.fill(end, begin=end - 3 * 10**9)
    with pytest.raises(errors.BadInput, match="it was filled when items had no table"):
        tables = {"items": tmp_path / "outcomes", "pages": tmp_path / "pages"}
        materialise(FEATURES, tmp_path / "rows", tables, end, now=end)
    history.fill(end, begin=end - 10**9)


def test_a_day_that_is_missing_among_the_files_is_told(tmp_path):
    history = History(tmp_path, 7, events=900)
    to = history.export()
    sorted((tmp_path / "pages").rglob("*.parquet"))[1].unlink()
    with pytest.raises(errors.BadInput, match="source pages: the files lack what arrived from 2023-11-"):
        history.fill(to)
    assert not (folder_of(FEATURES, tmp_path / "rows") / SNAPSHOT).exists()


def test_files_wait_while_a_pipeline_has_the_rows_and_are_refused_once_it_took_events(tmp_path):
    history = History(tmp_path, 8)
    to = history.export()
    pipeline = history.pipeline()
    with pytest.raises(errors.Conflict, match="another process keeps its rows; stop `millstream up`"):
        history.fill(to)
    settle(pipeline)
    pipeline.close()
    history.world.do(20)
    with pytest.raises(errors.Conflict, match=r"the log's events are in it up to .*, and files can be no more"):
        history.fill(history.export())
    assert history.fill(to - 10**10).rows == 0


SCRIPT = """
from millstream.features import Aggregate, FeatureSet, Source
events = Source(name="events", columns={"user": "text", "value": "number", "id": "text"}, table="events", id="id")
one = Aggregate(name="one", source=events, key="user", op="sum", column="value", window="7d", datatype="FP64")
two = Aggregate(name="two", source=events, key="user", op="last_n", column="value", n=5, datatype="FP64")
small = FeatureSet(name="small", features=(one, two))
"""
EVENTS = Source(name="events", columns={"user": "text", "value": "number", "id": "text"}, table="events", id="id")
SMALL = FeatureSet(
    name="small",
    features=(
        Aggregate(name="one", source=EVENTS, key="user", op="sum", column="value", window="7d", datatype="FP64"),
        Aggregate(name="two", source=EVENTS, key="user", op="last_n", column="value", n=5, datatype="FP64"),
    ),
)


def test_kill_9_in_the_middle_and_run_again(tmp_path):
    (tmp_path / "features.py").write_text(SCRIPT)
    (tmp_path / "millstream.toml").write_text('[feature_store]\ndefinitions = "features.py"\n')
    rng, day = np.random.default_rng(0), 1_700_006_400
    days, rows = 40, 2000
    for n in range(days):
        at = np.sort(rng.uniform(day + n * 86400, day + (n + 1) * 86400, rows))
        ids = [f"e{n}-{i % (rows - 50)}" for i in range(rows)]  # some come twice
        table = {"user": [f"u{u}" for u in rng.integers(0, 500, rows)], "value": rng.normal(size=rows), "id": ids}
        (tmp_path / "events" / f"day={n:03}").mkdir(parents=True)
        pq.write_table(pa.table(table | {"event_time": at, "arrival": at}), tmp_path / f"events/day={n:03}/x.parquet")
    to = day + days * 86400
    command = [sys.executable, "-m", "millstream", "features", "materialise", "small", "--to", str(to)]
    for lines in (5, 3):
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        told = [process.stderr.readline() for _ in range(lines)]
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL and "up to 2023-1" in told[-1], told
        process.stderr.close()
    done = subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, text=True, check=True)
    said = msgspec.json.decode(done.stdout)
    assert 0 < said["events"] <= (days - 8) * rows and said["since"] == "2023-12-25T00:00:00Z"
    once = materialise(SMALL, tmp_path / "once", {"events": tmp_path / "events"}, to * 10**6, now=to * 10**6)
    assert once.events == days * rows
    assert_same(rows_of(tmp_path / "state" / "features", SMALL), rows_of(tmp_path / "once", SMALL))
