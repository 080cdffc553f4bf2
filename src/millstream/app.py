"""Composition: builds each role of an installation from its settings, and hands rooms to each other as callables.

An installation is a folder: `log/` (topics), `models/` (versions and policies), `state/` (snapshots, meter pages).
Roles share nothing else. `Serve` answers; `Learn` joins, learns and pushes. Both can run in one process under one
clock, step by step, which is what the tests of the whole loop do.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Self

import msgspec

from millstream import config
from millstream.clock import Clock, SystemClock
from millstream.engine import Engine, EngineLimits, Follow
from millstream.errors import BadInput, Misconfigured, NotFound
from millstream.features import Definition, Entities
from millstream.flows import Collect, CollectLimits, Predict, Recommend, RecommendLimits, ServedLog
from millstream.front import Http, HttpLimits
from millstream.front.door import Answer, Call
from millstream.guard import auth
from millstream.guard.auth import Keys
from millstream.learn import Learning, LearnSettings, train_base
from millstream.learn.history import import_entities, import_outcomes, read_map, read_rows
from millstream.meter import Meter
from millstream.models.manifest import Manifest
from millstream.models.online import Settings as FtrlSettings
from millstream.models.repository import Repository
from millstream.ops import Supervisor
from millstream.stream import Join, JoinSettings, Log, LogLimits, Operation, Reader, decode, encode
from millstream.types import Description, Entity, PolicyChange, Principal, Rank, Request, Shadow

logger = logging.getLogger("millstream")


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`millstream.toml`: every setting of an installation."""

    host: Annotated[str, msgspec.Meta(description="address of the data plane")] = "127.0.0.1"
    http_port: Annotated[int, msgspec.Meta(ge=0, le=65535, description="port of the data plane; 0: a free one")] = 8000
    keys: Annotated[str, msgspec.Meta(description="keys file; empty: everybody may use the data plane")] = ""
    poll_s: Annotated[
        float, msgspec.Meta(ge=0.005, le=1.0, description="how often a role looks at the log for news, seconds")
    ] = 0.05
    http: HttpLimits = HttpLimits()
    engine: EngineLimits = EngineLimits()
    log: LogLimits = LogLimits()
    outcomes: CollectLimits = CollectLimits()
    recommend: RecommendLimits = RecommendLimits()
    features: Annotated[Definition | None, msgspec.Meta(description="what a feature row of a ranker holds")] = None
    join: JoinSettings = JoinSettings()
    learn: LearnSettings = LearnSettings()
    ftrl: FtrlSettings = FtrlSettings()


class Installation:
    """The folder, opened: what every role of it shares. Use it in a `with`, or close it."""

    def __init__(self, folder: Path, settings: Settings, clock: Clock) -> None:
        self.folder, self.settings, self.clock = folder, settings, clock
        self.log = Log(folder / "log", clock, settings.log)
        self.repository = Repository(folder / "models")
        self.model = settings.learn.model or settings.recommend.model

    @classmethod
    def open(cls, file: Path) -> Installation:
        """From its `millstream.toml`: the installation is the folder the file lies in."""
        return cls(file.resolve().parent, config.read(file, Settings), SystemClock())

    @property
    def definition(self) -> Definition:
        """The feature definition; Misconfigured when the settings have none."""
        if self.settings.features is None:
            raise Misconfigured(f"{self.folder}: ranking and learning need a [features] table in millstream.toml")
        return self.settings.features

    def entities(self) -> Entities:
        """Known users and items as topics `users` and `items` have them now."""
        known = Known(Entities(self.definition), self.log)
        known.poll()
        return known.entities

    def join(self) -> Operation:
        """The join of `served` and `outcomes`; one process at a time may hold it."""
        path = self.folder / "state" / "join.snapshot"
        path.parent.mkdir(parents=True, exist_ok=True)
        return Operation(Join(self.settings.join), self.log, Join.inputs, "examples", path, self.clock)

    def close(self) -> None:
        self.log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Known:
    """Users and items, followed from their topics."""

    def __init__(self, entities: Entities, log: Log) -> None:
        self.entities = entities
        self._topics = (("user", log.reader("users")), ("item", log.reader("items")))
        self._at: dict[tuple[str, int], int] = {}

    def poll(self) -> None:
        """Take in what is new."""
        for kind, reader in self._topics:
            for partition in reader.partitions():
                self._follow(kind, reader, partition)

    def _follow(self, kind: str, reader: Reader, partition: int) -> None:
        at = max(self._at.get((kind, partition), 0), reader.start(partition))
        while at < reader.end(partition) and (records := reader.read(partition, at)):
            for event in (decode(record.value) for record in records):
                if isinstance(event, Entity):
                    self.entities.upsert("user" if kind == "user" else "item", event.id, event.attributes)
            at = records[-1].offset + 1
        self._at[kind, partition] = at


