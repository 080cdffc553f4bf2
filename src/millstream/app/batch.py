"""Lists for many users at once, into a Parquet file: what a mail job sends.

Rules of the room:
- No server is needed, and none is disturbed: this process knows what a server knows, from the log and the repository,
  and writes nothing that another one writes. Its served events go to partitions of its own, the first that nobody has
  beyond those of serving processes; it stands in line for orders to forget like a process that serves.
- Every list is logged before its rows are written, so that what comes of a mail joins: an outcome names the `request`
  of its row. Its counters are no page of the installation: nobody's canary is judged by them.
- Nobody waits for a list here, so paths of recall and the ranker get WAIT_MS instead of their deadlines.
- Memory is bounded by what a server knows and by one row group. The file appears when it is whole.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import msgspec

from millstream.app.installation import Installation, Settings
from millstream.app.lists import BATCH, Lister
from millstream.app.roles import Serve
from millstream.app.service import ServeSettings
from millstream.clock import Clock
from millstream.errors import BadInput, Conflict, Misconfigured, Missing
from millstream.flows.recommend.ask import check_n, check_names
from millstream.flows.recommend.placement import Placement
from millstream.guard.tenants import outside
from millstream.meter import Meter
from millstream.store.blob import writing
from millstream.types import Ask, Listing

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetWriter

WAIT_MS: Final = 10_000.0
GROUP_ROWS: Final = 50_000
"""Rows of a row group, and so of what is held before it is written."""
AT_ONCE: Final = 4
STALE_S_MAX: Final = 1e9
"""Rows of features count as `learn` left them: where it does not run, nothing has joined since either."""
TOLD_S: Final = 5.0
PARTITIONS_MAX: Final = 64
_PLAIN: Final = ("keys", "tls", "access_log", "trace", "record")  # of a server that listens

Say = Callable[[str], None]


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """What was made. `lists`: of so many users, of which `empty` had no item and have no row; `rows`: items, one each;
    `unlogged`: lists that the log had no room for, whose outcomes will be set aside; `missed`: paths of recall, and
    "rank", that were late or failed, and in how many lists; `per_minute`: lists, the start left out."""

    out: str
    placement: str
    lists: int
    empty: int
    rows: int
    unlogged: int
    missed: dict[str, int]
    seconds: float
    per_minute: float


class Aside(Installation):
    """An installation as a batch uses it: beside the roles, with counters of its own."""

    def meter(self, role: str) -> Meter:
        return Meter()


async def run(
    file: Path, users: Path | None, out: Path, placement: str = "", n: int = 0, say: Say = lambda line: None,
    tenant: str = "",
) -> Batch:  # fmt: skip
    """Make a list for each line of the file `users`, None: for everybody known, and write them to `out`. `n`: items of
    a list, 0: the placement's; `tenant`: whose lists, where there are tenants. BadInput, NotFound, Misconfigured,
    Missing (pyarrow), Full: then `out` is as it was."""
    _arrow()
    if not out.parent.is_dir():
        raise BadInput(f"{out}: there is no folder {out.parent}; make it, or name another file")
    if out.is_dir():
        raise BadInput(f"{out} is a folder; name a file in it")
    with Installation.open(file) as found:
        settings, clock = found.settings, found.clock
    placements = _placements(settings, tenant, file)
    placement = placement or next(iter(placements))
    if placement not in placements:
        raise BadInput(f"placement {placement!r} is not configured in {file}; there are: {', '.join(placements)}")
    check_n(n, settings.recommend.asks)
    n = n or placements[placement].n
    named = _check(users, settings) if users is not None else 0
    settings = _patient(settings, tenant, placements, n)
    async with _serving(file.resolve().parent, settings, clock) as (serve, lister):
        everybody = [] if users is not None else [outside(tenant, name) for name in lister.live.users()]
        whom, total = (_lines(users), named) if users is not None else (iter(everybody), len(everybody))
        job = _Job(serve, lister, placement, n, total, say)
        with writing(out) as to:
            return await job.write(whom, to, out)


def _placements(settings: Settings, tenant: str, file: Path) -> dict[str, Placement]:
    """Those of a tenant, as configured. BadInput, Misconfigured."""
    limits = settings.recommend
    if not limits.places:
        raise Misconfigured(f"{file}: no placement is configured; add a table [recommend.placements.NAME]")
    if tenant not in limits.places:
        there = f"--tenant is one of {', '.join(limits.places)}" if limits.tenants else "there are no tenants"
        raise BadInput(f"{file}: there is no tenant {tenant!r} with placements; {there}")
    return (limits.tenants[tenant].placements if tenant else {}) or limits.placements


def _patient(settings: Settings, tenant: str, placements: Mapping[str, Placement], n: int) -> Settings:
    """The settings of a process that makes one tenant's lists, listens to nobody, and has time."""
    limits, plain = settings.recommend, {name: getattr(ServeSettings(), name) for name in _PLAIN}
    patient = {
        name: msgspec.structs.replace(one, rank_ms=max(one.rank_ms, WAIT_MS), list_max=n)
        for name, one in placements.items()
    }
    tenants = {tenant: msgspec.structs.replace(limits.tenants[tenant], placements=patient)} if tenant else {}
    recommend = msgspec.structs.replace(
        limits, placements={} if tenant else patient, tenants=tenants,
        asks=msgspec.structs.replace(limits.asks, lists_kept=0),
    )  # fmt: skip
    kept = msgspec.structs.replace(settings.feature_store, stale_s_max=STALE_S_MAX)
    recall = msgspec.structs.replace(settings.recall, shards=0)  # those of `up` may not run: all is searched here
    return msgspec.structs.replace(settings, recommend=recommend, feature_store=kept, recall=recall, **plain)


