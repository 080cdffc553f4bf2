"""The roles of an installation. `Serve` answers; `Learn` joins, learns and pushes.

Both can run in one process under one clock, step by step, which is what the tests of the whole loop do.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from millstream.app.installation import Installation, Known
from millstream.app.labels import LabelCounts
from millstream.app.orders import LEARN, SERVE, Orders
from millstream.app.place import Place
from millstream.app.plain import until_asked
from millstream.app.service import Service
from millstream.app.training import folder_of
from millstream.app.workers import Workers
from millstream.clock import Clock, SystemClock
from millstream.config import orphaned
from millstream.engine.follow import Follow
from millstream.errors import BadInput, Busy, Conflict, Corrupt, Error, Full, Misconfigured, Missing, NotFound
from millstream.features import Entities
from millstream.features.pipeline import GROUPS, Pipeline, group_of
from millstream.flows.collect import Collect
from millstream.flows.facts import Facts
from millstream.flows.features import Features, RankRows
from millstream.flows.recommend import Matrix, Recommend
from millstream.flows.recommend.upsert import Upserts
from millstream.flows.served import ServedLog
from millstream.guard.pii import pseudonym, redact
from millstream.guard.tenants import tenant_of
from millstream.learn import Learning
from millstream.learn.history import import_entities, import_outcomes, read_map, read_rows
from millstream.learn.validation import slices
from millstream.machine import Gauges, stand_back, stand_ready
from millstream.meter import Counter, Meter
from millstream.models.manifest import Manifest
from millstream.models.policy import render
from millstream.ops import Launch, Supervisor
from millstream.stream import LenientReader, Writer, encode
from millstream.stream.event import Event
from millstream.stream.forget import Names
from millstream.types import Array, Example, FeaturesRead, Forget, PolicyChange, SetAside, Shadow

if TYPE_CHECKING:  # lists need the compiler and an index of vectors
    from millstream.app.hearing import Hearing
    from millstream.app.lists import Lister
    from millstream.app.shard import Searches
    from millstream.app.watching import Watch
    from millstream.recall.build import Builder

TAKE_S = 1.0  # between two tries to be the one that logs the policies' changes
MANY, GATHER_S = 1000, 0.01
"""A step of `learn` that took less waits so long for more: each has its price, also for who answers beside it."""
logger = logging.getLogger("millstream")


class Serve:
    """The role that answers: front, flows, engine. Writes `served`, `outcomes`, `shadow`, `policy` and the topics of
    facts; reads `users`, `items`, `deltas`, rows of features and the repository. `place`: of one of several such
    processes; each writes partitions of its own, and the first to get the one of `policy` logs the changes for all."""

    def __init__(self, installation: Installation, place: Place | None = None) -> None:
        at, self.installation = installation, installation
        self.meter = at.meter(place.page_name if place else "serve")
        self._partition = at.settings.log.partition + (place.page if place else 0)
        self._unlogged = self.meter.counter("millstream_unlogged_total", "Shadow scores and policy changes not logged.")
        self._shadow = self._writer("shadow", self._partition)
        self._policy: Writer | None = None
        self._logged_policy: dict[str, int] | None = None  # by this process; None: another one logs the changes
        self._try_at = at.clock.monotonic()
        self._follow = Follow(at.repository, at.log, at.clock, self.meter)
        self.service = Service(
            at.repository,
            at.settings,
            at.folder,
            at.clock,
            self.meter,
            admit=self._admit,
            shadow=self._on_shadow,
            on_load=self._follow.on_load,
            on_first_answer=self._follow.on_first_answer,
            place=place,
        )
        self.engine = self.service.engine
        self._follow.attach(self.engine)
        self.listers: dict[str, Lister] = {}  # by tenant
        self.known = Known(Entities(at.definition), at.log, self.meter) if at.settings.features else None
        served, submit = ServedLog(at.log.writer("served", self._partition), self.meter), self.engine.submit
        self._recommend = (
            Recommend(
                submit,
                self.known.entities,
                at.clock,
                served,
                at.settings.recommend,
                self._matrix(),
                self._more,
                self._history,
            )
            if self.known
            else None
        )
        self.service.furnish(
            served,
            self._recommend,
            Collect(at.log.writer("outcomes", self._partition), at.clock, self.meter, at.settings.outcomes),
        )
        self.door = self.service.door
        self._furnish_features()
        self.listers = self._furnish_lists(served)
        self._hearing = self._furnish_speech(served)
        self._orders = Orders(at.log, SERVE + self._partition, at.clock, self.meter, self._forget)
        self._handed = None if place else at.folder / "state" / "sessions"
        self._deleted = _unread_deleted(self.meter)

    def _matrix(self) -> Matrix:
        """What reads the feature set of a ranking, where rows take one."""
        at = self.installation
        if (taken := at.ranker_set) is None:
            return lambda user, items: None
        kept = at.settings.feature_store
        return RankRows(taken, at.rows, at.clock, self.meter, kept.stale_s_max, self._on_read, kept.log_share).matrix

    def _history(self, user: str) -> list[str]:
        """What a user liked, newest last; where lists are made, else nothing is known of it."""
        lister = self.listers.get(tenant_of(user)) if self.installation.settings.recommend.tenants else self.lister
        return lister.world.history(user) if lister is not None else []

    def _more(self, model: str, history: Sequence[str]) -> dict[str, Array]:
        """What any loaded version of a ranker takes beside rows: what the user liked lately, as far back as the one
        that attends to most of it."""
        width = self.engine.widest(model, "history")
        if not width or self.known is None:
            return {}
        return {"history": self.known.entities.history(history, width)}

    def _furnish_features(self) -> None:
        """Let the Door read feature sets and write their sources, where any are defined."""
        at = self.installation
        if not (registry := at.registry).sets:
            return
        kept = at.settings.feature_store
        self._reads = self._writer("features_read", self._partition) if kept.log_share else None
        logged, name_bytes_max = (self._on_read, kept.log_share), at.settings.recommend.name_bytes_max
        features = Features(registry, at.rows, at.clock, self.meter, kept.stale_s_max, *logged, name_bytes_max)
        writer = partial(at.log.writer, partition=self._partition)
        bounds = at.settings.facts, at.settings.log.frame_bytes_max
        self.door.furnish(features, Facts(registry, writer, at.clock, self.meter, *bounds))

    @property
    def lister(self) -> Lister | None:
        """What makes lists where there are no tenants; None where none are made."""
        return self.listers.get("")

    def _furnish_lists(self, served: ServedLog) -> dict[str, Lister]:
        """Take items and users, and make lists where a placement is configured, for each tenant apart."""
        at, limits = self.installation, self.installation.settings.recommend

        def writer(topic: str) -> Writer:
            at.log.commit("known", topic, {0: 0})  # state, not events: it never gets too old
            return at.log.writer(topic, 1 + self._partition)  # 0 is for `log import`

        upserts = Upserts(writer, at.clock, self.meter, limits.upserts)
        listers = {}
        if tenants := list(limits.places):
            from millstream.app.lists import Lister

            entities, matrix = self.known.entities if self.known is not None else None, self._matrix()
            for tenant in tenants:
                listers[tenant] = Lister(
                    at, self.meter, self.engine, self.engine.submit, served, entities, matrix, self._more,
                    self._partition, tenant,
                )  # fmt: skip
        lists = {tenant: lister.lists for tenant, lister in listers.items()}
        self.door.furnish_lists(upserts, lists, limits.tenants)
        return listers

    def _furnish_speech(self, served: ServedLog) -> Hearing | None:
        """Hear what is said, where a recogniser is named."""
        at = self.installation
        if not at.settings.speech.recogniser:
            return None
        from millstream.app.hearing import Hearing

        hearing = Hearing(at, self.engine, self.meter, served)
        self.door.furnish_speech(hearing)
        return hearing

    async def start(self) -> int:
        """Load, catch up, then listen; the port."""
        at = self.installation
        self.poll_known()
        for lister in self.listers.values():
            lister.start()
        await self.service.load(self._handed)
        if self._recommend is not None:
            served = at.log.reader("served")
            try:
                self._recommend.recall(served, self._partition)
            except (Corrupt, NotFound) as error:  # a retried id may be answered, and logged, a second time
                LenientReader(served, self.meter).lose(error)
        if self._hearing is not None:
            await self._hearing.start()
            self.service.share_speech()
        return await self.service.listen()

    def poll(self) -> None:
        """What is new in the log and in the policies. Corrupt when a sync has failed: a new process recovers."""
        if self.installation.log.failed:
            raise Corrupt(self.installation.log.failed)
        self._deleted.set(self.installation.log.unread_deleted)
        self.poll_known()
        for lister in self.listers.values():
            lister.poll()
        self._follow.poll()
        self._log_policies()
        self._orders.poll()

    def _forget(self, order: Forget) -> dict[str, int] | None:
        """Drop what this process has in memory of people, once it has what the log had of them; see app/forget.py."""
        known, listers = self.known, self.listers.values()
        if (known and not known.reached(order.cut)) or not all(one.live.reached(order.cut) for one in listers):
            return None
        mine, attributes, answers = Names.of(order), 0, 0
        if order.kind == "user" and self.known is not None and self._recommend is not None:
            attributes, answers = self.known.forget(mine), self._recommend.forget(mine)
        if order.kind == "user":
            attributes += sum(lister.forget(mine) for lister in listers)
        return {"attributes": attributes, "answers": answers}

    def poll_known(self) -> None:
        """Users and items that came."""
        if self.known is not None:
            self.known.poll()

    async def stop(self) -> None:
        """Answer what is under way, hand open sessions over to the next start, then let go."""
        if self._hearing is not None:
            await self._hearing.close()
        await self.service.stop(self._handed)
        self._follow.note()
        for lister in self.listers.values():
            lister.stop()

    def _admit(self, model: str, manifest: Manifest) -> None:
        settings = self.installation.settings
        features = self.installation.definition if settings.features else None
        rankers = (settings.recommend.model, settings.learn.model, *settings.recommend.beside)
        ranks = features is not None and model in rankers
        if ranks and not manifest.features:
            raise Misconfigured(
                f"{model} ranks here, and this version's manifest names no feature set: it cannot take the rows of "
                "[features]; serve it under another model's name, or train it with `millstream train offline`"
            )
        known = {features.hash} if features is not None else set()
        if not ranks:
            known |= {one.hash for one in self.installation.registry.sets.values()}
        if manifest.features and manifest.features not in known:
            here = ", ".join(sorted(known)) or "none"
            raise Misconfigured(
                f"{model} was trained on feature set {manifest.features}, this installation makes {here}: serve it "
                "with the [features] it was trained on, or train it again"
            )

    def _writer(self, topic: str, partition: int = 0) -> Writer | None:
        """The writer of a topic that answers can do without; None where its newest segment is damaged."""
        try:
            return self.installation.log.writer(topic, partition)
        except Corrupt as error:
            logger.error("the service goes on without logging to topic %s: %s", topic, error)
            return None

    def _append(self, writer: Writer | None, key: str, event: Event) -> None:
        if writer is None:
            self._unlogged.add()
        else:
            writer.append_soon(key.encode(), encode(event))

    def _on_shadow(self, shadow: Shadow) -> None:
        try:
            self._append(self._shadow, shadow.request, shadow)
        except Full as error:
            self._say_unlogged(error)

    def _on_read(self, read: FeaturesRead) -> None:
        if not self.installation.settings.feature_store.log_share:
            return
        try:
            self._append(self._reads, read.features, read)
        except Full as error:
            self._say_unlogged(error)

    def _log_policies(self) -> None:
        if self._logged_policy is None:
            self._logged_policy = self._take_policy()
        logged = self._logged_policy
        for view in self.engine.views() if logged is not None else ():
            if logged is not None and view.policy > logged.get(view.model, 0):
                try:
                    self._log_policy(view.model, logged)
                except Error as error:  # a full disk, a file that is broken by now: answers go on
                    self._say_unlogged(error)

    def _take_policy(self) -> dict[str, int] | None:
        """Be the process that logs the policies' changes, if no other is; the last one logged of each model."""
        now = self.installation.clock.monotonic()
        if now < self._try_at:
            return None
        self._try_at = now + TAKE_S
        try:
            self._policy = self._writer("policy")
        except (Busy, Conflict):
            return None
        changes = (event for _, event in LenientReader(self.installation.log.reader("policy"), self.meter).events(0, 0))
        return {change.model: change.version for change in changes if isinstance(change, PolicyChange)}

    def _log_policy(self, model: str, logged: dict[str, int]) -> None:
        """Every change since the last one logged; a file edited by hand has no history, and speaks for itself."""
        repository = self.installation.repository
        changes = [policy for policy in repository.history(model) if policy.version > logged.get(model, 0)]
        for policy in changes or [repository.policy(model)]:
            # Before it is rendered: TOML's escapes would put letters between a number and the gate of the log.
            said = {name: pseudonym(getattr(policy, name)) for name in ("who", "paused_by", "pinned_by")}
            said |= {name: redact(getattr(policy, name)) for name in ("why", "paused_why", "pinned_why")}
            told = msgspec.structs.replace(policy, **said)
            event = PolicyChange(model=model, version=policy.version, who=told.who, why=told.why, text=render(told))
            self._append(self._policy, model, event)
            logged[model] = policy.version

    def _say_unlogged(self, error: Error) -> None:
        if not self._unlogged.value:
            logger.error("the service goes on without logging all it does: %s", error)
        self._unlogged.add()


