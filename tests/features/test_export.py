"""From the log to files: everything once, in order, and what training makes of them is what serving has."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_pipeline import FEATURES, ITEMS, OUTCOMES, PAGES, THINGS, USERS, World, read, settle

from millstream import errors
from millstream.clock import FakeClock
from millstream.features import Source
from millstream.features.export import DAY, SETTLE_S, cover_of, export
from millstream.features.offline import training_frame
from millstream.stream import Log, LogLimits, encode
from millstream.types import Fact, Outcome, Served

SOURCES = (OUTCOMES, PAGES, ITEMS)


def export_all(world, folder, **more):
    world.clock.advance(SETTLE_S + 0.001)
    return [export(source, world.log, folder / source.name, world.clock, **more) for source in SOURCES]


def table_of(folder):
    return pa.concat_tables([pq.read_table(file, partitioning=None) for file in sorted(folder.rglob("*.parquet"))])


@pytest.mark.parametrize("partitions", [1, 3])
def test_a_frame_over_the_files_is_what_the_pipeline_keeps_of_the_log(tmp_path, partitions):
    world = World(tmp_path, 7, partitions)
    world.do(900)
    done = export_all(world, tmp_path / "files")
    assert [one.rows for one in done] == [len(world.events[source.name]) for source in SOURCES] and done[0].days > 1
    pipeline = world.pipeline()
    settle(pipeline)
    pairs = [(user, thing) for user in USERS for thing in THINGS]
    labels = pa.table({
        "user": [user for user, _ in pairs], "item": [thing for _, thing in pairs],
        "event_time": [pipeline._at / 1e6] * len(pairs),
    })  # fmt: skip
    frame = training_frame(FEATURES, labels, {source.name: tmp_path / "files" / source.name for source in SOURCES})
    served = read(pipeline).values
    for at, name in enumerate(FEATURES.columns):
        np.testing.assert_array_equal(frame.column(name).to_numpy(), served[:, at], err_msg=name)
    pipeline.close()


def test_events_lie_in_the_day_of_their_arrival_in_the_order_in_which_they_came(tmp_path):
    world = World(tmp_path, 3, partitions=3)
    world.do(600)
    export_all(world, tmp_path / "files")
    table = table_of(tmp_path / "files" / "outcomes")
    wanted = world.events["outcomes"]
    for name in ("user", "item", "kind", "id", "value", "event_time", "arrival"):
        assert table[name].to_pylist() == [one[name] for one in wanted], name
    assert (np.diff(table["position"].to_numpy()) > 0).all()
    for file in (tmp_path / "files" / "outcomes").rglob("*.parquet"):
        arrivals = pq.read_table(file, partitioning=None)["arrival"].to_numpy()
        day = np.datetime64(file.parent.name.removeprefix("day="), "s").astype(int)
        assert ((day <= arrivals) & (arrivals < day + 86400)).all()


def test_a_whole_day_is_left_alone_and_the_current_one_is_written_anew(tmp_path):
    world = World(tmp_path, 4)
    world.do(800)
    first = export_all(world, tmp_path / "files")[0]
    stat = {file: file.stat().st_mtime_ns for file in (tmp_path / "files" / "outcomes").rglob("*.parquet")}
    world.do(5)
    again = export_all(world, tmp_path / "files")[0]
    assert (again.files, again.kept) == (1, first.days - 1) and again.rows > 0
    changed = [file for file, at in stat.items() if file.stat().st_mtime_ns != at]
    assert changed == [max(stat)]
    assert table_of(tmp_path / "files" / "outcomes").num_rows == len(world.events["outcomes"])


def test_what_may_not_be_published_yet_waits_and_an_earlier_end_is_kept_to(tmp_path):
    clock = FakeClock(1_700_000_000.0)
    log = Log(tmp_path / "log", clock)
    writer, source = log.writer("pages"), Source(name="pages", columns={"user": "text"})
    for _ in range(10):
        writer.append(b"k", encode(Fact(event_time=clock.now(), values={"user": "u"})))
        clock.advance(1.0)
    assert export(source, log, tmp_path / "a", clock).rows == 10 - SETTLE_S
    end = 1_700_000_003_000_000
    assert export(source, log, tmp_path / "b", clock, until=end).rows == 3
    (file,) = (tmp_path / "b").rglob("*.parquet")
    assert (cover_of(file).begin, cover_of(file).until) == (0, end)
    assert export(source, log, tmp_path / "b", clock, until=end - 1).files == 0  # it has more than that already


def test_a_day_without_events_has_a_file_that_says_so(tmp_path):
    world = World(tmp_path, 5)
    world.do(50)
    world.clock.advance(3 * 86400.0)
    done = export_all(world, tmp_path / "files")[1]
    assert done.files == done.days >= 4
    newest = max((tmp_path / "files" / "pages").rglob("*.parquet"))
    assert pq.read_table(newest, partitioning=None).num_rows == 0 and cover_of(newest).until % DAY


def test_text_is_what_the_log_has(tmp_path):
    clock = FakeClock(1_700_000_000.0)
    log = Log(tmp_path / "log", clock)
    event = Fact(event_time=1.0, values={"user": "ann@example.org", "note": "write to ann@example.org"})
    log.writer("notes").append(b"k", encode(event))
    clock.advance(60.0)
    source = Source(name="notes", columns={"user": "text", "note": "text"})
    export(source, log, tmp_path / "files", clock)
    (row,) = table_of(tmp_path / "files").to_pylist()
    assert row["note"].startswith("write to ") and row["user"]
    assert "ann" not in f"{row['user']} {row['note']}"


def test_an_outcome_finds_its_user_though_more_is_served_than_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr("millstream.features.rows.REQUESTS_MAX", 60)
    monkeypatch.setattr("millstream.features.export.SERVED_MAX", 20)
    clock = FakeClock(1_700_000_000.0)
    log = Log(tmp_path / "log", clock)
    served, outcomes = log.writer("served"), log.writer("outcomes")
    for n in range(500):
        request = Served(
            request=f"r{n}", model="m", version="1", policy=0, arm="live", user=f"u{n}", candidates=["i"],
            event_time=clock.now(),
        )  # fmt: skip
        served.append(b"k", encode(request))
        clock.advance(10.0)
        outcomes.append(b"k", encode(Outcome(request=f"r{n}", item="i", kind="like", event_time=clock.now())))
    clock.advance(60.0)
    export(OUTCOMES, log, tmp_path / "files", clock)
    assert table_of(tmp_path / "files")["user"].to_pylist() == [f"u{n}" for n in range(500)]


def test_a_damaged_log_leaves_whole_days_and_no_other(tmp_path):
    clock = FakeClock(1_700_006_400.0)
    log = Log(tmp_path / "log", clock)
    writer = log.writer("pages")
    for _ in range(4000):
        writer.append(b"k", encode(Fact(event_time=clock.now(), values={"user": "u"})))
        clock.advance(60.0)
    (segment,) = (tmp_path / "log" / "pages" / "0").glob("*.seg*")
    data = bytearray(segment.read_bytes())
    data[-40] ^= 1
    segment.write_bytes(data)
    with pytest.raises(errors.Error):
        export(PAGES, log, tmp_path / "files", clock)
    files = [one for one in (tmp_path / "files").rglob("*") if one.is_file()]
    assert files and all(cover_of(file).until % DAY == 0 for file in files)
    assert [pq.read_metadata(file).num_rows for file in files] == [1440] * len(files)


def test_what_retention_has_taken_is_not_taken_from_the_files(tmp_path):
    clock = FakeClock(1_700_006_400.0)  # a midnight
    log = Log(tmp_path / "log", clock, LogLimits(segment_bytes=4096, retain_s=3600.0))
    writer, source = log.writer("pages"), Source(name="pages", columns={"user": "text"})

    def write(hours):
        for _ in range(int(hours * 60)):
            writer.append(b"k", encode(Fact(event_time=clock.now(), values={"user": "u" * 50})))
            clock.advance(60.0)
            writer.retain()

    write(0.5)
    assert export(source, log, tmp_path / "files", clock).incomplete == 0
    (file,) = (tmp_path / "files").rglob("*.parquet")
    before = file.read_bytes()
    write(12)
    assert log.reader("pages").start(0) > 0
    done = export(source, log, tmp_path / "files", clock)
    assert (done.incomplete, done.files) == (1, 0) and file.read_bytes() == before
    fresh = export(source, log, tmp_path / "fresh", clock, begin=1_700_006_400_000_000 - 2 * DAY)
    assert (fresh.incomplete, fresh.files) == (2, 1)  # of the days before nothing is left
    (file,) = (tmp_path / "fresh").rglob("*.parquet")
    assert cover_of(file).begin == round(pq.read_table(file, partitioning=None)["arrival"][0].as_py() * 1e6)


def test_a_folder_of_another_source_is_refused(tmp_path):
    world = World(tmp_path, 2)
    world.do(60)
    export_all(world, tmp_path / "files")
    with pytest.raises(errors.BadInput, match="other events than those of source items; name another folder"):
        export(ITEMS, world.log, tmp_path / "files" / "pages", world.clock)
