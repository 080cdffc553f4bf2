"""Deltas are numbered, checked, and say exactly what they contain."""

import zlib

import numpy as np

from millstream.clock import FakeClock
from millstream.learn import Push
from millstream.models.online import Change
from millstream.stream import Log, decode


def test_a_delta_says_what_it_holds_and_follows_the_last(tmp_path):
    with Log(tmp_path, FakeClock()) as log:
        push = Push(log.writer("deltas"), "ranker", "7", 3)
        slots, weights = np.array([1, 5], np.uint32), np.array([0.5, -2], np.float32)
        nothing = np.empty(0, np.float32)
        made = [push.push(Change(slots, weights * n, nothing), [10.0 + n, 11.0], 100 + n) for n in (1, 2)]
        assert [decode(record.value) for record in log.reader("deltas").read(0, 0)] == made
    assert [(one.model, one.base, one.sequence, one.upto) for one in made] == [
        ("ranker", "7", 4, 101),
        ("ranker", "7", 5, 102),
    ]
    last = made[-1]
    assert np.frombuffer(last.slots, "<u4").tolist() == [1, 5]
    assert np.frombuffer(last.weights, "<f4").tolist() == [1.0, -4.0]
    assert np.frombuffer(last.arrivals, "<f8").tolist() == [12.0, 11.0]
    assert last.checksum == zlib.crc32(last.slots + last.weights)


def test_a_delta_of_nothing_is_a_delta(tmp_path):
    with Log(tmp_path, FakeClock()) as log:
        push = Push(log.writer("deltas"), "ranker", "7", 0)
        empty = push.push(Change(np.array([], np.uint32), *2 * [np.array([], np.float32)]), [], 5)
    assert (empty.sequence, empty.slots, empty.checksum) == (1, b"", 0)


def test_a_delta_of_more_than_a_weight_a_slot(tmp_path):
    weights, dense = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([7, 8], np.float32)
    with Log(tmp_path, FakeClock()) as log:
        push = Push(log.writer("deltas"), "ranker", "7", 0)
        made = push.push(Change(np.array([1, 5], np.uint32), weights, dense), [], 5, (0.5, -1.0))
    assert np.frombuffer(made.weights, "<f4").tolist() == [0, 1, 2, 3, 4, 5]
    assert np.frombuffer(made.dense, "<f4").tolist() == [7, 8]
    assert np.frombuffer(made.calibration, "<f8").tolist() == [0.5, -1.0]
    assert made.checksum == zlib.crc32(made.slots + made.weights + made.dense + made.calibration)
