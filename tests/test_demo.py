"""The demo as a stranger runs it: one line of figures, balanced books, lists that change with a rating and two policies
beside each other, nothing left running, no silent stand-in."""

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from millstream import config, errors
from millstream.clock import SystemClock
from millstream.demo import data as demo_data
from millstream.demo.data import INSIDE, PARTS, simulated, wheel
from millstream.demo.keys import Keys
from millstream.demo.pipe import Answer, Books
from millstream.demo.replay import Replay
from millstream.demo.run import Demo
from millstream.demo.visits import Visit, Visits, apart
from millstream.front import Http
from millstream.meter import Meter
from millstream.stream import Log, decode
from millstream.types import Listing, Served, Slot
from service import until

KEYS = {
    "requests", "requests_per_s", "errors", "latency_ms_p50", "latency_ms_p99", "outcomes", "examples", "set_aside",
    "lost", "duplicated", "pushes", "staleness_s_p50", "staleness_s_p99", "log_seconds_per_second", "auc_live",
    "auc_frozen", "versions", "seconds", "ledger", "log", "lists", "list_ms_p50", "list_ms_p99", "policies", "changes",
}  # fmt: skip
OWN = {"similar", "tags", "item_cf", "user_cf", "factors"}


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


def events(figures, topic):
    reader = Log(Path(figures["log"]), SystemClock()).reader(topic)
    return [decode(record.value) for partition in reader.partitions() for record in reader.records(partition)]


def test_its_result_is_one_line_with_exactly_these_figures(played, figures):
    _, done = played
    assert done.stdout.count("\n") == 1 and done.stdout.endswith("\n")
    assert set(figures) == KEYS
    assert "Traceback" not in done.stderr and "port 0" not in done.stderr


def test_no_answer_failed_and_the_books_balance(figures):
    assert (figures["errors"], figures["lost"], figures["duplicated"]) == (0, 0, 0)
    assert figures["requests"] > 50
    looked_at = figures["outcomes"] / 2 - figures["requests"]  # in lists; a ranking shows one item
    taken = sum(arm["lists"] * arm["taken"] for arm in figures["policies"]["arms"].values())
    assert looked_at == pytest.approx(taken + len(figures["changes"]), abs=0.5), "an impression and a like each"
    assert figures["examples"] == figures["outcomes"] / 2, "every shown item is learnt once"
    assert 0 <= figures["set_aside"] < figures["requests"] * 0.1, "likes that come after their window"
    assert figures["pushes"] >= 1 and figures["versions"][0] == "1" and len(figures["versions"]) >= 2
    assert 0 < figures["latency_ms_p50"] <= figures["latency_ms_p99"]
    assert 0 <= figures["staleness_s_p50"] <= figures["staleness_s_p99"]
    assert figures["log_seconds_per_second"] > 0
    assert all(0 <= figures[name] <= 1 for name in ("auc_live", "auc_frozen"))


def test_a_rating_changes_the_list_of_who_rated_and_says_why(figures):
    first = figures["changes"][0]
    assert first["seconds"] is not None and first["seconds"] > 0
    assert any(OWN & set(one["found"]) for one in first["came"]) and all(one["reasons"] for one in first["came"])
    assert first["rated"] not in {one["title"] for one in first["came"]} | set(first["went"])
    liked = {e.request for e in events(figures, "outcomes") if e.kind == "like" and e.request.startswith("you-")}
    served = [event for event in events(figures, "served") if event.request.startswith("you-")]
    before = next(at for at, event in enumerate(served) if event.request in liked)
    assert not any(event.history for event in served[: before + 1]) and served[-1].history, "of somebody new"
    strangers = [event for event in events(figures, "served") if event.request.startswith("somebody-")]
    assert strangers and not any(event.history for event in strangers)


def test_two_policies_stand_beside_each_other_and_each_keeps_its_rules(figures):
    arms = figures["policies"]["arms"]
    assert set(arms) == {"calm", "plain"} and sum(arm["lists"] for arm in arms.values()) == figures["lists"] > 20
    category = {item["id"]: item["category"] for item in simulated(1).items}
    checked = {"calm": 0, "plain": 0}
    for event in events(figures, "served"):
        if not event.placement or not event.request.startswith("visit-"):
            continue
        places = np.frombuffer(event.order, np.uint32).tolist()
        scores = np.frombuffer(event.scores, np.float32)[places]
        kinds = [category[event.candidates[place]] for place in places]
        windows = [kinds[at : at + 5] for at in range(len(kinds) - 4)]
        if event.rules == "plain":
            assert scores.tolist() == sorted(scores.tolist(), reverse=True)
        elif not any("relaxed" in reason for reason in event.reasons):
            assert all(window.count(kind) <= 2 for window in windows for kind in window)
        checked[event.rules] += 1
    assert min(checked.values()) > 10


def test_visitors_of_lists_take_what_they_have_a_rating_of_and_nothing_of_it_is_told_twice(figures):
    data = simulated()
    visitors = {user["id"] for user in data.users[::5]}
    truth = {(one.user, one.item): one.like for one in data.shown if one.user in visitors}
    visits = {e.request: e for e in events(figures, "served") if isinstance(e, Served) and e.request[:6] == "visit-"}
    outcomes = [event for event in events(figures, "outcomes") if event.kind == "like" and event.request in visits]
    assert visits and outcomes and {event.user for event in visits.values()} <= visitors
    for outcome in outcomes:
        assert truth[visits[outcome.request].user, outcome.item] == (outcome.value == 1.0)
    ranked = {e.user for e in events(figures, "served") if e.request.startswith(("demo-", "history-"))}
    assert ranked and not ranked & visitors, "no rating is told twice"


