from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream import errors
from millstream.clock import FakeClock, SystemClock
from millstream.guard.pii import Redacted
from millstream.stream import segment
from millstream.stream.log import Log, LogLimits, Reader, Record
from millstream.testing import check_log

SMALL = LogLimits(segment_bytes=256)


def value(number: int, size: int = 0) -> Redacted:
    return Redacted(b"%d" % number + bytes(size))


def number(record: Record) -> int:
    return int(record.value.rstrip(b"\0"))


def everything(reader: Reader, partition: int = 0, offset: int | None = None) -> list[Record]:
    records: list[Record] = []
    at = reader.start(partition) if offset is None else offset
    while more := reader.read(partition, at):
        records += more
        at = more[-1].offset + 1
    return records


def crashed(log: Log, to: Path, topic: str = "t") -> Path:
    """The partition as kill -9 of its writer leaves it now, in a log of its own."""
    shutil.copytree(log.root / topic, to / topic)
    return to / topic / "0"


def last_segment(folder: Path) -> Path:
    return sorted(folder.glob("*.seg"))[-1]


def restarted(folder: Path, synced: int) -> None:
    """The machine lost its power after a sync of what lies below offset `synced`: another boot id."""
    mark = bytearray((folder / "committed").read_bytes())
    mark[8:16] = synced.to_bytes(8, "little")
    mark[32:48] = bytes(range(16))
    (folder / "committed").write_bytes(mark)


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process may grow past `size` bytes: a full disk without a disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_log_keeps_the_public_contract(tmp_path: Path) -> None:
    check_log(lambda: Log(tmp_path, SystemClock()))
    check_log(lambda: Log(tmp_path / "rolling", SystemClock(), SMALL))


records_strategy = st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=24)), max_size=4)
frames_strategy = st.lists(st.tuples(records_strategy, st.binary(max_size=8)), min_size=1, max_size=5)


