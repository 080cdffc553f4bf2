"""Counters in mapped pages: sums over real processes, pages that outlive a kill -9, text that Prometheus can read."""

import errno
import os
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.meter import RESERVE, SECONDS, SLOTS, Meter, quantile

SAMPLE = re.compile(r'([a-zA-Z_:][\w:]*)(?:\{((?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\[\\n"])*",?)*)\})? (\S+)')
LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\\n]|\\[\\n"])*)"')

UNESCAPED = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


def parse(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The Prometheus text format 0.0.4, strictly: every family in one block, with its help and type first."""
    assert text.endswith("\n")
    types: dict[str, str] = {}
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    current, helped = "", ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            helped = line.split(" ", 3)[2]
            assert helped not in types, f"{helped} is told in two blocks"
        elif line.startswith("# TYPE "):
            _, _, current, kind = line.split(" ")
            assert current == helped and kind in ("counter", "gauge", "histogram")
            types[current] = kind
        else:
            match = SAMPLE.fullmatch(line)
            assert match, f"not a sample: {line!r}"
            name, labels, value = match.groups()
            suffixes = ("_bucket", "_sum", "_count") if types[current] == "histogram" else ("",)
            assert name in [current + suffix for suffix in suffixes]
            pairs = [(k, re.sub(r'\\[\\n"]', lambda m: UNESCAPED[m[0]], v)) for k, v in LABEL.findall(labels or "")]
            key = (name, tuple(sorted(pairs)))
            assert key not in found, f"{line!r} comes twice"
            found[key] = float(value)
    return found


def value(meter: Meter, name: str, **labels: str) -> float:
    return parse(meter.render())[name, tuple(sorted(labels.items()))]


def test_a_counter_counts_and_a_gauge_is_set():
    meter = Meter()
    meter.counter("hits_total", "Hits.").add()
    meter.counter("hits_total", "Hits.").add(2.5)
    meter.gauge("open", "Open.").set(7)
    meter.gauge("open", "Open.").set(3)
    assert value(meter, "hits_total") == 3.5 == meter.sum("hits_total")
    assert value(meter, "open") == 3


def test_a_large_counter_still_counts_by_one():
    meter = Meter()
    counter = meter.counter("hits_total", "Hits.")
    counter.add(123_456_789)
    before = value(meter, "hits_total")
    counter.add()
    assert value(meter, "hits_total") - before == 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=200), st.floats(0.01, 1.0))
def test_a_quantile_lies_in_the_bucket_that_holds_it(values, q):
    meter = Meter()
    histogram = meter.histogram("seconds", "Seconds.")
    for one in values:
        histogram.observe(one)
    edges = np.array([0.0, *SECONDS])
    exact = np.quantile(values, q, method="inverted_cdf")
    bucket = int(np.searchsorted(SECONDS, exact))
    low, high = edges[min(bucket, len(SECONDS))], SECONDS[min(bucket, len(SECONDS) - 1)]
    got = histogram.quantile(q)
    assert low - 1e-9 <= got <= high + 1e-9, f"{exact} is in ({low}, {high}]"
    assert got == meter.quantile("seconds", q)
    rendered = parse(meter.render())
    assert rendered["seconds_count", ()] == len(values) == meter.sum("seconds")
    assert rendered["seconds_sum", ()] == pytest.approx(sum(values))
    at_once = meter.histogram("at_once", "Seconds.")
    at_once.observe_all(np.array(values))
    assert [at_once.quantile(n / 20) for n in range(21)] == [histogram.quantile(n / 20) for n in range(21)]
    assert meter.sum("at_once") == len(values)
    buckets = [rendered["seconds_bucket", (("le", str(edge)),)] for edge in (*SECONDS, "+Inf")]
    assert buckets == [sum(one <= edge for one in values) for edge in (*SECONDS, float("inf"))]


def test_a_quantile_of_nothing_is_zero_and_the_last_edge_caps_it():
    assert Meter().histogram("seconds", "Seconds.").quantile(0.5) == 0.0
    assert Meter().quantile("seconds", 0.5) == 0.0
    assert quantile((1.0, 2.0), [0, 0, 5], 0.5) == 2.0
    assert quantile((1.0, 2.0), [0, 4, 0], 0.5) == 1.5


PROCESS = """
import sys
from pathlib import Path
from millstream.meter import Meter
meter = Meter(Path(sys.argv[1]), sys.argv[2])
meter.counter("hits_total", "Hits.", {"kind": "a"}).add(float(sys.argv[3]))
meter.histogram("seconds", "Seconds.").observe(0.004)
meter.gauge("open", "Open.").set(float(sys.argv[3]))
print("counted", flush=True)
sys.stdin.read()
"""


def process(folder, name: str, amount: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROCESS, str(folder), name, str(amount)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"counted\n"
    return child


def end(child: subprocess.Popen[bytes]) -> None:
    child.stdin.close()
    child.wait()
    child.stdout.close()


def test_every_process_renders_the_sum_of_all(tmp_path):
    children = [process(tmp_path, name, amount) for name, amount in (("one", 3), ("two", 4))]
    own = Meter(tmp_path, "aaa")
    own.counter("hits_total", "Hits.", {"kind": "a"}).add(10)
    assert value(own, "hits_total", kind="a") == 17
    assert value(own, "seconds_count") == 2 == own.sum("seconds")
    assert own.quantile("seconds", 0.5) == pytest.approx(0.004)
    for meter in (own, Meter(tmp_path, "zzz")):
        assert value(meter, "open") == 7, "gauges of processes that live are summed, whoever asks"
    for child in children:
        end(child)


def test_of_a_process_that_was_killed_the_counters_stay_and_the_gauges_go(tmp_path):
    children = [process(tmp_path, name, amount) for name, amount in (("one", 3), ("two", 4))]
    os.kill(children[1].pid, signal.SIGKILL)
    end(children[1])
    own = Meter(tmp_path, "reader")
    assert value(own, "hits_total", kind="a") == 7
    assert value(own, "open") == 3
    end(children[0])
    assert "open" not in own.render()


def test_a_gauge_can_be_the_largest_of_all_processes(tmp_path):
    meters = [Meter(tmp_path, name) for name in "abc"]
    for meter, until in zip(meters, (5, 9, 7), strict=True):
        meter.gauge("until", "When it ends.", joined="max").set(until)
    assert [value(meter, "until") for meter in meters] == [9, 9, 9]


@pytest.fixture
def full_disk(monkeypatch):
    """Writing text and getting room fail as they do on a full disk, until the returned function is called."""
    full = True

    def no_room(real):
        def write(*args, **more):
            if full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))
            return real(*args, **more)

        return write

    def free():
        nonlocal full
        full = False

    monkeypatch.setattr(os, "posix_fallocate", no_room(os.posix_fallocate))
    monkeypatch.setattr(pathlib.Path, "write_text", no_room(pathlib.Path.write_text))
    return free


def test_a_full_disk_costs_numbers_and_no_answer(tmp_path, full_disk, caplog):
    meter = Meter(tmp_path, "one")
    meter.counter("hits_total", "Hits.").add(3)
    assert value(meter, "hits_total") == 3
    assert "the counters of one are seen by no other process" in caplog.text


def test_a_disk_that_fills_up_later_hides_new_series_until_it_has_room(tmp_path, request, caplog):
    meter, other = Meter(tmp_path, "one"), Meter(tmp_path, "other")
    meter.counter("hits_total", "Hits.").add(3)
    free = request.getfixturevalue("full_disk")
    for kind in "ab":
        meter.counter("late_total", "Late.", {"kind": kind}).add()
    assert value(meter, "late_total", kind="a") == 1
    assert value(other, "hits_total") == 3 and "late_total" not in other.render()
    assert caplog.text.count("No space left on device") == 1, "it is said once, not at every series"
    free()
    meter.counter("last_total", "Last.").add()
    assert value(other, "late_total", kind="a") == 1


def test_a_page_survives_kill_nine_and_its_process_goes_on_with_it(tmp_path):
    child = process(tmp_path, "one", 3)
    os.kill(child.pid, signal.SIGKILL)
    end(child)
    again = process(tmp_path, "one", 4)
    assert value(Meter(tmp_path, "reader"), "hits_total", kind="a") == 7
    end(again)


def test_a_directory_that_a_power_loss_tore_begins_anew(tmp_path):
    Meter(tmp_path, "one").counter("hits_total", "Hits.").add(5)
    whole = (tmp_path / "one.json").read_bytes()
    for torn in (b"", whole[:20]):
        (tmp_path / "one.json").write_bytes(torn)
        assert Meter(tmp_path, "reader").render() == "\n"
        meter = Meter(tmp_path, "one")
        meter.counter("other_total", "Other.").add(1)
        assert value(meter, "other_total") == 1, "an old number shows under a new name"


def test_other_bounds_than_an_older_release_had_get_room_of_their_own(tmp_path):
    old = Meter(tmp_path, "one")
    old.histogram("seconds", "Seconds.", bounds=(1.0,)).observe(0.5)
    old.counter("hits_total", "Hits.").add(9)
    meter = Meter(tmp_path, "one")
    wide = meter.histogram("seconds", "Seconds.", bounds=(1.0, 2.0, 3.0, 4.0))
    for one in (0.5, 1.5, 2.5, 3.5, 4.5):
        wide.observe(one)
    assert value(meter, "hits_total") == 9, "the histogram wrote over its neighbour"
    assert value(meter, "seconds_count") == 5
    older = Meter(tmp_path, "two")
    older.histogram("seconds", "Seconds.", bounds=(7.0,)).observe(0.5)
    parse(meter.render())


@given(st.text(max_size=20), st.text(max_size=20).filter(lambda text: "\r" not in text))
def test_any_label_and_help_render_as_one_readable_line(label, help):
    lines = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\r"  # what splits lines in Python alone
    label, help = (text.translate(dict.fromkeys(map(ord, lines))) for text in (label, help))
    meter = Meter()
    meter.counter("hits_total", help, {"of": label}).add(2)
    assert value(meter, "hits_total", of=label) == 2


def test_series_of_one_name_stand_together():
    meter = Meter()
    for number in range(3):
        meter.counter("a_total", "A.", {"n": str(number)}).add()
        meter.counter(f"b{number}_total", "B.").add()
    assert len(parse(meter.render())) == 6


def test_a_full_page_folds_new_labels_into_other_and_still_takes_new_names():
    meter = Meter()
    for number in range(SLOTS - RESERVE + 100):
        meter.counter("hits_total", "Hits.", {"user": str(number)}).add()
    assert value(meter, "hits_total", user="other") == 100
    assert value(meter, "hits_total", user="0") == 1
    assert meter.sum("hits_total") == SLOTS - RESERVE + 100
    meter.counter("late_total", "Late.").add()
    assert value(meter, "late_total") == 1


def test_a_series_for_the_service_alone_is_summed_and_not_rendered(tmp_path):
    one, other = Meter(tmp_path, "one"), Meter(tmp_path, "other")
    labels = {"model": "m"}
    for meter, value in ((one, 1.0), (other, 3.0), (other, 0.5)):
        meter.histogram("_hidden_seconds", "Seen by nobody.", labels, (1.0, 2.0)).observe(value)
    one.counter("shown_total", "Seen.", labels).add(2)
    other.counter("shown_total", "Seen.", labels).add(3)
    assert one.values("_hidden_seconds", labels) == other.values("_hidden_seconds", labels) == [2, 0, 1, 4.5]
    assert one.values("shown_total", labels) == [5] and one.values("shown_total") == []
    assert "hidden" not in one.render() and 'shown_total{model="m"} 5' in one.render()


def test_a_gauge_can_be_the_smallest_of_all_processes(tmp_path):
    meters = [Meter(tmp_path, name) for name in "abc"]
    for meter, left in zip(meters, (5, 9, 7), strict=True):
        meter.gauge("left", "Until it ends.", joined="min").set(left)
    assert [value(meter, "left") for meter in meters] == [5, 5, 5]


def test_released_series_go_with_the_last_claim_and_others_take_their_slots(tmp_path):
    meter, labels = Meter(tmp_path, "a"), {"version": "1"}
    for _ in range(2):
        meter.claim(labels)
    held = meter.counter("hits_total", "Hits.", labels)
    held.add(7)
    meter.release(labels)
    assert value(Meter(tmp_path, "reader"), "hits_total", version="1") == 7, "somebody claims it still"
    meter.release(labels)
    assert "hits_total" not in meter.render() and "hits_total" not in Meter(tmp_path, "reader").render()
    another = meter.counter("hits_total", "Hits.", {"version": "2"})
    another.add(1)
    held.add(100)
    assert (another.value, value(Meter(tmp_path, "reader"), "hits_total", version="2")) == (1, 1)
    assert meter.counter("hits_total", "Hits.", labels).value == 0, "a version that comes again begins anew"


def test_on_a_full_disk_released_slots_are_not_taken_before_the_directory_is_written(tmp_path, request):
    meter, reader, labels = Meter(tmp_path, "a"), Meter(tmp_path, "reader"), {"version": "1"}
    meter.claim(labels)
    meter.counter("hits_total", "Hits.", labels).add(7)
    free = request.getfixturevalue("full_disk")
    meter.release(labels)
    meter.counter("hits_total", "Hits.", {"version": "2"}).add(1)
    assert reader.values("hits_total", labels) == [7], "the directory still says that these slots are of version 1"
    free()
    meter.counter("hits_total", "Hits.", {"version": "3"}).add(3)
    assert [reader.values("hits_total", {"version": v}) for v in "123"] == [[], [1], [3]]


def test_series_that_an_earlier_life_of_the_page_left_give_way_before_anything_is_folded(tmp_path, caplog):
    before = Meter(tmp_path, "a")
    bounds = tuple(map(float, range(1022)))
    for number in range((SLOTS - RESERVE) // 1024):
        labels = {"version": str(number)}
        before.claim(labels)
        before.histogram("seconds", "Seconds.", labels, bounds).observe(1.0)
    again = Meter(tmp_path, "a")
    for labels in ({"version": "0"}, {"version": "new"}):
        again.claim(labels)
        again.histogram("seconds", "Seconds.", labels, bounds).observe(1.0)
    assert (value(again, "seconds_count", version="0"), value(again, "seconds_count", version="new")) == (2, 1)
    assert 'version="1"' not in again.render() and not caplog.records


def test_that_folding_begins_is_said_once(caplog):
    meter, bounds = Meter(), tuple(map(float, range(1022)))
    for number in range(70):
        meter.claim(labels := {"version": str(number)})
        meter.histogram("seconds", "Seconds.", labels, bounds).observe(1.0)
    assert value(meter, "seconds_count", version="other") == 10
    assert len(caplog.records) == 1 and "have no room" in caplog.text and caplog.records[0].levelname == "ERROR"


COMES_AND_GOES = """
import sys
from pathlib import Path
from millstream.meter import Meter
meter = Meter(Path(sys.argv[1]), "writer")
meter.counter("steady_total", "Steady.").add(1000)
print("counted", flush=True)
for number in range(1, 600):
    labels = {"version": str(number)}
    meter.claim(labels)
    with meter.together():
        meter.counter("hits_total", "Hits.", labels).add(number)
        seconds = meter.histogram("seconds", "Seconds.", labels, (1.0, 2.0))
    seconds.observe(number)
    meter.release(labels)
"""


def test_a_reader_never_misreads_while_versions_come_and_go(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", COMES_AND_GOES, str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"counted\n"
    reader, versions = Meter(tmp_path, "reader"), set()
    while child.poll() is None:
        total = reader.total()
        assert total["steady_total"]["values"] == [1000]
        for spec in total.values():
            if version := spec["labels"].get("version"):
                versions.add(version)
                counter = spec["name"] == "hits_total"
                seen, sum_ = (spec["values"][0], spec["values"][0]) if counter else spec["values"][2:]
                assert sum_ in (0, float(version)), f"{spec} has the numbers of another version"
                assert counter or sum(spec["values"][:3]) in (0, 1), seen
    child.stdout.close()
    assert child.returncode == 0 and versions
