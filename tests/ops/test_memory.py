"""What grows is said, and what grows too much is replaced while there is time, but never over and over for nothing."""

import asyncio
import itertools
import os
import subprocess
import sys

import pytest

from millstream.clock import FakeClock
from millstream.machine import memory_limit
from millstream.meter import Meter
from millstream.ops import memory
from millstream.ops.memory import Watchdog, held

MB = 1_000_000
LIMIT = 1000 * MB


class Processes:
    """Two workers and their parent, whose sizes a test sets; what is started anew holds `fresh`. In place of a
    supervisor of real processes, which test_supervise.py and test_workers.py have."""

    def __init__(self, fresh=100 * MB):
        self.sizes = {"supervisor": 50 * MB, "serve-0": fresh, "serve-1": fresh}
        self.fresh, self.done, self.gets_ready = fresh, [], True
        self.incarnation = dict.fromkeys(self.sizes, 1)

    def pids(self):
        return dict(self.incarnation)

    async def replace(self, role, cause):
        self.done.append(("replace", role, cause))
        if self.gets_ready:
            self._again(role)
        return self.gets_ready

    async def renew(self, role, cause):
        self.done.append(("renew", role, cause))
        self._again(role)

    def ready(self, role):
        event = asyncio.Event()
        event.set()
        return event

    def _again(self, role):
        self.sizes[role] = self.fresh
        self.incarnation[role] += 1


class Rig:
    """A watchdog over such processes, and its clock."""

    def __init__(self, processes, replaceable=("serve-0", "serve-1"), limit=LIMIT):
        self.clock, self.meter, self.processes = FakeClock(), Meter(), processes
        sizes = lambda pids: {role: processes.sizes[role] for role in pids}  # noqa: E731
        self.watchdog = Watchdog(
            processes.pids, self.clock, self.meter, limit, 0.85, processes if replaceable else None, replaceable, sizes
        )

    def look(self, seconds=memory.EVERY_S):
        self.clock.advance(seconds)
        asyncio.run(self.watchdog.look())
        return self.processes.done


def test_under_the_line_nothing_is_done(caplog):
    rig = Rig(Processes(fresh=390 * MB))
    assert rig.look() == [] and caplog.text == ""


def test_over_the_line_the_largest_worker_is_replaced_beside_the_others(caplog):
    processes = Processes(fresh=100 * MB)
    rig = Rig(processes)
    processes.sizes |= {"serve-0": 120 * MB, "serve-1": 690 * MB}
    assert rig.look() == [("replace", "serve-1", "memory")]
    assert "serve-1 holds most, 690 MB, and is replaced: a new one starts before it ends" in caplog.text
    caplog.clear()
    assert rig.look(120) == [("replace", "serve-1", "memory")], "it is under the line now"


def test_where_there_is_no_room_for_two_the_old_one_ends_first(caplog):
    processes = Processes(fresh=300 * MB)
    processes.sizes["serve-1"] = 550 * MB
    rig = Rig(processes)
    assert rig.look() == [("renew", "serve-1", "memory")]
    assert "it ends first, there is no room for two" in caplog.text


