"""What this process and this machine use: CPU, memory, files, GPU and power, as gauges that `/metrics` renders.

Rules of the room:
- What cannot be read here (no /proc, no NVML, RAPL for root alone) has no series: absent is not 0.
- `process_*` series carry the label `role`, one value a process; the machine's are written by one process only, because
  no sum or choice over processes makes sense of them.
- Reading touches files and a driver, a millisecond or more: `keep` reads in a thread. Only the loop writes the meter.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from millstream.clock import Clock
from millstream.meter import Meter

EVERY_S = 1.0
PROC = Path("/proc")
_ARENA_MAX = -8  # M_ARENA_MAX of malloc.h
LINUX = sys.platform == "linux"
CGROUPS = Path("/sys/fs/cgroup")
POWERCAP = Path("/sys/class/powercap")
NVML = "libnvidia-ml.so.1"


def stand_ready() -> None:
    """What a process that answers does first. All threads share two arenas of the C library's allocator, where it has
    them: an arena a thread, each with what its largest batch once took, costs memory and gains nothing where threads
    mostly compute. And a thread that computes in Python gives way to the event loop after half a millisecond, not five.
    What is loaded by now stays, so the collector looks through it no more: that takes a tenth of a second each time, in
    which nobody is answered. Models come later, as they also go.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(5e-4)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and LINUX:
        mallopt(ctypes.c_int(_ARENA_MAX), ctypes.c_int(2))


def stand_back() -> None:
    """Let processes that answer go first where cores are short: this one's share of a busy core is a quarter then."""
    os.nice(5)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def boot() -> bytes:
    """16 bytes that change when the machine restarts; zeros where the system does not say."""
    try:
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "kern.bootsessionuuid"]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        else:
            text = Path("/proc/sys/kernel/random/boot_id").read_text()
        return uuid.UUID(text.strip()).bytes
    except (OSError, ValueError, subprocess.SubprocessError):
        return bytes(16)


class Gpu(NamedTuple):
    """One NVIDIA GPU now; None where the driver does not say (utilisation of a card in MIG mode, say)."""

    number: int
    memory_used_bytes: float | None
    memory_bytes: float | None
    utilization: float | None
    power_w: float | None


class Gpus:
    """NVIDIA's management library, when there is one. `library`: what to use in its place."""

    def __init__(self, library: Any = None) -> None:
        self._nvml = library if library is not None else _nvml()
        self._devices: list[Any] = []
        count = ctypes.c_uint(0)
        if self._nvml is None or self._nvml.nvmlInit_v2() or self._nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return
        for index in range(count.value):
            device = ctypes.c_void_p()
            if not self._nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)):
                self._devices.append((index, device))

    def read(self) -> list[Gpu]:
        """Every GPU; none without a driver."""
        return [self._one(index, device) for index, device in self._devices]

    def used(self) -> float:
        """Bytes taken on all of them, by everybody."""
        return sum(gpu.memory_used_bytes or 0.0 for gpu in self.read())

    def _one(self, index: int, device: Any) -> Gpu:
        memory = (ctypes.c_ulonglong * 3)()  # total, free, used
        rates = (ctypes.c_uint * 2)()  # GPU, memory: percent of the last sample period
        milliwatts = ctypes.c_uint(0)
        has_memory = not self._nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory))
        has_rates = not self._nvml.nvmlDeviceGetUtilizationRates(device, ctypes.byref(rates))
        has_power = not self._nvml.nvmlDeviceGetPowerUsage(device, ctypes.byref(milliwatts))
        return Gpu(
            index,
            float(memory[2]) if has_memory else None,
            float(memory[0]) if has_memory else None,
            rates[0] / 100 if has_rates else None,
            milliwatts.value / 1000 if has_power else None,
        )


def _nvml() -> Any:
    try:
        return ctypes.CDLL(NVML)
    except OSError:
        return None


class Zone(NamedTuple):
    """A part of the machine whose energy is counted: `intel-rapl:0` is a package, `intel-rapl:0:1` a part of it."""

    zone: str
    name: str
    watts: float


class Power:
    """RAPL through the kernel's powercap files. Watts are the mean since the read before; the first read has none."""

    def __init__(self, folder: Path = POWERCAP) -> None:
        self._zones: dict[Path, tuple[str, str]] = {}
        self._last: dict[Path, tuple[float, int]] = {}
        for file in sorted(folder.glob("*/energy_uj")) if folder.is_dir() else ():
            with suppress(OSError, ValueError):
                int(file.read_text())
                self._zones[file] = (file.parent.name, (file.parent / "name").read_text().strip())

    def read(self, now: float | None = None) -> list[Zone]:
        """Every readable zone. `now`: monotonic seconds."""
        at = time.monotonic() if now is None else now
        found = []
        for file, (zone, name) in self._zones.items():
            with suppress(OSError, ValueError):
                energy = int(file.read_text())
                before = self._last.get(file)
                self._last[file] = (at, energy)
                if before is not None and at > before[0]:
                    used = energy - before[1]
                    if used < 0:  # the counter began again
                        used += int((file.parent / "max_energy_range_uj").read_text())
                    found.append(Zone(zone, name, used / 1e6 / (at - before[0])))
        return found


