"""Real processes under a real supervisor: what dies is started again, what must end ends, nothing is left behind."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from millstream.clock import SystemClock
from millstream.ops import Launch, Supervisor
from millstream.ops.supervise import PAUSE_S_MAX

LIVES = "import time; time.sleep(600)"
DIES = "import sys; sys.exit(3)"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def processes() -> dict[int, tuple[int, str]]:
    """pid -> (parent, state) of every process here."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in listed.splitlines())
    return {int(pid): (int(parent), state) for pid, parent, state in rows}


def alive(pid: int) -> bool:
    """Whether the process is there and no mere entry that waits for its parent."""
    return not processes().get(pid, (0, "Z"))[1].startswith("Z")


def children(pid: int) -> list[int]:
    return [child for child, (parent, _) in processes().items() if parent == pid]


async def until(condition, seconds=60.0):
    """Wait for what must come; the bound is for a test that fails, not for a timing."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def supervised(grace_s=10.0, **codes):
    made = Supervisor({role: partial(Launch, python(code)) for role, code in codes.items()}, SystemClock(), grace_s)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


def test_a_role_that_dies_is_started_again_and_the_others_are_left_alone(caplog):
    async def run():
        async with supervised(a=LIVES, b=LIVES) as supervisor:
            for number in (1, 2):
                first, other = supervisor.pid("a"), supervisor.pid("b")
                os.kill(first, signal.SIGKILL)
                await until(lambda n=number: supervisor.restarts["a"] == n)
                assert supervisor.pid("a") != first and alive(supervisor.pid("a"))
                assert supervisor.pid("b") == other and supervisor.restarts["b"] == 0

    asyncio.run(run())
    assert "a ended (signal SIGKILL)" in caplog.text


def test_a_role_that_dies_at_once_is_tried_less_often_and_its_cause_is_said(caplog):
    async def run():
        async with supervised(a=DIES, b=LIVES) as supervisor:
            await until(lambda: supervisor.restarts["a"] >= 5)
            assert alive(supervisor.pid("b"))

    asyncio.run(run())
    pauses = [float(pause) for pause in re.findall(r"a ended \(exit code 3\) .* again in ([\d.]+) s", caplog.text)]
    assert pauses[:5] == [0.1, 0.3, 0.7, 1.5, 1.5] and max(pauses) <= PAUSE_S_MAX


def test_stopping_ends_every_role_also_one_that_has_just_died():
    async def run():
        async with supervised(a=LIVES, b=LIVES, c=DIES) as supervisor:
            pids = [supervisor.pid(role) for role in "abc"]
        assert not any(alive(pid) for pid in pids)
        before = dict(supervisor.restarts)
        await asyncio.sleep(0.3)
        assert supervisor.restarts == before, "a role was started after the stop"

    asyncio.run(run())


def test_a_role_that_does_not_listen_is_killed_after_its_grace(tmp_path, caplog):
    ready = tmp_path / "ready"
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    code = f"{deaf}; open({str(ready)!r}, 'w'); time.sleep(600)"

    async def run():
        async with supervised(grace_s=0.5, a=code, b=LIVES) as supervisor:
            pids = [supervisor.pid(role) for role in "ab"]
            await until(ready.exists)
        assert not any(alive(pid) for pid in pids)

    asyncio.run(run())
    assert "a did not end within" in caplog.text and "b did not end" not in caplog.text


def test_a_command_that_cannot_be_started_is_tried_again(tmp_path, caplog):
    program = tmp_path / "role"

    def install():
        program.write_text("#!/bin/sh\nexec sleep 600\n")
        program.chmod(0o755)

    async def run():
        install()
        supervisor = Supervisor({"a": partial(Launch, [str(program)])}, SystemClock())
        await supervisor.start()
        program.unlink()
        os.kill(supervisor.pid("a"), signal.SIGKILL)
        await until(lambda: "cannot be started" in caplog.text)
        install()
        await until(lambda: supervisor.restarts["a"] == 1)
        pid = supervisor.pid("a")
        await supervisor.stop()
        assert not alive(pid)

    asyncio.run(run())


TOML = """
http_port = 0
[learn]
model = "ranker"
[ftrl]
bits = 10
[features]
user = [{ name = "id" }]
item = [{ name = "id" }]
"""


@pytest.fixture
def toml(tmp_path):
    file = tmp_path / "millstream.toml"
    file.write_text(TOML)
    return file


def up(toml, *more) -> subprocess.Popen[str]:
    """The real thing, with all its roles."""
    command = [sys.executable, "-m", "millstream", "up", "-c", str(toml), *more]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, text=True)


def writers(toml) -> set[int]:
    """The processes that have taken a partition of their own, as the roles do when they are up."""
    locks = [toml.parent / "log" / topic / "0" / "lock" for topic in ("outcomes", "deltas", "readings")]
    return {int(lock.read_text() or 0) for lock in locks if lock.exists()}


def all_up(supervisor, toml) -> bool:
    roles = children(supervisor.pid)
    return len(roles) == 3 and set(roles) == writers(toml)


def test_sigterm_ends_all(toml):
    supervisor = up(toml)
    asyncio.run(until(lambda: all_up(supervisor, toml)))
    roles = children(supervisor.pid)
    supervisor.terminate()
    assert supervisor.wait(60) == 0
    assert not any(alive(pid) for pid in roles)


def test_roles_of_a_supervisor_that_was_killed_end_and_free_the_log(toml):
    supervisor = up(toml)
    asyncio.run(until(lambda: all_up(supervisor, toml)))
    roles = children(supervisor.pid)
    supervisor.kill()
    supervisor.wait()
    asyncio.run(until(lambda: not any(alive(pid) for pid in roles)))
    again = up(toml)
    asyncio.run(until(lambda: all_up(again, toml)))
    again.terminate()
    assert again.wait(60) == 0


def test_a_role_that_was_started_by_hand_outlives_the_shell_it_came_from(toml):
    line = f"{sys.executable} -m millstream up -c {toml} --role learn 2>/dev/null >/dev/null & echo $!"
    shell = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=True)
    pid = int(shell.stdout)

    asyncio.run(until(lambda: pid in writers(toml)))
    asyncio.run(asyncio.sleep(0.5))
    assert alive(pid)
    os.kill(pid, signal.SIGTERM)
    asyncio.run(until(lambda: not alive(pid)))
