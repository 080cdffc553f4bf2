"""The demo as a stranger runs it: one line of figures, balanced books, nothing left running, no silent stand-in."""

import asyncio
import json
import os
import subprocess
import sys
import time
import zipfile

import pytest

from millstream import config, errors
from millstream.clock import SystemClock
from millstream.demo import data as demo_data
from millstream.demo.data import INSIDE, PARTS, simulated, wheel
from millstream.demo.replay import Answer, Replay
from millstream.demo.run import Demo
from millstream.front import Http
from millstream.meter import Meter

KEYS = {
    "requests", "requests_per_s", "errors", "latency_ms_p50", "latency_ms_p99", "outcomes", "examples", "set_aside",
    "lost", "duplicated", "pushes", "staleness_s_p50", "staleness_s_p99", "log_seconds_per_second", "auc_live",
    "auc_frozen", "versions", "seconds", "ledger", "log",
}  # fmt: skip


def millstream(*argv, **environment) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "millstream", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=110)


def running(folder) -> list[str]:
    listed = subprocess.run(["ps", "-A", "-o", "args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if str(folder) in line]


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "run"
    done = millstream(
        "demo", "--data", "simulator", "--seconds", "3", "--rate", "200", "--json", "--dir", folder, "--http-port", "0"
    )
    return folder, done


@pytest.fixture(scope="module")
def figures(played):
    _, done = played
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_its_result_is_one_line_with_exactly_these_figures(played, figures):
    _, done = played
    assert done.stdout.count("\n") == 1 and done.stdout.endswith("\n")
    assert set(figures) == KEYS
    assert "Traceback" not in done.stderr and "port 0" not in done.stderr


def test_no_answer_failed_and_the_books_balance(figures):
    assert (figures["errors"], figures["lost"], figures["duplicated"]) == (0, 0, 0)
    assert figures["requests"] > 50
    assert figures["outcomes"] == 2 * figures["requests"], "an impression and a like for each request"
    assert figures["examples"] == figures["requests"], "every shown item is learnt once"
    assert 0 <= figures["set_aside"] < figures["requests"] * 0.1, "likes that come after their window"
    assert figures["pushes"] >= 1 and figures["versions"][0] == "1" and len(figures["versions"]) >= 2
    assert 0 < figures["latency_ms_p50"] <= figures["latency_ms_p99"]
    assert 0 <= figures["staleness_s_p50"] <= figures["staleness_s_p99"]
    assert figures["log_seconds_per_second"] > 0
    assert all(0 <= figures[name] <= 1 for name in ("auc_live", "auc_frozen"))


def test_the_audit_of_what_it_left_agrees(figures):
    done = millstream("log", "audit", figures["log"], "--ledger", figures["ledger"], "--json")
    assert done.returncode == 0, done.stderr
    books = json.loads(done.stdout)
    assert books["sound"] and (books["lost"], books["duplicated"], books["waiting"]) == (0, 0, 0)
    assert books["acknowledged"] == books["learnt"] + books["set_aside"] == figures["outcomes"]
    assert (books["set_aside"], set(books["causes"])) == (
        figures["set_aside"],
        {"late"} if books["set_aside"] else set(),
    )
    verified = millstream("log", "verify", figures["log"], "--json")
    assert verified.returncode == 0 and json.loads(verified.stdout)["sound"]


def test_it_leaves_no_process_behind(played, figures):
    assert running(played[0]) == []


def test_a_folder_that_is_not_empty_is_refused(played, figures):
    done = millstream("demo", "--data", "simulator", "--seconds", "1", "--dir", played[0], "--http-port", "0")
    assert done.returncode == 1 and "is not empty" in done.stderr and "Traceback" not in done.stderr


def test_data_that_cannot_be_fetched_is_said_and_nothing_else_is_played(tmp_path):
    """An index that nobody serves, and an empty cache."""
    done = millstream(
        "demo", "--seconds", "1", "--json", "--dir", tmp_path / "run", "--http-port", "0",
        XDG_CACHE_HOME=str(tmp_path / "cache"), PIP_NO_INDEX="1", PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_CONFIG_FILE=os.devnull, PIP_RETRIES="0",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "could not be fetched" in done.stderr and "millstream demo --data simulator" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists() and running(tmp_path) == []


def test_sigterm_ends_it_with_its_figures_and_its_roles(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "millstream", "demo", "--data", "simulator", "--json", "--rate", "50"]
    demo = subprocess.Popen(
        [*command, "--dir", str(folder), "--http-port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    end = time.monotonic() + 60
    while not (folder / "ledger.jsonl").exists() and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(1.0)
    demo.terminate()
    out, _ = demo.communicate(timeout=60)
    assert demo.returncode == 0
    figures = json.loads(out)
    assert set(figures) == KEYS and (figures["errors"], figures["lost"]) == (0, 0)
    assert running(folder) == []


class Stranger:
    """A Door of somebody else's service: all that the demo may ask of it."""

    def ready(self, model="", version=""):
        return True

    def metrics(self):
        return "demo_process 1\n"

    def principal(self, key, peer):
        return None


def test_a_port_where_another_demo_was_quicker_is_noticed(tmp_path):
    async def run():
        http = Http(Stranger(), Meter(), SystemClock())
        demo = Demo(tmp_path / "run", simulated(200), await http.start(port=0))
        demo.prepare()
        try:
            with pytest.raises(
                errors.Misconfigured, match=rf"another service answers at 127.0.0.1:{demo.port}: .*--http-port"
            ):
                await demo.start()
        finally:
            await demo.supervisor.stop()
            await http.stop()

    asyncio.run(run())
    assert running(tmp_path) == []


def test_an_answer_without_the_item_that_was_shown_is_an_error_not_the_end(tmp_path):
    replay = Replay(simulated(10).shown, tmp_path / "ledger", "127.0.0.1", 1, SystemClock(), 1.0)
    body = b'{"id":"r","model":"m","version":"1@0","items":[{"item":"a","score":0.5}]}'
    assert replay._score(Answer(200, body, 0.0), "a") == 0.5
    assert str(replay._score(Answer(200, body, 0.0), "b")) == "nan"
    assert replay.errors == 1 and "200" in replay.first_error


def archive(folder, broken=False):
    """A wheel with the files that the demo reads, or one whose bytes were damaged."""
    folder.mkdir(parents=True)
    made = folder / "recbole-1.2.1-py3-none-any.whl"
    info = "recbole-1.2.1.dist-info"
    with zipfile.ZipFile(made, "w") as file:
        for part in PARTS:
            file.writestr(INSIDE + part, f"{part}_id:token\n1\n")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    if broken:
        content = bytearray(made.read_bytes())
        content[content.index(b"user_id")] ^= 1
        made.write_bytes(content)
    return made


@pytest.mark.parametrize("damage", [b"", b"not a zip file", None], ids=["empty", "no archive", "a flipped bit"])
def test_a_damaged_archive_in_the_cache_is_fetched_again(tmp_path, monkeypatch, damage):
    cached = archive(tmp_path / "cache" / "movielens", broken=True)
    if damage is not None:
        cached.write_bytes(damage)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(archive(tmp_path / "shelf").parent))
    assert wheel(tmp_path / "cache") == cached
    assert zipfile.ZipFile(cached).read(INSIDE + "user") == b"user_id:token\n1\n"


def test_a_damaged_archive_that_cannot_be_fetched_again_is_said(tmp_path, monkeypatch):
    archive(tmp_path / "cache" / "millstream" / "movielens", broken=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(archive(tmp_path / "shelf", broken=True).parent))
    assert config.cache_folder() == tmp_path / "cache" / "millstream"
    with pytest.raises(errors.NotFound, match=r"not the archive expected(.|\n)*--data simulator"):
        demo_data.movielens()