class Cpu:
    """How busy all cores together were since the read before: 0 to 1; None at first, and where it is not told."""

    def __init__(self, proc: Path = PROC) -> None:
        self._file = proc / "stat"
        self._last = self._times()

    def read(self) -> float | None:
        now, before = self._times(), self._last
        self._last = now
        if now is None or before is None or now[1] <= before[1]:
            return None
        return min(1.0, max(0.0, (now[0] - before[0]) / (now[1] - before[1])))

    def _times(self) -> tuple[int, int] | None:
        """(busy, all) ticks. Waiting for a disk is idle; what a hypervisor steals is busy: nobody here can use it."""
        try:
            with self._file.open("rb") as file:
                ticks = [int(one) for one in file.readline().split()[1:9]]
        except (OSError, ValueError):
            return None
        return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def memory(proc: Path = PROC) -> tuple[int, int] | None:
    """(available, all) bytes of the machine, not of a container on it; None where it is not told."""
    found: dict[str, int] = {}
    with suppress(OSError, ValueError, IndexError):
        for line in (proc / "meminfo").read_text().splitlines()[:8]:
            name, _, rest = line.partition(":")
            found[name] = int(rest.split()[0]) * 1024
    return (found["MemAvailable"], found["MemTotal"]) if {"MemAvailable", "MemTotal"} <= found.keys() else None


def memory_limit(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Bytes that the processes here may have together: the lowest limit of this process's control groups, else the
    machine's RAM; None where it is not told."""
    found = [told[1]] if (told := memory(proc)) else []
    with suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            number, kinds, name = line.split(":", 2)
            if number == "0":
                file, top = "memory.max", cgroups
            elif "memory" in kinds.split(","):
                file, top = "memory.limit_in_bytes", cgroups / "memory"
            else:
                continue
            folder = top / name.lstrip("/")
            for one in (folder, *folder.parents):  # a limit above binds too; in a container the root is its own
                with suppress(OSError, ValueError):
                    found.append(int((one / file).read_text()))
                if one == top:
                    break
    return min(found, default=None)


def offspring(proc: Path = PROC) -> dict[int, list[int]]:
    """Process -> the processes that it started and that still run. Empty where it is not told."""
    children: dict[int, list[int]] = {}
    for folder in proc.glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    return children


def resident(pid: int | str = "self", proc: Path = PROC) -> int | None:
    """Bytes of memory that a process has in RAM; None where it is not told."""
    with suppress(OSError, ValueError, IndexError):
        return int((proc / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def open_fds(proc: Path = PROC) -> int | None:
    """Files and sockets that this process has open; None where it is not told."""
    folder = proc / "self" / "fd"
    with suppress(OSError):
        return folder.stat().st_size or len(os.listdir(folder))  # Linux 6.2 counts them as the folder's size
    return None


class Reading(NamedTuple):
    """One number as it was read; its gauge is the machine's, or of this process."""

    name: str
    help: str
    value: float
    labels: dict[str, str]


class Gauges:
    """The series of this process, and with `whole` those of the machine. `role` tells processes of one folder apart:
    two that run at once under one name would write over each other. The other arguments say where to read."""

    def __init__(
        self,
        meter: Meter,
        role: str = "serve",
        whole: bool = True,
        gpus: Gpus | None = None,
        power: Power | None = None,
        proc: Path = PROC,
    ) -> None:
        self._meter, self._labels, self._proc = meter, {"role": role}, proc
        self._cpu_seconds = meter.counter("process_cpu_seconds_total", "User and system CPU time", self._labels)
        self._spent = 0.0
        self._own: set[tuple[str, str]] = set()
        self._cpu = Cpu(proc) if whole else None
        self._gpus = (gpus or Gpus()) if whole else None
        self._power = (power or Power()) if whole else None

    def sample(self) -> None:
        """Read everything once and write it to the meter; on the thread that makes the meter's other series."""
        self._write(self._read())

    async def keep(self, clock: Clock) -> None:
        """Sample now and every second until cancelled; then this process's gauges say 0."""
        try:
            while True:
                self._write(await asyncio.to_thread(self._read))
                await clock.sleep(EVERY_S)
        finally:
            for name, help in self._own:
                self._meter.gauge(name, help, self._labels).set(0.0)

    def _write(self, readings: list[Reading]) -> None:
        spent = time.process_time()
        self._cpu_seconds.add(spent - self._spent)
        self._spent = spent
        for name, help, value, labels in readings:
            self._meter.gauge(name, help, labels).set(value)
            if labels is self._labels:
                self._own.add((name, help))

    def _read(self) -> list[Reading]:
        found: list[Reading] = []

        def add(name: str, help: str, value: float | None, labels: dict[str, str]) -> None:
            if value is not None:
                found.append(Reading(name, help, float(value), labels))

        add("process_resident_memory_bytes", "Memory in RAM", resident(proc=self._proc), self._labels)
        add("process_open_fds", "Open files and sockets", open_fds(self._proc), self._labels)
        if self._cpu:
            add("machine_cpu_utilization", "All cores together, 0 to 1, since the last sample", self._cpu.read(), {})
            available, total = memory(self._proc) or (None, None)
            add("machine_memory_available_bytes", "What programs can still get without swapping", available, {})
            add("machine_memory_bytes", "RAM of the machine", total, {})
        for gpu in self._gpus.read() if self._gpus else ():
            labels = {"gpu": str(gpu.number)}
            add("machine_gpu_memory_used_bytes", "Memory of a GPU in use, by anyone", gpu.memory_used_bytes, labels)
            add("machine_gpu_memory_bytes", "Memory of a GPU", gpu.memory_bytes, labels)
            add("machine_gpu_utilization", "Share of time that a GPU computed, 0 to 1", gpu.utilization, labels)
            add("machine_gpu_power_watts", "What a GPU draws", gpu.power_w, labels)
        for zone in self._power.read() if self._power else ():
            help = "Mean since the last sample, of a RAPL zone; zone N:M is a part of zone N"
            add("machine_power_watts", help, zone.watts, {"zone": zone.zone, "name": zone.name})
        return found