def test_one_is_replaced_a_minute_at_most():
    processes = Processes(fresh=20 * MB)
    rig = Rig(processes)
    for _ in range(2 * 60 // 5 + 1):
        processes.sizes |= {"serve-0": 450 * MB, "serve-1": 460 * MB}
        rig.look()
    assert len(processes.done) == 3


def test_a_replacement_that_frees_nothing_is_said_and_not_repeated(caplog):
    processes = Processes(fresh=430 * MB)
    rig = Rig(processes)
    for _ in range(1000):
        rig.look()
    assert processes.done == [("renew", "serve-0", "memory")]
    assert caplog.text.count("replacing serve-0 freed nothing") == 1
    processes.sizes["serve-1"] = 300 * MB  # somebody has unloaded a model
    rig.look()
    processes.sizes["serve-1"] = 500 * MB
    rig.look()
    assert len(processes.done) == 2, "it was under the line in between: it may help now"


def test_a_successor_that_does_not_start_leaves_the_old_one_and_the_next_time_that_one_ends_first(caplog):
    processes = Processes(fresh=50 * MB)
    processes.sizes |= {"serve-0": 60 * MB, "serve-1": 780 * MB}
    processes.gets_ready = False
    rig = Rig(processes)
    rig.look()
    assert "serve-1 goes on, and ends first the next time" in caplog.text
    rig.look(61)
    assert [way for way, *_ in processes.done] == ["replace", "renew"]


def test_where_nothing_can_be_replaced_it_is_said_once(caplog):
    processes = Processes(fresh=430 * MB)
    rig = Rig(processes, replaceable=())
    for _ in range(100):
        rig.look()
    assert processes.done == []
    assert caplog.text.count("the system will kill it when it grows on") == 1 and "--workers 2" in caplog.text


def test_growth_is_said_once_per_doubling_and_told_as_a_slope(caplog):
    processes = Processes(fresh=400 * MB)
    rig = Rig(processes, limit=10**12)
    said = []
    for minute in range(24 * 60):  # 60 MB an hour
        processes.sizes["serve-1"] = 400 * MB + minute * MB
        rig.look(60)
        said += [(minute, record.getMessage()) for record in caplog.records]
        caplog.clear()
    minutes = [minute for minute, _ in said]
    assert minutes == sorted(minutes) and 64 <= minutes[0] - 10 <= 66
    assert [round((b - 10) / (a - 10), 1) for a, b in itertools.pairwise(minutes)] == [2.0] * 4
    assert all(line.startswith("serve-1 grows by 60 MB an hour") for _, line in said)
    gauge = 'process_memory_growth_bytes_per_hour{role="serve-1"}'
    told = next(line for line in rig.meter.render().splitlines() if line.startswith(gauge))
    assert float(told.split()[-1]) == pytest.approx(60 * MB, rel=0.01)


def test_what_a_process_takes_to_warm_up_is_no_growth(caplog):
    processes = Processes(fresh=100 * MB)
    rig = Rig(processes, limit=10**12)
    for second in range(0, 7200, 5):
        processes.sizes["serve-0"] = (100 + min(500, second)) * MB
        rig.look()
    assert caplog.text == ""


def test_a_process_that_was_started_anew_is_no_growth_of_the_one_before(caplog):
    processes = Processes(fresh=100 * MB)
    rig = Rig(processes, limit=10**12)
    for _ in range(30):
        rig.look(60)
    processes.sizes["serve-0"] = 400 * MB
    processes.incarnation["serve-0"] += 1
    for _ in range(120):
        rig.look(60)
    assert caplog.text == ""


BALLAST = "ballast = bytearray(64_000_000); print('up', flush=True); input()"


def test_a_process_holds_what_its_children_hold():
    child = subprocess.Popen([sys.executable, "-c", BALLAST], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"up\n"
        own = held({"me": os.getpid(), "child": child.pid})
        assert own["child"] > 64 * MB
        assert held({"me": os.getpid()})["me"] >= own["me"] + 60 * MB
    finally:
        child.communicate(b"\n")
    assert held({"child": child.pid}) == {}


def group(tmp_path, membership, **limits):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:       8000 kB\nMemFree: 100 kB\nMemAvailable:   4000 kB\n")
    (proc / "self" / "cgroup").write_text(membership)
    for path, text in limits.items():
        file = groups / path.replace("__", "/").replace("DOT", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return memory_limit(proc, groups)


def test_the_limit_is_the_lowest_of_the_control_groups_else_the_ram(tmp_path):
    assert group(tmp_path / "a", "0::/a/b\n", a__b__memoryDOTmax="max", a__memoryDOTmax="3000000") == 3_000_000
    assert group(tmp_path / "b", "0::/\n", memoryDOTmax="max") == 8000 * 1024
    assert group(tmp_path / "c", "0::/x\n") == 8000 * 1024
    old = "5:cpu:/\n4:memory:/x\n0::/\n"
    assert group(tmp_path / "d", old, memory__x__memoryDOTlimit_in_bytes="2000000") == 2_000_000
    huge = str(9223372036854771712)
    assert group(tmp_path / "e", old, memory__x__memoryDOTlimit_in_bytes=huge) == 8000 * 1024


def test_a_replacement_that_cannot_be_started_is_said_and_the_watch_goes_on(caplog):
    processes = Processes(fresh=440 * MB)
    rig = Rig(processes)

    async def no_room(role, cause):
        processes.done.append(role)
        raise BlockingIOError(11, "Resource temporarily unavailable")

    processes.renew = processes.replace = no_room

    async def main():
        keeping = asyncio.ensure_future(rig.watchdog.keep())
        for _ in range(30):
            await asyncio.sleep(0.02)
            rig.clock.advance(memory.EVERY_S)
        assert not keeping.done()
        keeping.cancel()

    asyncio.run(main())
    assert len(processes.done) >= 2 and "Resource temporarily unavailable" in caplog.text


def test_who_waits_for_a_process_that_dies_first_waits_for_the_next_and_not_for_ever(caplog):
    processes = Processes(fresh=440 * MB)
    rig = Rig(processes)
    rig.watchdog._crowded = True
    events = [asyncio.Event()]
    processes.ready = lambda role: events[-1]

    async def main(comes_back):
        looking = asyncio.ensure_future(rig.watchdog.look())
        for at in range(1000):
            await asyncio.sleep(0.002)
            rig.clock.advance(memory.READY_S_MAX / 20)
            if comes_back and at == 3:
                events.append(asyncio.Event())
                events[-1].set()
            if looking.done():
                return
        raise AssertionError("it waits for ever")

    asyncio.run(main(comes_back=True))
    assert "is not back" not in caplog.text
    events.append(asyncio.Event())
    rig.clock.advance(memory.AGAIN_S)
    rig.watchdog._quiet, rig.watchdog._crowded = False, True
    asyncio.run(main(comes_back=False))
    assert "is not back after 600 s" in caplog.text
