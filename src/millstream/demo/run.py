"""The demo: history becomes a log and version 1, the service starts, the rest is replayed, visitors get lists, and
learning shows.

Everything it does is what a user would do: `log import`, `train`, `up`, then a client over HTTP. What it prints comes
from the service's own answers, log and meter pages. History is moved in time so that it ends when the demo starts, as
windows of features are spans of the wall clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import math
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console, Group
from rich.live import Live

from millstream import config
from millstream.app.installation import Installation, Settings
from millstream.app.training import make_rows, train
from millstream.clock import SystemClock
from millstream.demo import definitions
from millstream.demo.board import Figures, board, shelf, verdict
from millstream.demo.data import Data, Shown, movielens, simulated
from millstream.demo.guest import Guest
from millstream.demo.keys import Keys, at_a_terminal
from millstream.demo.pipe import Books, Pipe, Unreachable
from millstream.demo.replay import AHEAD_S, Replay
from millstream.demo.settings import CONSOLE, LISTS, TOML
from millstream.demo.shelf import Shelf
from millstream.demo.visits import Visits, apart
from millstream.errors import Misconfigured
from millstream.learn.history import Field, import_entities, import_outcomes
from millstream.learn.quality import auc
from millstream.meter import Meter
from millstream.ops import Launch, Supervisor
from millstream.stream import Log, decode
from millstream.stream.audit import Audit, audit, read_ledger
from millstream.types import Shadow

HISTORY_SHARE = 0.2
DELAY_S = 1.0  # from a moment of history to what was said of it
RATE = 500.0
LISTS_RATE = 20.0
DRAWN_S = 0.25
BOTH_LINES = 42  # of a terminal that has room for the figures and a list
READY_S_MAX = 30.0
ANSWER_S_MAX = 5.0
LAST_ANSWER_S_MAX = 60.0
CAUGHT_UP_S_MAX = 20.0


class Demo:
    """One run in one folder. `prepare`, `start`, `replay`, `visits` and `guest` beside it, `settle`, `stop`; `figures`
    at any time in between. Without `lists` there are no placements, and everybody is replayed. `console`: its port,
    with which the roles `watch` and `console` run, too; 0: neither does."""

    def __init__(
        self, folder: Path, data: Data, port: int, rate: float = RATE, lists: bool = True, console: int = 0
    ) -> None:
        self.folder, self.data, self.port, self.console = folder, data, port, console
        self.clock = SystemClock()
        self.file = folder / "millstream.toml"
        self.ledger = folder / "ledger.jsonl"
        self._lists = (LISTS if lists else "") + (CONSOLE.format(port=console) if console else "")
        replayed, tastes = apart(data.users, data.shown) if lists else (data.shown, {})
        split = int(len(replayed) * HISTORY_SHARE)
        self._window_s = data.patience / rate
        shown = _until(replayed, split, self.clock.now() - DELAY_S - self._window_s)
        self._history, future = shown[:split], shown[split:]
        self.books = Books(self.ledger)
        self.replay = Replay(future, self.books, "127.0.0.1", port, self.clock, rate)
        self.visits = Visits(tastes, data.items, self._shelf(), self.clock, LISTS_RATE)
        self.guest = Guest(data.items, self._shelf(), self.clock)
        command = [sys.executable, "-m", "millstream", "up", "-c", str(self.file), "--role"]
        names = ("serve", "learn", *(("watch", "console") if console else ()))
        roles = {role: partial(Launch, [*command, role]) for role in names}
        self.supervisor = Supervisor(roles, self.clock)
        self._frozen = _Frozen(Log(folder / "log", self.clock))
        self._audit: Audit | None = None
        self._mark = b""

    def _shelf(self) -> Shelf:
        return Shelf(Pipe("127.0.0.1", self.port, self.clock), self.books, lambda: self.replay.told)

    def prepare(self) -> None:
        """Write the settings, import the first part of the past, and train version 1 from it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if any(self.folder.iterdir()):
            raise Misconfigured(f"{self.folder} is not empty: the demo starts from nothing; choose another --dir")
        toml = TOML.format(port=self.port, window_s=self._window_s, ahead_s=AHEAD_S)
        self.file.write_text(toml + self._lists)
        shutil.copy(definitions.__file__, self.folder / "features.py")
        settings = config.read(self.file, Settings)
        began = self._history[0].event_time
        log = self.folder / "log"
        for topic, rows in (("users", self.data.users), ("items", self.data.items)):
            fields = {name: Field(name) for name in rows[0]}
            import_entities(log, settings.log, topic, rows, fields, began)
        rows = [
            {"user": one.user, "item": one.item, "event_time": one.event_time, "like": float(one.like)}
            for one in self._history
        ]
        installation = Installation(self.folder, settings, self.clock)
        import_outcomes(
            log, settings.log, installation.entities(), settings.recommend.model, rows,
            {name: Field(name) for name in rows[0]}, delay_s=DELAY_S, window_s=settings.join.settled_s,
            features=installation.ranker_set,
        )  # fmt: skip
        make_rows(installation)
        version = train(installation).version
        installation.repository.change_policy(
            settings.recommend.model,
            lambda policy: msgspec.structs.replace(policy, live=version, shadow=(version,)),
            who="millstream demo",
            why="version 1 serves, and stays in shadow as it is, to compare with",
        )
        installation.close()

    async def start(self) -> float:
        """Start the roles and wait until our own service answers; how long that took, seconds.

        Misconfigured when somebody else answers at the port: another demo may have been quicker.
        """
        began = self.clock.monotonic()
        # What only the service of this folder can tell: it renders every meter page beside its own.
        meter = Meter(self.folder / "state" / "meters", "demo")
        meter.gauge("demo_process", "Process of the demo that runs this installation").set(os.getpid())
        self._mark = b"demo_process %d\n" % os.getpid()
        await self.supervisor.start()
        while not await self._ready():
            if self.clock.monotonic() - began > READY_S_MAX:
                raise Unreachable(f"the service was not ready within {READY_S_MAX:.0f} s; its words are above")
            await self.clock.sleep(0.02)
        self.books.open()
        return self.clock.monotonic() - began

    async def _ready(self) -> bool:
        page = await self._get(b"/metrics")
        if page and self._mark not in page:
            raise Misconfigured(
                f"another service answers at 127.0.0.1:{self.port}: choose another --http-port (0: any free one)"
            )
        return b" 200 " in (await self._get(b"/v2/health/ready")).partition(b"\r\n")[0]

    async def _get(self, path: bytes) -> bytes:
        """The whole answer of whoever listens at the port; empty while nobody does."""
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                with contextlib.closing(writer):
                    writer.write(b"GET %b HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n" % path)
                    return await reader.read()
        except OSError:  # a timeout is one too
            return b""

    async def settle(self) -> Audit:
        """Wait until everything acknowledged has become an example or was set aside, then balance the books."""
        began = self.clock.monotonic()
        self.books.flush()
        settings = config.read(self.file, Settings)
        log = Log(self.folder / "log", self.clock)
        while True:
            self._audit = audit(log, read_ledger(self.ledger), settings.join.window_s, settings.join.ahead_s)
            late = self.clock.monotonic() - began > CAUGHT_UP_S_MAX
            if late or (self._audit.balanced and self._audit.waiting == 0):
                return self._audit
            await self.clock.sleep(0.5)

    async def stop(self) -> None:
        """End the roles, and let go."""
        await self.supervisor.stop()
        self.visits.shelf.close()
        self.guest.shelf.close()
        self.books.close()

    def figures(self) -> Figures:
        """Where the run stands now."""
        replay, meters = self.replay, Meter(self.folder / "state" / "meters", "demo")
        scores, labels = np.array(replay.scores), np.array(replay.labels[: len(replay.scores)], bool)
        answered = ~np.isnan(scores)
        frozen = self._frozen.scores(replay)
        both = answered & ~np.isnan(frozen)
        latencies = np.array(replay.latencies or [0.0]) * 1000
        lists = np.array(self.visits.shelf.latencies or [0.0]) * 1000
        seconds = max(replay.seconds, 1e-9)
        count = len(replay.latencies)
        return Figures(
            requests=count,
            requests_per_s=round(count / seconds, 1),
            errors=self.books.errors,
            lists=len(self.visits.visits),
            list_ms_p50=round(float(np.percentile(lists, 50)), 3),
            list_ms_p99=round(float(np.percentile(lists, 99)), 3),
            latency_ms_p50=round(float(np.percentile(latencies, 50)), 3),
            latency_ms_p99=round(float(np.percentile(latencies, 99)), 3),
            outcomes=self.books.acknowledged,
            examples=self._audit.examples - len(self._history)
            if self._audit
            else int(meters.sum("millstream_examples_learnt_total")),
            set_aside=self._audit.set_aside if self._audit else 0,
            lost=self._audit.lost if self._audit else 0,
            duplicated=self._audit.duplicated if self._audit else 0,
            pushes=int(meters.sum("millstream_pushes_total")),
            staleness_s_p50=round(meters.quantile("millstream_staleness_seconds", 0.5), 3),
            staleness_s_p99=round(meters.quantile("millstream_staleness_seconds", 0.99), 3),
            log_seconds_per_second=round(replay.log_seconds / seconds, 1),
            auc_live=_auc(labels[answered], scores[answered]),
            auc_frozen=_auc(labels[both], frozen[both]),
            policies=self.visits.compared(),
            changes=list(self.guest.changes),
            versions=self._versions(),
            seconds=round(seconds, 2),
            ledger=str(self.ledger),
            log=str(self.folder / "log"),
        )

    def _versions(self) -> list[str]:
        settings = config.read(self.file, Settings)
        return Installation(self.folder, settings, self.clock).repository.versions(settings.recommend.model)