class Learn:
    """The role that joins, learns and pushes, and keeps features. Reads `served`, `outcomes`, `users`, `items` and the
    topics of features; only it writes `examples`, `deltas` and rows."""

    def __init__(self, installation: Installation) -> None:
        self._at = at = installation
        self.meter = at.meter("learn")
        self._log, self._deleted, self._labels = at.log, _unread_deleted(self.meter), LabelCounts(self.meter)
        self.join = at.join(self._count)
        self.learning = Learning(
            at.settings.learn,
            at.repository,
            at.log,
            at.log.writer("deltas"),
            at.clock,
            self.meter,
            task=at.task,
            slices=slices(at.settings.learn.validate, at.definition) if at.settings.features else (),
            folder=folder_of(at),
            also=at.also,
        )
        self.features = [
            Pipeline(one, at.log, at.rows, at.clock, self.meter, at.settings.feature_store.entities_max)
            for one in at.registry.sets.values()
        ]
        self._items = at.described_items(self.meter)
        self._builders = self._make_builders()
        self._orders = Orders(at.log, LEARN, at.clock, self.meter, self._forget)
        self._forgotten = self.meter.counter("millstream_forgotten_total", "Orders to forget that were carried out.")
        kept = {group_of(pipeline.features) for pipeline in self.features}
        for group in at.log.groups():
            if group.startswith(GROUPS) and group not in kept:
                logger.info("%s is not defined any more: the log is not kept for it", group)
                at.log.forget(group)

    def _count(self, event: Event) -> None:
        if isinstance(event, Example):
            labels = {"task": event.task, "label": str(int(event.label))}
            self.meter.counter("millstream_examples_total", "Examples made by the join.", labels).add()
            self._labels(event)
        elif isinstance(event, SetAside):
            cause = {"cause": event.cause}
            aside = self.meter.counter("millstream_set_aside_total", "Outcomes that will not be learnt.", cause)
            aside.add(event.count)

    def step(self) -> int:
        """Join what came, learn what was joined, push what is due; how many events and examples that was.

        An error here (a full disk, say) ends the process: a new one recovers from the log and knows where it is.
        """
        self._deleted.set(self._log.unread_deleted)
        self._orders.poll()
        features = sum(pipeline.step() for pipeline in self.features)
        if self._items is not None:
            self._items.poll()
        recall = sum(builder.step() for builder in self._builders)
        return recall + features + self.join.step() + self.learning.step()

    def _make_builders(self) -> list[Builder]:
        """What builds indexes for recall, where lists are made: for each tenant of its own likes, one at a time."""
        at, settings = self._at, self._at.settings
        if not (tenants := list(settings.recommend.places)):
            return []
        from millstream.app.towers import source
        from millstream.recall.build import Builder
        from millstream.recall.shelving import Shelving

        thread, kinds = ThreadPoolExecutor(1, "recall-build"), settings.histories.kinds
        towers = source(at, self._items.entities) if self._items is not None else None

        def shelving(tenant: str) -> Shelving:
            return Shelving(at.log, self.meter, settings.catalogue, settings.recall.codes, towers, tenant)

        return [
            Builder(
                at.log, settings.recall, at.clock, self.meter, at.indexes / tenant, kinds, tenant, thread,
                shelving(tenant),
            )
            for tenant in tenants
        ]  # fmt: skip

    def _forget(self, order: Forget) -> dict[str, int] | None:
        """Drop people from all state, once it has what the log had of them; see app/forget.py."""
        features = all(one.reached(order.cut) for one in self.features)
        recall = all(builder.reached(order.cut) for builder in self._builders)
        last = self._log.reader("examples").end(0) - 1 if order.served else -1
        if not (features and recall and self.join.reached(order.cut) and self.learning.reached(last)):
            return None
        mine, keys = Names.of(order), np.array(order.keys, np.uint64)
        bases = self.learning.rebase(last)
        waiting = self.join.forget(mine) if order.kind == "user" else 0
        rows = sum(pipeline.forget(order.kind, keys, mine) for pipeline in self.features)
        for builder in self._builders if order.kind == "user" else ():
            builder.forget(mine)
        self._log.roll()  # examples that were made until now can be looked at, too
        self._forgotten.add()
        return {"rows": rows, "waiting": waiting, "bases": int(bases)}

    def close(self) -> None:
        """Save the join's state and the features', and let go."""
        self.join.close()
        for builder in self._builders:
            builder.close()
        for pipeline in self.features:
            pipeline.close()


