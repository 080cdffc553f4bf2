"""Gauges of this process and machine: real ones against what the system says, the rest read from a drawn-up machine."""

import asyncio
import ctypes
import json
import os
import re
import subprocess
import sys

import pytest

from millstream import machine
from millstream.clock import SystemClock
from millstream.machine import Cpu, Gauges, Gpus, Power
from millstream.meter import Meter

LINUX = os.path.exists("/proc/self/statm")


def value(meter, name, **labels):
    found = [one for one in meter.total().values() if one["name"] == name and one["labels"] == labels]
    return found[0]["values"][0] if found else None


class Card:
    """NVML as its documentation has it, for cards that are not here. A reading left out is "not supported" (3)."""

    def __init__(self, cards, works=True):
        self.cards, self.works = cards, works

    def nvmlInit_v2(self):  # noqa: N802 - NVML's names
        return 0 if self.works else 9  # 9: no driver

    def nvmlDeviceGetCount_v2(self, count):  # noqa: N802
        count._obj.value = len(self.cards)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, device):  # noqa: N802
        device._obj.value = index.value + 1
        return 0

    def _fill(self, device, name, into):
        card = self.cards[device.value - 1]
        if name not in card:
            return 3
        for at, one in enumerate(card[name]):
            if isinstance(into._obj, ctypes.Array):
                into._obj[at] = one
            else:
                into._obj.value = one
        return 0

    def nvmlDeviceGetMemoryInfo(self, device, into):  # noqa: N802
        return self._fill(device, "memory", into)

    def nvmlDeviceGetUtilizationRates(self, device, into):  # noqa: N802
        return self._fill(device, "rates", into)

    def nvmlDeviceGetPowerUsage(self, device, into):  # noqa: N802
        return self._fill(device, "power", into)


NO_GPU = Gpus(Card([], works=False))


def zone(folder, name, energy, called="package-0", most=1000):
    (folder / name).mkdir(parents=True, exist_ok=True)
    for file, content in (("energy_uj", energy), ("name", called), ("max_energy_range_uj", most)):
        (folder / name / file).write_text(f"{content}\n")


USED = """
import json, os, time
from millstream.machine import Gauges
from millstream.meter import Meter

NAMES = "process_open_fds", "process_resident_memory_bytes", "process_cpu_seconds_total"
MACHINE = "machine_memory_available_bytes", "machine_memory_bytes", "machine_cpu_utilization"
meter = Meter()
gauges = Gauges(meter, "serve")


def sampled():
    gauges.sample()
    of = {one["name"]: one["values"][0] for one in meter.total().values() if one["labels"] in ({"role": "serve"}, {})}
    return [of[name] for name in NAMES] + [time.process_time()], [of.get(name) for name in MACHINE]


sampled()
before, _ = sampled()
files = [open("/dev/null") for _ in range(7)]
held = bytearray(os.urandom(1)) * (64 << 20)
until = time.process_time() + 0.05
while time.process_time() < until:
    pass
after, machine = sampled()
print(json.dumps([before, after, machine]))
"""


@pytest.mark.skipif(not LINUX, reason="/proc is Linux's")
def test_a_process_says_what_it_uses_and_it_moves():
    # In a process of its own: what other tests left is collected in this one at any moment.
    told = subprocess.run([sys.executable, "-c", USED], capture_output=True, text=True, timeout=60, check=True).stdout
    (files, memory, spent, by_python), after, (available, whole, busy) = json.loads(told)
    assert spent == pytest.approx(by_python, abs=0.2)
    assert after[0] == files + 7
    assert 0.9 * (64 << 20) < after[1] - memory < 2 * (64 << 20)
    assert after[2] - spent >= 0.05
    assert after[2] == pytest.approx(after[3], abs=0.2)
    assert 0 < available < whole
    assert 0 <= busy <= 1


def test_cpu_seconds_go_on_over_a_restart(tmp_path):
    Gauges(Meter(tmp_path, "serve"), "serve", whole=False).sample()
    first = value(Meter(tmp_path, "other"), "process_cpu_seconds_total", role="serve")
    Gauges(Meter(tmp_path, "serve"), "serve", whole=False).sample()
    assert value(Meter(tmp_path, "other"), "process_cpu_seconds_total", role="serve") >= 2 * first > 0


def test_processes_of_one_folder_are_told_apart_and_the_machine_is_said_once(tmp_path):
    power, card = tmp_path / "powercap", Gpus(Card([{"power": [250_000]}]))
    zone(power, "intel-rapl:0", 100)
    serve, learn = Meter(tmp_path / "meters", "serve"), Meter(tmp_path / "meters", "learn")
    gauges = Gauges(serve, "serve", gpus=card, power=Power(power)), Gauges(learn, "learn", whole=False)
    for one in gauges * 2:
        one.sample()
    text = learn.render()
    for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"):
        assert set(re.findall(rf'^{name}{{role="(\w+)"}} ', text, re.M)) == ({"serve", "learn"} if LINUX else set())
    assert len(re.findall(r"^machine_memory_bytes ", text, re.M)) == LINUX
    assert re.findall(r"^machine_gpu_power_watts.*", text, re.M) == ['machine_gpu_power_watts{gpu="0"} 250']
    assert not any(one["name"].startswith("machine_") for one in learn._series.values()), "two write the machine's"