def _until(shown: Sequence[Shown], split: int, end: float) -> list[Shown]:
    """All moments moved in time, by one span, so that the first `split` of them end at `end`."""
    moved = end - shown[split - 1].event_time
    return [msgspec.structs.replace(one, event_time=one.event_time + moved) for one in shown]


class _Frozen:
    """Scores of the shown items by version 1, read from topic `shadow` as they come."""

    def __init__(self, log: Log) -> None:
        self._reader = log.reader("shadow")
        self._at: dict[int, int] = {}
        self._scores: dict[str, bytes] = {}

    def scores(self, replay: Replay) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """One a request answered so far; NaN where the shadow copy was dropped or has not been written yet."""
        for partition in self._reader.partitions():
            for record in self._reader.records(partition, self._at.get(partition, 0)):
                event = decode(record.value)
                if isinstance(event, Shadow) and event.version.partition("@")[0] == "1":
                    self._scores[event.request] = event.scores
                self._at[partition] = record.offset + 1
        found = np.full(len(replay.scores), np.nan)
        for number in range(len(found)):
            scores = self._scores.get(f"demo-{number}")
            if scores is not None:
                found[number] = memoryview(scores).cast("f")[replay.shown[number].position]
        return found


def _auc(labels: np.ndarray, scores: np.ndarray) -> float | None:
    value = auc(labels, scores) if len(labels) else math.nan
    return None if math.isnan(value) else round(value, 4)