def _unread_deleted(meter: Meter) -> Counter:
    return meter.gauge("millstream_log_unread_deleted", "Records that disk_bytes_max deleted before they were read.")


def import_history(installation: Installation, file: Path, topic: str, entries: Sequence[str], delay_s: float) -> int:
    """Bring a file into a topic; how many rows."""
    if not file.is_file():
        raise BadInput(f"{file}: no such file")
    at, fields, rows = installation, read_map(entries), read_rows(file)
    folder, limits, tenants = at.folder / "log", at.settings.log, at.settings.recommend.tenants
    if topic != "outcomes":
        return import_entities(folder, limits, topic, rows, fields, at.clock.now(), tenants)
    return import_outcomes(
        folder, limits, at.entities(), at.model, rows, fields,
        delay_s=delay_s, window_s=at.settings.join.settled_s, features=at.ranker_set, tenants=tenants,
    )  # fmt: skip


async def run_role(file: Path, role: str, place: Place | None = None) -> None:
    """One role in this process, until SIGTERM or SIGINT. `place`: of one of several that serve."""
    with Installation.open(file) as installation:
        if role == "serve":
            await _run_serve(Serve(installation, place), installation)
        elif role == "learn":
            await _run_learn(Learn(installation), installation)
        elif role == "watch":
            from millstream.app.watching import Watch

            await _run_watch(Watch(installation), installation)
        elif role == "console":
            await run_console(installation)
        else:
            from millstream.app.shard import Searches

            await _run_shard(Searches(installation, int(role.removeprefix("recall-"))), installation)