def test_busy_is_all_but_idle_and_waiting_for_a_disk(tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 50 800 40 0 10 0 7 0\ncpu0 1 1 1 1\n")
    cpu = Cpu(tmp_path)
    assert cpu.read() is None, "no time has passed"
    stat.write_text("cpu  130 0 60 840 60 0 10 0 99 0\n")  # 30 user + 10 system of 100; guest time is in user already
    assert cpu.read() == pytest.approx(0.4)
    stat.write_text("nothing of the kind\n")
    assert cpu.read() is None


def test_power_is_the_energy_between_two_reads_also_over_the_end_of_its_counter(tmp_path):
    zone(tmp_path, "intel-rapl:0", 100_000_000, most=262_000_000)
    zone(tmp_path, "intel-rapl:0:0", 5_000_000, "core")
    power = Power(tmp_path)
    assert power.read(10.0) == []
    zone(tmp_path, "intel-rapl:0", 250_000_000, most=262_000_000)
    zone(tmp_path, "intel-rapl:0:0", 25_000_000, "core")
    assert power.read(12.0) == [("intel-rapl:0", "package-0", 75.0), ("intel-rapl:0:0", "core", 10.0)]
    zone(tmp_path, "intel-rapl:0", 38_000_000, most=262_000_000)
    assert power.read(13.0)[0].watts == pytest.approx(50.0)


def test_a_zone_without_a_number_is_no_zone(tmp_path):
    zone(tmp_path, "intel-rapl:0", "secret")
    (tmp_path / "intel-rapl").mkdir()
    power = Power(tmp_path)
    assert power.read(1.0) == power.read(2.0) == []
    assert Power(tmp_path / "absent").read() == []


def test_every_gpu_has_what_its_driver_says_and_no_more():
    meter = Meter()
    whole = {"memory": [80 << 30, 20 << 30, 60 << 30], "rates": [37, 12], "power": [301_500]}
    Gauges(meter, gpus=Gpus(Card([whole, {"memory": [16 << 30, 16 << 30, 0]}]))).sample()
    assert value(meter, "machine_gpu_memory_used_bytes", gpu="0") == 60 << 30
    assert value(meter, "machine_gpu_memory_bytes", gpu="1") == 16 << 30
    assert value(meter, "machine_gpu_utilization", gpu="0") == pytest.approx(0.37)
    assert value(meter, "machine_gpu_power_watts", gpu="0") == pytest.approx(301.5)
    assert value(meter, "machine_gpu_utilization", gpu="1") is None
    assert value(meter, "machine_gpu_power_watts", gpu="1") is None


def test_without_a_driver_there_are_no_gpu_series():
    meter = Meter()
    Gauges(meter, gpus=NO_GPU).sample()
    assert "machine_gpu" not in meter.render()


def test_this_machine_has_gpu_series_if_it_has_gpus():
    meter, found = Meter(), Gpus().read()
    Gauges(meter).sample()
    listed = re.findall(r"^machine_gpu_memory_bytes{.*} (\d+)", meter.render(), re.M)
    assert len(listed) == len([gpu for gpu in found if gpu.memory_bytes is not None])
    assert all(int(one) > 1 << 28 for one in listed)


def test_where_nothing_can_be_read_nothing_is_said(tmp_path):
    meter = Meter()
    Gauges(meter, "serve", gpus=NO_GPU, power=Power(tmp_path), proc=tmp_path).sample()
    assert {one["name"] for one in meter.total().values()} == {"process_cpu_seconds_total"}


def test_keeping_samples_each_second_and_ends_at_0(monkeypatch):
    monkeypatch.setattr(machine, "EVERY_S", 0.01)
    meter = Meter()
    gauges = Gauges(meter, "serve", gpus=NO_GPU)

    async def run():
        keeping = asyncio.create_task(gauges.keep(SystemClock()))
        values = set()
        while len(values) < 3:
            await asyncio.sleep(0.005)
            values.add(value(meter, "process_cpu_seconds_total", role="serve"))
        alive = value(meter, "process_open_fds", role="serve")
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        return alive

    alive = asyncio.run(run())
    if LINUX:
        assert alive > 0
        assert value(meter, "process_open_fds", role="serve") == 0
        assert value(meter, "process_resident_memory_bytes", role="serve") == 0
        assert value(meter, "machine_memory_bytes") > 0, "the machine is still there"