def load(name: str) -> Data:
    """`movielens` or `simulator`."""
    return movielens() if name == "movielens" else simulated()


def free_port(wanted: int) -> int:
    """`wanted` when nobody listens there, else one that is free."""
    for port in (wanted, 0):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise Misconfigured(f"neither port {wanted} nor any other port of 127.0.0.1 is free")


async def run(
    data: str, folder: Path | None, seconds: float | None, port: int, console_port: int, rate: float, as_json: bool
) -> None:
    """The whole demo on a terminal. With `seconds` it ends so long after the first request; else Ctrl-C ends it."""
    console = Console(stderr=True)
    with console.status(f"fetching {data} (once; it is cached)"):
        loaded = load(data)
    folder = folder or Path(tempfile.mkdtemp(prefix="millstream-demo-"))
    chosen = free_port(port)
    if port and chosen != port:
        console.print(f"port {port} is taken, using {chosen}")
    pages = free_port(console_port) if importlib.util.find_spec("nicegui") else 0  # of the extra `console`
    demo = Demo(folder, loaded, chosen, rate, console=pages)
    with console.status("history becomes an event log, and trains version 1"):
        demo.prepare()
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    try:
        console.print(f"service ready after {await demo.start():.2f} s at http://127.0.0.1:{chosen}")
        if pages:
            console.print(f"watch it in a browser: http://127.0.0.1:{pages}", style="bold")
        figures = await _play(demo, console, seconds, ended)
    finally:
        await demo.stop()
    if as_json:
        print(json.dumps(msgspec.to_builtins(figures)))