async def run_console(installation: Installation) -> None:
    """The pages for people, until SIGTERM or SIGINT. Missing: its extra is not installed."""
    try:
        from millstream.app.console import following
    except ImportError as error:
        raise Missing.extra("console", f"the console ({error})") from None
    await following.run(installation)


async def _run_serve(serve: Serve, installation: Installation) -> None:
    stand_ready()
    await serve.start()
    await _until_asked(serve.poll, lambda: installation.settings.poll_s, installation.clock)
    await serve.stop()


async def _run_learn(learn: Learn, installation: Installation) -> None:
    stand_back()
    took = 0

    def step() -> None:
        nonlocal took
        took = learn.step()

    def pause_s() -> float:
        idle = installation.settings.poll_s
        return 0.0 if took >= MANY else min(GATHER_S, idle) if took else idle

    gauges = asyncio.ensure_future(Gauges(learn.meter, "learn", whole=False).keep(installation.clock))
    await _until_asked(step, pause_s, installation.clock)
    gauges.cancel()
    learn.close()


async def _run_watch(watch: Watch, installation: Installation) -> None:
    stand_back()
    await _until_asked(watch.step, lambda: 0.25, installation.clock)
    watch.close()


async def _run_shard(shard: Searches, installation: Installation) -> None:
    stand_ready()
    gauges = asyncio.ensure_future(Gauges(shard.meter, shard.meter.name, whole=False).keep(installation.clock))
    await shard.start()
    await _until_asked(shard.poll, lambda: installation.settings.poll_s, installation.clock)
    gauges.cancel()
    shard.stop()