class Shop:
    """Lists of the first items that are not to be left out, and what was told of them."""

    def __init__(self, items):
        self.items, self.told = items, []

    async def list(self, id, user, n, exclude):
        left = [item for item in self.items if item not in exclude]
        return Listing(id, "m", "1@0", [Slot(item, 0.5) for item in left[:n]], arm="plain")

    async def tell(self, listing, did):
        self.told += [(listing.id, slot.item, liked) for slot, liked in did]


def test_a_visitor_who_comes_again_sees_other_items_until_there_are_none():
    shop, tastes = Shop([f"i{n}" for n in range(25)]), {"u": {"i3": True, "i12": False, "i24": True}}
    visits = Visits(tastes, simulated(1).items, shop, SystemClock(), 1000.0)

    async def run():
        running = asyncio.create_task(visits.run())
        while len(visits.visits) < 3:
            await asyncio.sleep(0.001)
        visits.stopping.set()
        await running

    asyncio.run(run())
    assert [len(visit.items) for visit in visits.visits] == [10, 10, 5]
    assert [(visit.taken, visit.liked) for visit in visits.visits] == [(1, 1), (1, 0), (1, 1)]
    assert shop.told == [("visit-0", "i3", True), ("visit-1", "i12", False), ("visit-2", "i24", True)]


def test_setting_visitors_apart_loses_no_moment():
    data = simulated(3000)
    replayed, tastes = apart(data.users, data.shown)
    assert set(tastes) <= {user["id"] for user in data.users[::5]} and not {one.user for one in replayed} & set(tastes)
    theirs = [one for one in data.shown if one.user in tastes]
    assert len(replayed) + len(theirs) == 3000 and replayed == [one for one in data.shown if one.user not in tastes]
    assert {(user, item) for user, taste in tastes.items() for item in taste} == {
        (one.user, one.item) for one in theirs
    }


def test_the_difference_of_two_policies_is_of_visitors_with_its_interval():
    """By hand: visitors who like 0, 2 and 3, 5 films a list; means 1 and 4, variances 2 and 2."""
    visits = Visits({}, simulated(1).items, None, SystemClock(), 1.0)
    for user, arm, liked in (
        ("a", "calm", 0),
        ("b", "calm", 2),
        ("c", "plain", 3),
        ("d", "plain", 5),
        ("d", "plain", 5),
    ):
        visits.visits.append(Visit(user, arm, ["i1", "i2"], 5, liked))
    found = visits.compared()
    assert found.difference == 3.0 and (found.low, found.high) == (0.228, 5.772)  # 1.96 times the root of 2/2 + 2/2
    assert (found.arms["plain"].lists, found.arms["plain"].visitors, found.arms["plain"].films) == (3, 2, 0.002)
    del visits.visits[0]
    assert visits.compared().difference is None, "one visitor has no variance"


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


def test_a_key_rates_a_film_at_a_terminal_and_sigterm_ends_it_with_its_figures_and_its_roles(tmp_path):
    """In a terminal of its own: when the list is drawn, a key rates its third item."""
    folder = tmp_path / "run"
    child, terminal = pty.fork()
    if child == 0:
        argv = ["-m", "millstream", "demo", "--data", "simulator", "--json", "--rate", "50", "--dir", str(folder)]
        size = {"COLUMNS": "200", "LINES": "60", "TERM": "xterm"}
        os.execve(sys.executable, [sys.executable, *argv, "--http-port", "0"], os.environ | size)
    seen, waiting, end = b"", [(b"Item ", b"3"), (b"(position 3)", b"")], time.monotonic() + 60
    try:
        while time.monotonic() < end:
            try:
                seen += os.read(terminal, 65536)
            except OSError:  # hung up
                break
            if waiting and waiting[0][0] in seen:
                if key := waiting.pop(0)[1]:
                    os.write(terminal, key)
                else:
                    os.kill(child, signal.SIGTERM)
    finally:
        if time.monotonic() >= end:
            os.kill(child, signal.SIGKILL)
        os.close(terminal)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    figures = json.loads(seen.decode().strip().splitlines()[-1])
    assert set(figures) == KEYS and (figures["errors"], figures["lost"]) == (0, 0)
    assert 3 in {change["position"] for change in figures["changes"]}
    assert b"Traceback" not in seen and running(folder) == []


def test_keys_are_heard_one_by_one_without_echo_and_the_terminal_is_left_as_it_was():
    ours, theirs = pty.openpty()
    heard, before = [], termios.tcgetattr(theirs)

    async def run():
        with Keys(theirs, heard.append):
            assert not termios.tcgetattr(theirs)[3] & (termios.ECHO | termios.ICANON)
            os.write(ours, b"3x")
            await until(lambda: len(heard) == 2)
            os.write(ours, b"0")
            await until(lambda: len(heard) == 3)
        os.write(ours, b"7\n")
        await asyncio.sleep(0.05)

    asyncio.run(run())
    assert heard == ["3", "x", "0"] and termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


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
            await demo.stop()
            await http.stop()

    asyncio.run(run())
    assert running(tmp_path) == []


def test_an_answer_without_the_item_that_was_shown_is_an_error_not_the_end(tmp_path):
    books = Books(tmp_path / "ledger")
    replay = Replay(simulated(10).shown, books, "127.0.0.1", 1, SystemClock(), 1.0)
    body = b'{"id":"r","model":"m","version":"1@0","items":[{"item":"a","score":0.5}]}'
    assert replay._score(Answer(200, body, 0.0), "a") == 0.5
    assert str(replay._score(Answer(200, body, 0.0), "b")) == "nan"
    assert books.errors == 1 and "200" in books.first_error


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