async def _play(demo: Demo, console: Console, seconds: float | None, ended: asyncio.Event) -> Figures:
    """From the first request to the last: the figures of it."""
    running = set[asyncio.Task[None]]()

    def pressed(key: str) -> None:
        if key.isdecimal() and not running:
            task = asyncio.create_task(demo.guest.like((int(key) - 1) % 10))
            running.add(task)
            task.add_done_callback(running.discard)

    by_hand = console.is_terminal and at_a_terminal()
    with Keys(sys.stdin.fileno(), pressed) if by_hand else contextlib.nullcontext():
        looking = asyncio.create_task(demo.guest.run())
        await _watch(demo, console, seconds, ended, by_hand, looking)
        with console.status("waiting for the last outcomes to be learnt"):
            await demo.settle()
        figures = demo.figures()
        console.print(board(figures, len(demo.replay.shown), demo.data.name))
        base_url = f"http://127.0.0.1:{demo.port}"
        for line in verdict(figures, demo.guest, base_url, str(demo.folder), sys.argv[0], demo.console):
            console.print(line, highlight=False, soft_wrap=True, markup=False, emoji=False)
        if demo.books.first_error:
            console.print(f"first error: {demo.books.first_error}", style="red", markup=False)
        if seconds is None and not ended.is_set():
            console.print(f"\nThe service goes on answering at {base_url}; Ctrl-C ends it.")
            await _go_on(demo, console, ended, by_hand)
        demo.guest.stopping.set()
        await asyncio.gather(looking, *running)
    return figures


async def _watch(
    demo: Demo, console: Console, seconds: float | None, ended: asyncio.Event, by_hand: bool,
    looking: asyncio.Task[None],
) -> None:  # fmt: skip
    """Replay until it ends, the time is over or somebody stops it; the tables are drawn meanwhile."""
    replaying = asyncio.create_task(demo.replay.run())
    visiting = asyncio.create_task(demo.visits.run())
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while not replaying.done():
            table = board(demo.figures(), len(demo.replay.shown), demo.data.name)
            again = demo.clock.monotonic() + 1.0
            while not replaying.done() and demo.clock.monotonic() < again:
                drawn = shelf(demo.guest, by_hand)
                live.update(Group(table, drawn) if console.height >= BOTH_LINES else drawn, refresh=True)
                await asyncio.wait({replaying}, timeout=DRAWN_S)
            if ended.is_set() or (seconds is not None and demo.replay.seconds >= seconds):
                break
    demo.visits.stopping.set()
    demo.replay.stopping.set()
    ending = {replaying, visiting}
    if seconds is not None or ended.is_set():
        demo.guest.stopping.set()
        ending.add(looking)
    done, late = await asyncio.wait(ending, timeout=LAST_ANSWER_S_MAX)
    for task in late:
        task.cancel()
    if late:
        raise Unreachable(f"the service left requests unanswered for {LAST_ANSWER_S_MAX:.0f} s after the last was sent")
    for task in done:
        task.result()


async def _go_on(demo: Demo, console: Console, ended: asyncio.Event, by_hand: bool) -> None:
    """Draw the visitor's list until somebody stops it; where nobody sits, only wait."""
    if not by_hand:
        await ended.wait()
        return
    with Live(console=console, auto_refresh=False) as live:
        while not ended.is_set():
            live.update(shelf(demo.guest, by_hand), refresh=True)
            await demo.clock.sleep(DRAWN_S)