async def _until_asked(step: Callable[[], object], pause_s: Callable[[], float], clock: Clock) -> None:
    asked = until_asked()
    while not asked.is_set():
        if orphaned():
            logger.warning("the supervisor is gone: this role ends too")
            return
        step()
        await clock.sleep(pause_s())


async def supervise(file: Path) -> None:
    """Every role of an installation as a process of its own, kept running until SIGTERM or SIGINT."""
    installation = Installation.open(file)
    command = [sys.executable, "-m", "millstream", "up", "-c", str(file), "--role"]
    clock, meter, settings = SystemClock(), installation.meter("supervisor"), installation.settings
    shards = settings.recall.shards if settings.recall.shards > 1 and settings.recommend.places else 0
    seen = [role for role, on in (("watch", settings.watch.on), ("console", settings.console.on)) if on]
    names = ("learn", *seen, *(f"recall-{number}" for number in range(shards)))
    beside = {name: partial(Launch, [*command, name]) for name in names}
    with installation.alone():
        if settings.workers == 1:
            serve = partial(Launch, [*command, "serve"])
            return await Supervisor({"serve": serve} | beside, clock, meter=meter).run()
        with Workers([*command, "serve"], installation.settings, installation.run) as workers:
            roles = workers.roles | beside
            return await workers.keep(Supervisor(roles, clock, workers.grace_s, meter), meter, clock)