class House:
    """The Door: authorises (model, verb), then hands the request to its flow. `recommend` and `collect` need a log."""

    def __init__(
        self,
        engine: Engine,
        predict: Predict,
        meter: Meter,
        keys: Keys | None,
        recommend: Recommend | None = None,
        collect: Collect | None = None,
    ) -> None:
        self._engine, self._predict, self._recommend, self._collect = engine, predict, recommend, collect
        self._keys = keys
        self.describe = engine.describe
        self.metrics = meter.render

    def call(self, request: Call, principal: Principal) -> Answer:
        if isinstance(request, Request):
            self._check(principal, request.model, "infer")
            return self._predict.call(request)
        if self._recommend is None or self._collect is None:
            raise NotFound("this process serves models alone; `millstream up -c FILE` also ranks and takes outcomes")
        if isinstance(request, Rank):
            self._check(principal, request.model or self._recommend.model, "recommend")
            return self._recommend.call(request)
        self._check(principal, "*", "outcomes")
        return self._collect.call(request)

    def models(self) -> list[Description]:
        return [self._engine.describe(model) for model in self._engine.models()]

    def ready(self, model: str = "", version: str = "") -> bool:
        if not model:
            return self._engine.ready()
        try:
            return bool(self._engine.describe(model, version))
        except NotFound:
            return False

    def principal(self, key: str | None, peer: str) -> Principal:
        return auth.ANYBODY if self._keys is None else self._keys.principal(key, peer in ("127.0.0.1", "::1"))

    def _check(self, principal: Principal, model: str, verb: str) -> None:
        if self._keys is not None:
            auth.check(principal, model, verb)


class Serve:
    """The role that answers: front, flows, engine. Writes `served`, `outcomes`, `shadow`, `policy`; reads `users`,
    `items`, `deltas` and the repository."""

    def __init__(self, installation: Installation) -> None:
        at, self.installation = installation, installation
        self.meter = Meter(at.folder / "state" / "meters", "serve")
        self._shadow, self._policy = at.log.writer("shadow"), at.log.writer("policy")
        self._follow = Follow(at.repository, at.log, at.clock, self.meter)
        self.engine = Engine(
            at.repository,
            at.clock,
            self.meter,
            at.settings.engine,
            admit=self._admit,
            shadow=self._on_shadow,
            on_load=self._follow.on_load,
            on_first_answer=self._follow.on_first_answer,
        )
        self._follow.attach(self.engine)
        self.known = Known(Entities(at.definition), at.log) if at.settings.features else None
        served, submit = ServedLog(at.log.writer("served"), self.meter), self.engine.submit
        self._recommend = (
            Recommend(submit, self.known.entities, at.clock, served, at.settings.recommend) if self.known else None
        )
        keys = Keys.load(at.folder / at.settings.keys) if at.settings.keys else None
        self.door = House(
            self.engine,
            Predict(submit, at.clock, served),
            self.meter,
            keys,
            self._recommend,
            Collect(at.log.writer("outcomes"), at.clock, self.meter, at.settings.outcomes),
        )
        self.http = Http(self.door, self.meter, at.clock, at.settings.http)
        self._logged_policy: dict[str, int] = {}

    async def start(self) -> int:
        """Load, catch up, then listen; the port."""
        at = self.installation
        self.poll_known()
        await self.engine.start()
        if self._recommend is not None:
            self._recommend.recall(at.log.reader("served"), 0)
        return await self.http.start(at.settings.host, at.settings.http_port)

    def poll(self) -> None:
        """What is new in the log and in the policies."""
        self.poll_known()
        self._follow.poll()
        self._log_policies()

    def poll_known(self) -> None:
        if self.known is not None:
            self.known.poll()

    async def stop(self) -> None:
        await self.http.stop()
        await self.engine.stop()

    def _admit(self, model: str, manifest: Manifest) -> None:
        features = self.installation.settings.features
        if manifest.features and (features is None or features.hash != manifest.features):
            here = features.hash if features else "none"
            raise Misconfigured(
                f"{model} was trained on feature set {manifest.features}, this installation makes {here}: serve it "
                "with the [features] it was trained on, or train it again"
            )

    def _on_shadow(self, shadow: Shadow) -> None:
        self._shadow.append(shadow.request.encode(), encode(shadow))

    def _log_policies(self) -> None:
        for view in self.engine.views():
            if view.policy and self._logged_policy.get(view.model) != view.policy:
                policy = self.installation.repository.policy(view.model)
                text = msgspec.json.encode(policy).decode()
                event = PolicyChange(
                    model=view.model, version=policy.version, who=policy.who, why=policy.why, text=text
                )
                self._policy.append(view.model.encode(), encode(event))
                self._logged_policy[view.model] = view.policy


