"""Keys and records of readings: what is written is what is read."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.errors import Corrupt
from millstream.stream.event import decode, encode
from millstream.types import Readings
from millstream.watch.reading import KEYED, Key, Reader, Scribe, finite, parse

labels = st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.text(max_size=12), max_size=4)
keys = st.builds(Key.of, st.sampled_from(["requests", "empty"]), labels)


@given(keys)
def test_a_key_is_read_as_it_is_written(key):
    assert parse(str(key)) == key


def test_a_key_is_written_as_prometheus_writes_a_series():
    assert str(Key.of("empty", {"version": "1", "model": 'a"b', "arm": ""})) == 'empty{model="a\\"b",version="1"}'
    assert Key.of("empty", {"model": "m"}).get("model") == "m" and Key("x").get("model") == ""
    with pytest.raises(Corrupt, match="no key"):
        parse("x{a=b}")


@given(st.lists(st.dictionaries(keys, st.floats(allow_nan=False), max_size=4), max_size=8), st.integers(0, 3))
def test_records_give_back_what_was_read(looks, same):
    looks = [look for look in looks for _ in range(same + 1)]
    scribe, reader = Scribe(), Reader()
    records = [decode(encode(scribe.record(float(at), look))) for at, look in enumerate(looks)]
    assert [record.at for record in records] == [float(at) for at in range(len(looks))]
    assert [reader.read(record) for record in records] == looks


def test_a_reader_may_begin_anywhere():
    scribe, look = Scribe(), {Key("a"): 1.0, Key("b"): 2.0}
    records = [scribe.record(float(at), look) for at in range(3 * KEYED)]
    named = [at for at, record in enumerate(records) if record.keys]
    assert named == [0, KEYED, 2 * KEYED]
    late = Reader()
    read = [late.read(record) for record in records[5:]]
    assert read[: KEYED - 5] == [None] * (KEYED - 5) and read[KEYED - 5 :] == [look] * (2 * KEYED)


def test_values_of_other_keys_are_said():
    reader = Reader()
    reader.read(Readings(at=1.0, values=np.zeros(2).tobytes(), keys=["a", "b"]))
    with pytest.raises(Corrupt, match="3 values of other keys"):
        reader.read(Readings(at=2.0, values=np.zeros(3).tobytes()))
    assert reader.read(Readings(at=3.0, values=np.zeros(2).tobytes())) is None


def test_what_is_no_number_is_left_out_and_counted():
    given = [(Key("a"), 1.0), (Key("b"), float("nan")), (Key("c"), float("inf"))]
    assert finite(given) == ({Key("a"): 1.0}, 2)
