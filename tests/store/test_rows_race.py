"""Readers beside a writer in other processes, and writers that are killed: no reader ever gets what was not put whole.

A payload follows from its key and a counter, so a reader can tell whether it has one that was put, and of which put.
Processes are forked: they share what the parent imported.
"""

import mmap
import multiprocessing
import os
import random
import signal
import time
import traceback

import numpy as np
import pytest

from millstream.store.rows import RowFile

fork = multiprocessing.get_context("fork")
WIDTH, LABEL = 80, "race"
T, SECOND = 1_700_000_000_000_000, 1_000_000
STABLE, PASSING = 60, 400  # keys that stay once they are put; keys that come and go
AT_ONCE = 50  # counters in one put at most


def hashed(numbers):
    with np.errstate(over="ignore"):
        return np.asarray(numbers, np.uint64) * np.uint64(0xBF58476D1CE4E5B9)


def payload(which, counter):
    """uint8 [n, 80]: the counter in the first word, and words that need key and counter."""
    counter = np.broadcast_to(np.asarray(counter, np.uint64), which.shape)
    with np.errstate(over="ignore"):
        words = (which[:, None] ^ (counter[:, None] * np.uint64(0x9E3779B97F4A7C15))) * np.arange(1, 21, 2, np.uint64)
    words[:, 0] = counter
    return words.view(np.uint8)


def counters(which, found):
    """The counter of each row found, 0 where there is none; fails at a row that was never put."""
    counter = np.ascontiguousarray(found.rows[:, :8]).view(np.uint64)[:, 0]
    there = found.written > 0
    whole = (payload(which, counter) == found.rows).all(axis=1) & (counter > 0)
    assert whole[there].all(), f"a mixture: {found.rows[there & ~whole][0].tobytes().hex()}"
    assert not found.rows[~there].any()
    late = (found.written[there] - T) // SECOND - counter[there].astype(np.int64)
    assert ((late >= 0) & (late < AT_ONCE)).all()
    return np.where(there, counter, 0)


def put(store, which, counter):
    store.put(which, payload(which, counter), T + int(np.max(counter)) * SECOND)


stable, passing = hashed(np.arange(1, STABLE + 1)), hashed(np.arange(1000, 1000 + PASSING))


def write(path, stop):
    """Puts as fast as it can; entities that come, go, and leave their place to others; the file grows and shrinks."""
    with RowFile.create(path, WIDTH, LABEL, limit=200_000) as store:
        counter, new, chance = 1, 10_000, random.Random(1)
        while not stop.is_set():
            for _ in range(50):
                counter += 1
                put(store, stable[: chance.choice((1, 2, 60))], counter)
                some = passing[chance.randrange(PASSING) :][: chance.choice((1, 30))]
                if chance.random() < 0.95:
                    put(store, some, counter)
                else:
                    store.forget(some)
            count = chance.choice((0, 100, 2000))
            put(store, hashed(np.arange(new, new + count)), counter)
            new += count
            if len(store) > 150_000 or chance.random() < 0.05:  # all but the stable ones go
                counter += 1
                put(store, stable, counter)
                store.drop(T + counter * SECOND)
                new = 10_000


def read(path, stop, report):
    """Checks every row it gets. Reports gets, changes seen, files seen; or what was wrong."""
    gets, changes, files = 0, 0, set()
    try:
        store = RowFile.open(path, WIDTH, LABEL)
        before = np.zeros(STABLE, np.uint64)
        while not stop.is_set():
            for which in (stable[:1], stable, passing, hashed(np.arange(10_000, 10_400))):
                now = counters(which, store.get(which))
                gets += 1
                if which is stable:
                    assert (now > 0).all(), "a row that was never removed was missing"
                    assert (now >= before).all(), "an older row after a newer one"
                    changes += int((now != before).any())
                    before = now
            files.add(store._sheet.node)
        report.send((gets, changes, len(files)))
    except BaseException:
        report.send(traceback.format_exc())


def race(path, seconds):
    """Two readers against a writer; what each reader reports."""
    with RowFile.create(path, WIDTH, LABEL) as store:
        put(store, stable, 1)
    stop, pipes = fork.Event(), [fork.Pipe(duplex=False) for _ in range(2)]
    writer = fork.Process(target=write, args=(path, stop), daemon=True)
    readers = [fork.Process(target=read, args=(path, stop, report), daemon=True) for _, report in pipes]
    for process in (writer, *readers):
        process.start()
    try:
        writer.join(timeout=seconds)
        assert writer.is_alive(), "the writer ended"
        stop.set()
        return [heard.recv() if heard.poll(30) else "nothing" for heard, _ in pipes]
    finally:
        stop.set()
        for process in (writer, *readers):
            process.join(timeout=30)
            process.kill()
            process.join()


def check(path, seconds):
    for said in race(path, seconds):
        assert isinstance(said, tuple), said
        gets, changes, files = said
        assert gets > 50 * seconds and changes > 10 * seconds and files > 1, said


def test_readers_beside_a_writer(tmp_path):
    check(tmp_path / "user.rows", 3)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_readers_beside_a_writer_for_long(tmp_path):
    check(tmp_path / "user.rows", 25)


def write_until_killed(path, said, started):
    """Counts up: each counter into every stable row, and then a batch of new rows. `said`: the last counter whose put
    returned, and how many batches."""
    store = RowFile.create(path, WIDTH, LABEL)
    counter = int(said[0])
    started.set()
    while True:
        put(store, np.tile(stable, AT_ONCE), np.repeat(counter + 1 + np.arange(AT_ONCE), STABLE))
        counter += AT_ONCE
        said[0] = counter
        put(store, some(said[1]), counter)
        said[1] += 1


def some(batch):
    """New entities, 40 a batch."""
    return hashed(np.arange(10_000 + int(batch) * 40, 10_040 + int(batch) * 40))


def test_a_writer_is_killed_and_nothing_of_what_it_said_is_lost(tmp_path):
    moments, cut_short = random.Random(3), 0
    for life in range(30):
        if life % 10 == 0:  # a new file: it grows most in its first moments
            path = tmp_path / f"{life}.rows"
            said = np.frombuffer(mmap.mmap(-1, 16), np.uint64)  # shared with the writers
            said[:] = 0
        started = fork.Event()
        writer = fork.Process(target=write_until_killed, args=(path, said, started), daemon=True)
        writer.start()
        assert started.wait(20)
        reader = RowFile.open(path, WIDTH, LABEL)
        last, until = said.copy(), time.monotonic() + moments.uniform(0.001, 0.1)
        while time.monotonic() < until:
            floor = said[0]
            assert (counters(stable, reader.get(stable)) >= floor).all()
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        assert (said >= last).all() and said[0] > 0
        for store in (reader, RowFile.open(path, WIDTH, LABEL)):
            now = counters(stable, store.get(stable))
            assert ((now >= said[0]) & (now <= said[0] + AT_ONCE)).all()
            cut_short += int(now.min() != now.max())
            new = hashed(np.arange(10_000, 10_000 + int(said[1]) * 40))
            assert (counters(new, store.get(new)) > 0).all()
    with RowFile.create(path, WIDTH, LABEL) as store:
        assert (counters(new, store.get(new)) > 0).all()
    assert cut_short  # at least one was killed in the middle of a put