def _check(file: Path, settings: Settings) -> int:
    """How many users a file names; BadInput for a line that is none, before anything is made."""
    if not file.is_file():
        raise BadInput(f"{file}: no such file; --users wants one with a user a line, or the word all")
    count = 0
    try:
        for user in _lines(file):
            count += 1
            check_names(settings.recommend.asks.name_bytes_max, (user,))
    except BadInput as error:
        raise BadInput(f"{file}, user {count}: {error}") from None
    except UnicodeDecodeError:
        raise BadInput(f"{file}: not UTF-8; it wants one user a line") from None
    if not count:
        raise BadInput(f"{file}: it names nobody; write one user a line")
    return count


def _lines(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8-sig") as lines:
        yield from (user for line in lines if (user := line.strip()))


@asynccontextmanager
async def _serving(folder: Path, settings: Settings, clock: Clock) -> AsyncIterator[tuple[Serve, Lister]]:
    """What a serving process has, but for ports: loaded, caught up, with the newest index."""
    serve, at = _apart(folder, settings, clock)
    (lister,) = serve.listers.values()
    with at:
        try:
            serve.poll_known()
            await asyncio.to_thread(lister.start)
            await serve.engine.start()
            lister.lists.wait(WAIT_MS)
            serve.poll()
            await lister.following.looked()
            yield serve, lister
        finally:
            lister.world.close()
            await serve.service.close()


def _apart(folder: Path, settings: Settings, clock: Clock) -> tuple[Serve, Aside]:
    """A process of its own place: the first partitions that nobody writes, behind those of serving processes."""
    first = settings.log.partition + 2 * settings.workers
    for partition in range(first, first + PARTITIONS_MAX):
        log = msgspec.structs.replace(settings.log, partition=partition)
        at = Aside(folder, msgspec.structs.replace(settings, log=log), clock)
        try:
            return Serve(at), at
        except Conflict:
            at.close()
    raise Conflict(f"{folder}: {PARTITIONS_MAX} batches run beside each other already; wait for one to end")


class _Job:
    """One batch, under way."""

    def __init__(self, serve: Serve, lister: Lister, placement: str, n: int, total: int, say: Say) -> None:
        self._serve, self._lists, self._placement, self._n = serve, lister.lists, placement, n
        self._total, self._say, self._clock = total, say, serve.installation.clock
        self._prefix = f"{BATCH}{int(self._clock.now() * 1e6):x}-{serve.installation.settings.log.partition}:"
        self._unlogged = serve.meter.counter("millstream_served_missing_total", "Answers given without a served event.")
        self._columns: dict[str, list[Any]] = {}
        self._clear()
        self._made = self._empty = self._rows = 0
        self._missed: Counter[str] = Counter()

    async def write(self, users: Iterable[str], to: BinaryIO, out: Path) -> Batch:
        began, polling = self._clock.monotonic(), asyncio.ensure_future(self._poll())
        told = began
        try:
            with _writer(to) as writer:
                whom = enumerate(users)
                while some := list(islice(whom, AT_ONCE)):
                    found = await asyncio.gather(*(self._lists.call(self._ask(number, user)) for number, user in some))
                    for (_, user), listing in zip(some, found, strict=True):
                        self._take(user, listing)
                    if len(self._columns["user"]) >= GROUP_ROWS:
                        self._flush(writer)
                    if polling.done():
                        polling.result()  # a sync of the log has failed, say
                    if (now := self._clock.monotonic()) - told >= TOLD_S:
                        told = now
                        self._tell(now - began)
                self._flush(writer)
        finally:
            polling.cancel()
        seconds = self._clock.monotonic() - began
        self._tell(seconds)
        return Batch(
            out=str(out), placement=self._placement, lists=self._made, empty=self._empty, rows=self._rows,
            unlogged=int(self._unlogged.value), missed=dict(self._missed), seconds=round(seconds, 3),
            per_minute=round(60 * self._made / max(seconds, 1e-9), 1),
        )  # fmt: skip

    def _ask(self, number: int, user: str) -> Ask:
        return Ask(id=f"{self._prefix}{number}", user=user, placement=self._placement, n=self._n)

    async def _poll(self) -> None:
        """Follow the log as a server does: what comes meanwhile counts, what is deleted stands in no list."""
        while True:
            await self._clock.sleep(self._serve.installation.settings.poll_s)
            self._serve.poll()

    def _take(self, user: str, listing: Listing) -> None:
        self._made += 1
        self._empty += not listing.items
        self._missed.update(listing.missed)
        columns = self._columns
        for position, slot in enumerate(listing.items, 1):
            columns["user"].append(user)
            columns["request"].append(listing.id)
            columns["position"].append(position)
            columns["item"].append(slot.item)
            columns["score"].append(slot.score)
            columns["reasons"].append(slot.reasons)
            columns["arm"].append(listing.arm)
            columns["model"].append(listing.model)
            columns["version"].append(listing.version)
            columns["placement"].append(self._placement)

    def _flush(self, writer: ParquetWriter) -> None:
        pa, _ = _arrow()
        rows = len(self._columns["user"])
        if rows:
            writer.write_table(pa.table(self._columns, _schema()), row_group_size=rows)
            self._rows += rows
            self._clear()

    def _clear(self) -> None:
        self._columns = {name: [] for name in _schema().names}

    def _tell(self, seconds: float) -> None:
        rate = 60 * self._made / max(seconds, 1e-9)
        self._say(f"{self._made:,} of {self._total:,} lists, {rate:,.0f} a minute, {self._empty:,} empty")


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise Missing.extra("parquet", "a batch of lists") from None
    return pyarrow, parquet


def _schema() -> Any:
    pa, _ = _arrow()
    text = pa.string()
    return pa.schema(
        [
            ("user", text), ("request", text), ("position", pa.int32()), ("item", text), ("score", pa.float32()),
            ("reasons", pa.list_(text)), ("arm", text), ("model", text), ("version", text), ("placement", text),
        ]
    )  # fmt: skip


def _writer(to: BinaryIO) -> ParquetWriter:
    _, parquet = _arrow()
    return parquet.ParquetWriter(to, _schema(), compression="zstd")