@settings(max_examples=12, deadline=None)
@given(frames=frames_strategy, last=records_strategy, meta=st.binary(max_size=8))
def test_a_torn_frame_is_cut_at_every_byte_and_whole_frames_stay(
    frames: list[tuple[list[tuple[bytes, bytes]], bytes]], last: list[tuple[bytes, bytes]], meta: bytes
) -> None:
    with tempfile.TemporaryDirectory() as place, Log(Path(place) / "log", FakeClock()) as log:
        writer = log.writer("t")
        for items, frame_meta in frames:
            writer.append_frame([(k, Redacted(v)) for k, v in items], frame_meta)
        folder = crashed(log, Path(place) / "crash")
        before, before_meta = everything(log.reader("t")), writer.last_meta()
        start = last_segment(folder).stat().st_size
        mark = (folder / "committed").read_bytes()
        writer.append_frame([(k, Redacted(v)) for k, v in last], meta)
        whole = last_segment(log.root / "t" / "0").read_bytes()
        for cut in range(start, len(whole) + 1):
            (folder / "committed").write_bytes(mark)
            last_segment(folder).write_bytes(whole[:cut])
            expected = everything(log.reader("t")) if cut == len(whole) else before
            with Log(folder.parent.parent, FakeClock()) as again:
                resumed = again.writer("t")
                assert everything(again.reader("t")) == expected
                assert resumed.last_meta() == (meta or before_meta if cut == len(whole) else before_meta)
                assert resumed.append(b"", value(7)) == (expected[-1].offset + 1 if expected else 0)
                assert number(everything(again.reader("t"))[-1]) == 7
                assert again.verify("t").corrupt == []


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 60), min_size=2, max_size=12),
    synced=st.integers(0, 11),
    torn=st.tuples(st.integers(0, 11), st.floats(0, 1)),
    zeros=st.sampled_from([0, 5, 400]),
)
def test_after_a_power_loss_what_was_synced_stays_and_no_offset_is_given_twice(
    sizes: list[int], synced: int, torn: tuple[int, float], zeros: int
) -> None:
    with tempfile.TemporaryDirectory() as place, Log(Path(place) / "log", FakeClock(), SMALL) as log:
        writer = log.writer("t")
        for at, size in enumerate(sizes):
            writer.append_frame([(b"k", value(at, size))], meta=b"%d" % at, sync=at == synced)
        kept = synced + 1 if synced < len(sizes) else 0
        folder = crashed(log, Path(place) / "crash")
        restarted(folder, kept)
        # The disk holds the synced part whole; of the rest it holds any part, and perhaps zeros for it.
        bases = segment.segments(folder)
        index = torn[0] % len(bases)
        path = segment.segment_path(folder, bases[index])
        length = path.stat().st_size
        safe = max([f.end for f in segment.frames(path, bases[index]) if f.next <= kept], default=0)
        if any(base < kept for base in bases[index + 1 :]):
            safe = length
        cut = round(safe + (length - safe) * torn[1])
        with open(path, "r+b") as file:
            file.truncate(cut)
            file.seek(cut)
            file.write(bytes(zeros if cut < length else 0))
        with Log(folder.parent.parent, FakeClock(), SMALL) as again:
            resumed = again.writer("t")
            left = everything(again.reader("t"))
            assert [number(r) for r in left] == list(range(len(left))) and kept <= len(left)
            assert resumed.last_meta() == (b"%d" % (len(left) - 1) if left else b"")
            assert resumed.append(b"k", value(99)) > len(sizes)
            for old in range(len(sizes) + 1):
                assert [number(r) for r in everything(again.reader("t"), offset=old)] == [
                    *range(old, len(left)),
                    99,
                ], "a consumer that stored an offset before the crash goes on with the next record that exists"
            assert again.verify("t").corrupt == []


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_is_never_read_as_data(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place, Log(Path(place) / "log", FakeClock(), SMALL) as log:
        writer = log.writer("t")
        for at in range(12):
            writer.append_frame([(b"key", value(at, 20))], b"m")
        folder = crashed(log, Path(place) / "crash")
        path = data.draw(st.sampled_from(sorted(folder.glob("*.seg"))))
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        with Log(folder.parent.parent, FakeClock(), SMALL) as again:
            with pytest.raises(errors.Corrupt, match=rf"{path.name} byte \d+"):
                everything(again.reader("t"))
            assert path.name in again.verify("t").corrupt[0]
            if path == last_segment(folder):
                with pytest.raises(errors.Corrupt, match=rf"{path.name} byte \d+"):
                    again.writer("t")


def test_data_lost_below_what_was_synced_is_not_taken_for_a_torn_tail(tmp_path: Path) -> None:
    with Log(tmp_path / "log", FakeClock()) as log:
        writer = log.writer("t")
        writer.append_frame([(b"", value(0))], sync=True)
        folder = crashed(log, tmp_path / "crash")
    restarted(folder, 1)
    with open(last_segment(folder), "r+b") as file:
        file.truncate(last_segment(folder).stat().st_size - 1)
    with Log(tmp_path / "crash", FakeClock()) as again, pytest.raises(errors.Corrupt, match="byte 16"):
        again.writer("t")


def test_a_copy_without_its_committed_file_is_rebuilt_and_damage_in_it_is_found(tmp_path: Path) -> None:
    with Log(tmp_path / "log", FakeClock(), SMALL) as log:
        writer = log.writer("t")
        for at in range(20):
            writer.append(b"k", value(at))
        folder = crashed(log, tmp_path / "copy")
    (folder / "committed").unlink()
    with Log(tmp_path / "copy", FakeClock(), SMALL) as again:
        again.writer("t")
        assert [number(r) for r in everything(again.reader("t"))] == list(range(20))
    (folder / "committed").unlink()
    first = sorted(folder.glob("*.seg"))[0]
    first.write_bytes(first.read_bytes()[:-1])
    with Log(tmp_path / "copy", FakeClock(), SMALL) as again, pytest.raises(errors.Corrupt, match=first.name):
        again.writer("t")


def test_a_missing_segment_is_noticed(tmp_path: Path) -> None:
    with Log(tmp_path, FakeClock(), SMALL) as log:
        writer = log.writer("t")
        for at in range(30):
            writer.append(b"k", value(at))
        paths = sorted((tmp_path / "t" / "0").glob("*.seg"))
        paths[1].unlink()
        with pytest.raises(errors.Corrupt, match="missing"):
            everything(log.reader("t"))
        assert paths[2].name in log.verify("t").corrupt[0]


CHILD = textwrap.dedent(
    """
    import asyncio, os, sys
    from pathlib import Path
    from millstream.clock import SystemClock
    from millstream.stream.log import Log, LogLimits

    async def main(root, start):
        writer = Log(Path(root), SystemClock(), LogLimits(segment_bytes=100_000)).writer("t")
        at = start
        while True:
            sent = []
            for _ in range(40):
                sent.append((at, writer.append_durable(b"k", b"%d" % at)))
                at += 1
            writer.append(b"plain", b"-1")
            for number, future in sent:
                os.write(1, b"%d %d\\n" % (number, await future))

    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
    """
)


def test_kill_nine_at_random_moments_loses_nothing_acknowledged_and_doubles_nothing(tmp_path: Path) -> None:
    moments = random.Random(20)
    log = Log(tmp_path, SystemClock(), LogLimits(segment_bytes=100_000))
    reader = log.reader("t")
    seen: list[Record] = []
    acked: dict[int, int] = {}
    for round_ in range(5):
        command = [sys.executable, "-c", CHILD, str(tmp_path), str(round_ * 1_000_000)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert child.stdout is not None
        lines = [child.stdout.readline()]  # it runs; from here on this process reads while that one writes
        until = time.monotonic() + moments.uniform(0.02, 0.4)
        while time.monotonic() < until:
            seen += reader.read(0, len(seen))
            lines.append(child.stdout.readline())
        os.kill(child.pid, signal.SIGKILL)
        rest = child.stdout.read()
        child.wait()
        child.stdout.close()
        for line in b"".join([*lines, rest]).splitlines(keepends=True):
            if line.endswith(b"\n"):
                sent, offset = line.split()
                acked[int(offset)] = int(sent)
    with log:
        log.writer("t")
        seen += everything(reader, offset=len(seen))
        assert [r.offset for r in seen] == list(range(len(seen)))
        durable = {r.offset: number(r) for r in seen if r.key == b"k"}
        assert len(acked) > 100
        assert acked.items() <= durable.items()
        assert len(set(durable.values())) == len(durable), "an event is there twice"
        assert log.verify("t").corrupt == []


def test_many_concurrent_appends_share_few_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs: list[int] = []
    real = segment.sync

    def counted(fd: int) -> None:
        syncs.append(fd)
        real(fd)

    monkeypatch.setattr(segment, "sync", counted)
    with Log(tmp_path, SystemClock()) as log:
        writer = log.writer("t")

        async def one(at: int) -> int:
            return await writer.append_durable(b"k", value(at))

        async def many() -> list[int]:
            return await asyncio.gather(*(one(at) for at in range(2000)))

        assert asyncio.run(many()) == list(range(2000))
        assert [number(r) for r in everything(log.reader("t"))] == list(range(2000))
        assert 0 < len(syncs) < 500


def test_threads_without_a_loop_wait_for_the_same_syncs(tmp_path: Path) -> None:
    with Log(tmp_path, SystemClock()) as log:
        writer = log.writer("t")
        offsets: dict[int, int] = {}

        def append(start: int) -> None:
            for at in range(start, start + 50):
                offsets[writer.append_durable_wait(b"k", value(at))] = at

        threads = [threading.Thread(target=append, args=(start,)) for start in range(0, 200, 50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert offsets == {r.offset: number(r) for r in everything(log.reader("t"))}
        assert sorted(offsets) == list(range(200))


def test_a_durable_record_is_not_published_or_acknowledged_before_its_sync_and_the_queue_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, syncing, real = threading.Event(), threading.Event(), segment.sync

    def slow(fd: int) -> None:
        syncing.set()
        assert disk.wait(60)
        real(fd)

    with Log(tmp_path, FakeClock(), LogLimits(frame_bytes_max=100)) as log:
        writer = log.writer("t")
        monkeypatch.setattr(segment, "sync", slow)

        async def run() -> list[int]:
            futures = [writer.append_durable(b"", value(0))]
            assert await asyncio.to_thread(syncing.wait, 10)
            futures += [writer.append_durable(b"", value(at, 49)) for at in (1, 2)]
            with pytest.raises(errors.Busy):
                writer.append_durable(b"", value(3, 49))
            assert writer.end == 0 and not any(future.done() for future in futures)
            assert list(log.reader("t").frames(0)) == [] and log.reader("t").read(0, 0) == []
            disk.set()
            return await asyncio.gather(*futures)

        assert asyncio.run(run()) == [0, 1, 2]
        assert writer.end == 3


def test_a_closed_writer_has_answered_everything_and_refuses_more(tmp_path: Path) -> None:
    async def run() -> list[int]:
        with Log(tmp_path, SystemClock()) as log:
            writer = log.writer("t")
            futures = [writer.append_durable(b"", value(at)) for at in range(100)]
            writer.close()
            with pytest.raises(errors.Error, match="closed"):
                writer.append_durable(b"", value(0))
            with pytest.raises(errors.Error, match="closed"):
                writer.append(b"", value(0))
            return await asyncio.gather(*futures)

    assert asyncio.run(run()) == list(range(100))


def test_a_full_disk_acknowledges_nothing_and_the_writer_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with Log(tmp_path, SystemClock()) as log:
        writer = log.writer("t")
        writer.append(b"", value(0))

        async def durable(at: int) -> int:
            return await writer.append_durable(b"", value(at, 3000))

        with file_size_limit(2000):
            with pytest.raises(errors.Full):
                writer.append(b"", value(1, 3000))
            with pytest.raises(errors.Full):
                asyncio.run(durable(2))
            with pytest.raises(errors.Full):
                writer.append_frame([(b"", value(3, 3000))], meta=b"lost")
            writer.append(b"", value(4))
        assert asyncio.run(durable(5)) == 2
        assert [number(r) for r in everything(log.reader("t"))] == [0, 4, 5]
        assert writer.last_meta() == b"" and log.verify("t").tail_bytes == 0
        with file_size_limit(4000), pytest.raises(errors.Full):
            writer.append(b"", value(6, 3000))
        assert log.verify("t").tail_bytes == 0, "a part of the failed write is still in the file"


def test_a_disk_full_at_a_roll_leaves_no_half_segment(tmp_path: Path) -> None:
    with Log(tmp_path, FakeClock(), SMALL) as log:
        writer = log.writer("t")
        writer.append_frame([(b"", value(0, 100))], meta=bytes(120))
        with file_size_limit(64), pytest.raises(errors.Full):
            writer.append(b"", value(1, 100))
        assert segment.segments(tmp_path / "t" / "0") == [0]
        assert writer.append(b"", value(1, 100)) == 1
        assert segment.segments(tmp_path / "t" / "0") == [0, 1]


def test_a_failed_sync_is_not_trusted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with Log(tmp_path, FakeClock()) as log:
        writer = log.writer("t")
        writer.append(b"", value(0))
        monkeypatch.setattr(segment, "sync", broken)
        with pytest.raises(errors.Corrupt, match="open it again"):
            writer.append_durable_wait(b"", value(1))
        monkeypatch.undo()
        with pytest.raises(errors.Corrupt):
            writer.append_durable_wait(b"", value(2))
        with pytest.raises(errors.Corrupt):
            writer.append(b"", value(3))
        assert writer.end == 1
        writer.close()
        again = log.writer("t")
        assert again.append_durable_wait(b"", value(4)) >= segment.GAP
        assert [number(r) for r in everything(log.reader("t"))] in ([0, 4], [0, 1, 4])


def test_recovery_dirties_unsynced_bytes_anew_before_it_trusts_a_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Log(tmp_path / "log", FakeClock()) as log:
        writer = log.writer("t")
        writer.append_frame([(b"", value(0))], sync=True)
        synced = last_segment(tmp_path / "log" / "t" / "0").stat().st_size
        writer.append(b"", value(1, 100))
        folder = crashed(log, tmp_path / "crash")
    size = last_segment(folder).stat().st_size
    written: list[tuple[int, int]] = []
    real = os.pwrite

    def spied(fd: int, data: bytes, position: int) -> int:
        written.append((position, position + len(data)))
        return real(fd, data, position)

    monkeypatch.setattr(os, "pwrite", spied)
    with Log(tmp_path / "crash", FakeClock()) as again:
        assert [number(r) for r in everything(again.reader("t"))] == [0, 1]
        again.writer("t")
        assert (synced, size) in written
        assert [number(r) for r in everything(again.reader("t"))] == [0, 1]


def test_arrivals_never_decrease_when_the_clock_jumps_back(tmp_path: Path) -> None:
    clock = FakeClock(1000.0)
    for jump in (5.0, -3600.0, 10.0, 7200.0):
        with Log(tmp_path, clock) as log:
            clock.jump(jump)
            log.writer("t").append(b"", value(0))
    with Log(tmp_path, clock) as log:
        assert [r.arrival for r in everything(log.reader("t"))] == [1005.0, 1005.0, 1005.0, 4615.0]


def test_reading_gives_the_same_records_from_every_offset_in_every_step(tmp_path: Path) -> None:
    with Log(tmp_path, FakeClock(), LogLimits(segment_bytes=300)) as log:
        writer = log.writer("t")
        at = 0
        for count in (1, 3, 0, 7, 2, 30, 1, 1, 5, 0, 4):
            writer.append_frame([(b"k", value(at + n)) for n in range(count)], meta=b"m")
            at += count
        reader = log.reader("t")
        assert len(segment.segments(tmp_path / "t" / "0")) > 2
        for offset in reversed(range(at)):
            for step in (1, 2, 5, 1000):
                assert [number(r) for r in reader.read(0, offset, step)] == list(range(offset, min(at, offset + step)))
                assert [number(r) for r in everything(reader, offset=offset)] == list(range(offset, at))


def test_large_frames_and_records_are_read_whole(tmp_path: Path) -> None:
    with Log(tmp_path, FakeClock()) as log:
        writer = log.writer("t")
        writer.append_frame([(b"k", value(at, 700_000)) for at in range(5)])
        writer.append(b"k", value(5, 3_000_000))
        assert [number(r) for r in everything(log.reader("t"))] == list(range(6))
        with pytest.raises(errors.TooLarge):
            writer.append(b"k", value(6, 17 << 20))
        with pytest.raises(errors.TooLarge):
            writer.append_frame([(b"k", value(6, 9 << 20))] * 4)


def test_frames_show_every_commit_and_metas_outlive_their_segments(tmp_path: Path) -> None:
    with Log(tmp_path, FakeClock(), LogLimits(segment_bytes=256, retain_bytes=0)) as log:
        writer = log.writer("t")
        writer.append_frame([(b"", value(0))], meta=b"one")
        writer.append_frame([], meta=b"two")
        writer.append(b"", value(1))
        writer.append_frame([], meta=b"three")
        reader = log.reader("t")
        shown = [(f.first, f.count, f.meta) for f in reader.frames(0)]
        assert shown == [(0, 1, b"one"), (1, 0, b"two"), (1, 1, b""), (2, 0, b"three")]
        assert [f.meta for f in reader.frames(0, 2)] == [b"three"]
        for at in range(2, 40):
            writer.append(b"", value(at, 40))
        writer.retain()
        assert len(segment.segments(tmp_path / "t" / "0")) == 1
        writer.close()
        assert log.writer("t").last_meta() == b"three"


def test_metas_alone_fill_a_segment_without_starting_a_second_one_at_the_same_offset(tmp_path: Path) -> None:
    with Log(tmp_path, FakeClock(), SMALL) as log:
        writer = log.writer("t")
        metas = [b"step %d" % at for at in range(20)]
        for meta in metas:
            writer.append_frame([], meta=meta)
        writer.append(b"", value(0))
        assert [f.meta for f in log.reader("t").frames(0)] == [*metas, b""]


def test_a_reader_that_saw_half_a_frame_reads_it_once_it_is_whole(tmp_path: Path) -> None:
    with Log(tmp_path, FakeClock()) as log:
        writer, reader = log.writer("t"), log.reader("t")
        writer.append(b"", value(0))
        with open(last_segment(tmp_path / "t" / "0"), "ab") as file:
            file.write(b"\x40\0\0\0" + bytes(36))  # as a write in flight looks to another process
        assert [number(r) for r in reader.read(0, 0)] == [0]
        assert [f.first for f in reader.frames(0)] == [0]
        writer.append(b"", value(1, 100))
        assert [number(r) for r in reader.read(0, 1)] == [1]


def filled(log: Log, count: int = 40) -> tuple[Reader, int]:
    writer = log.writer("t")
    for at in range(count):
        writer.append(b"", value(at, 40))
    return log.reader("t"), len(segment.segments(log.root / "t" / "0"))


def test_retention_by_size_deletes_whole_old_segments_and_says_where_the_log_begins(tmp_path: Path) -> None:
    with Log(tmp_path, FakeClock(), LogLimits(segment_bytes=256, retain_bytes=1000)) as log:
        reader, _ = filled(log)
        slow = log.reader("t")
        log._writers[0].retain()
        start = reader.start(0)
        assert 0 < start < 40 and log._writers[0].retain().segments == 0
        assert [number(r) for r in everything(reader)] == list(range(start, 40))
        with pytest.raises(errors.NotFound, match=rf"first one available is {start}\b"):
            slow.read(0, 0)


def test_retention_by_age(tmp_path: Path) -> None:
    clock = FakeClock()
    with Log(tmp_path, clock, LogLimits(segment_bytes=256, retain_s=60.0)) as log:
        writer = log.writer("t")
        for at in range(20):
            writer.append(b"", value(at, 40))
            clock.advance(10.0)
        clock.advance(-1.0)
        writer.retain()  # if it has not looked by itself
        start = log.reader("t").start(0)
        assert 10 < start <= 14, "a segment goes once its newest record is older than retain_s"


def test_retention_waits_for_groups_until_the_disk_limit_and_counts_what_it_forced_out(tmp_path: Path) -> None:
    limits = LogLimits(segment_bytes=256, retain_bytes=500, disk_bytes_max=1 << 20)
    with Log(tmp_path, FakeClock(), limits) as log:
        log.commit("slow", "t", {0: 0})
        reader, count = filled(log)
        writer = log._writers[0]
        assert writer.retain().segments == 0 and reader.start(0) == 0
        log.commit("slow", "t", {0: 10})
        log.commit("fast", "t", {0: 40})
        writer.retain()
        assert 0 < reader.start(0) <= 10
        log.commit("elsewhere", "t", {1: 50})  # before the slow one goes on: the writer looks by itself, too
        log.commit("slow", "t", {0: 40})
        assert writer.retain().segments == 0, "a group that never named this partition still has all of it to read"
    with Log(tmp_path, FakeClock(), LogLimits(segment_bytes=256, disk_bytes_max=700)) as log:
        first = log.reader("t").start(0)
        writer = log.writer("t")  # it looks by itself, too: whoever came first, all that went is counted once
        writer.retain()
        assert log.reader("t").start(0) - first == writer.unread_deleted > 0
        assert log.reader("t").start(0) > 10 and count > 4


def test_a_reader_that_is_overtaken_by_retention_is_told(tmp_path: Path) -> None:
    with Log(tmp_path, FakeClock(), LogLimits(segment_bytes=256, retain_bytes=0)) as log:
        reader, _ = filled(log)
        reader = log.reader("t")
        with contextlib.suppress(errors.NotFound):
            reader.read(0, reader.start(0), 1)
        writer = log._writers[0]
        for at in range(40, 80):
            writer.append(b"", value(at, 40))
        writer.retain()
        with pytest.raises(errors.NotFound, match="first one available"):
            for offset in range(1, 80):
                reader.read(0, offset, 1)


def test_names_are_checked(tmp_path: Path) -> None:
    with Log(tmp_path, FakeClock()) as log:
        for name in ("", "../up", "a/b", "Upper", "groups.sqlite", "a" * 65):
            with pytest.raises(errors.BadInput):
                log.writer(name)
        with pytest.raises(errors.BadInput):
            log.writer("t", -1)
        assert log.topics() == []


def test_a_second_process_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path), "0"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    with Log(tmp_path, SystemClock()) as log, pytest.raises(errors.Conflict, match=str(child.pid)):
        log.writer("t")
    child.kill()
    child.stdout.close()
    child.wait()


def test_a_group_that_is_forgotten_holds_nothing_back(tmp_path: Path) -> None:
    with Log(tmp_path, FakeClock()) as log:
        log.commit("kept", "t", {0: 3})
        log.commit("gone", "t", {0: 1})
        assert log.groups() == ["gone", "kept"] and log._lowest("t", 0) == 1
        log.forget("gone")
        assert log.groups() == ["kept"] and log._lowest("t", 0) == 3