class Learn:
    """The role that joins, learns and pushes. Reads `served`, `outcomes`; only it writes `examples` and `deltas`."""

    def __init__(self, installation: Installation) -> None:
        at = installation
        self.meter = Meter(at.folder / "state" / "meters", "learn")
        self.join = at.join()
        self.learning = Learning(
            at.settings.learn, at.repository, at.log, at.log.writer("deltas"), at.clock, self.meter
        )

    def step(self) -> int:
        """Join what came, learn what was joined, push what is due; how many events and examples that was.

        An error here (a full disk, say) ends the process: a new one recovers from the log and knows where it is.
        """
        return self.join.step() + self.learning.step()

    def close(self) -> None:
        self.join.close()


def train(installation: Installation) -> str:
    """Join all that the log holds and fold it into a new version of the installation's model; its number."""
    operation = installation.join()
    while operation.step():
        pass
    operation.close()
    return train_base(
        installation.model,
        installation.definition,
        installation.settings.ftrl,
        installation.log,
        installation.repository,
    )


def import_history(installation: Installation, file: Path, topic: str, entries: Sequence[str], delay_s: float) -> int:
    """Bring a file into a topic; how many rows."""
    if not file.is_file():
        raise BadInput(f"{file}: no such file")
    at, fields, rows = installation, read_map(entries), read_rows(file)
    folder, limits = at.folder / "log", at.settings.log
    if topic != "outcomes":
        return import_entities(folder, limits, topic, rows, fields, at.clock.now())
    return import_outcomes(
        folder, limits, at.entities(), at.model, rows, fields, delay_s=delay_s, window_s=at.settings.join.window_s
    )


async def run_role(file: Path, role: str) -> None:
    """One role in this process, until SIGTERM or SIGINT."""
    with Installation.open(file) as installation:
        if role == "serve":
            await _run_serve(Serve(installation), installation)
        else:
            await _run_learn(Learn(installation), installation)


async def _run_serve(serve: Serve, installation: Installation) -> None:
    port = await serve.start()
    logger.info("serving at http://%s:%d", installation.settings.host, port)
    await _until_asked(serve.poll, lambda: installation.settings.poll_s, installation.clock)
    await serve.stop()


async def _run_learn(learn: Learn, installation: Installation) -> None:
    took = 0

    def step() -> None:
        nonlocal took
        took = learn.step()

    await _until_asked(step, lambda: 0.0 if took else installation.settings.poll_s, installation.clock)
    learn.close()


async def _until_asked(step: Callable[[], None], pause_s: Callable[[], float], clock: Clock) -> None:
    asked = _asked()
    while not asked.is_set():
        step()
        await clock.sleep(pause_s())


def _asked() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    return asked


async def supervise(file: Path) -> None:
    """Every role of an installation as a process of its own, kept running until SIGTERM or SIGINT."""
    Installation.open(file).close()
    command = [sys.executable, "-m", "millstream", "up", "-c", str(file), "--role"]
    await Supervisor({role: [*command, role] for role in ("serve", "learn")}, SystemClock()).run()


async def serve_path(path: Path, host: str, port: int) -> None:
    """Serve models alone: no log, no learning, nothing but the repository at `path`."""
    clock, meter = SystemClock(), Meter()
    engine = Engine(Repository.open(path), clock, meter)
    await engine.start()
    http = Http(House(engine, Predict(engine.submit, clock), meter, None), meter, clock)
    asked = _asked()
    bound = await http.start(host, port)
    for view in engine.views():
        logger.info("%s: %s", view.model, view.live or "; ".join(view.problems.values()))
    logger.info("serving at http://%s:%d", host, bound)
    await asked.wait()
    await http.stop()
    await engine.stop()
