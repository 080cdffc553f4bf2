"""An installation is a folder: `millstream.toml` (settings), `log/` (topics), `models/` (versions and policies) and
`state/` (snapshots, meter pages). Roles share nothing else."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import msgspec

from millstream import config
from millstream.app.service import ServeSettings
from millstream.clock import Clock, SystemClock
from millstream.console.settings import ConsoleSettings
from millstream.errors import Conflict, Misconfigured
from millstream.features import Definition, Entities
from millstream.features.feature import Side
from millstream.flows.collect import CollectLimits
from millstream.flows.facts import FactLimits
from millstream.flows.recommend import RecommendLimits
from millstream.flows.speech.settings import SpeechSettings
from millstream.learn import LearnSettings
from millstream.learn.curate.settings import CurateSettings
from millstream.learn.deep.settings import DeepSettings
from millstream.learn.judge import Task
from millstream.learn.towers.settings import TowerSettings
from millstream.learn.validation import slices
from millstream.meter import Meter
from millstream.models import online
from millstream.models.online import DeepFmSettings, FmSettings, FtrlTableSettings, LearnerSettings, OnlineLearner
from millstream.models.online import Settings as FtrlSettings
from millstream.models.online.correction import Correction
from millstream.models.repository import Repository
from millstream.recall.catalogue import CatalogueSettings
from millstream.recall.live import LiveSettings
from millstream.recall.settings import BuildSettings
from millstream.store.blob import locked
from millstream.stream import Join, JoinSettings, LenientReader, Log, LogLimits, Operation
from millstream.stream.event import Event, decode
from millstream.stream.log import open_log
from millstream.types import Entity
from millstream.watch.experiments.settings import ExperimentSettings
from millstream.watch.report.settings import ReportSettings
from millstream.watch.settings import WatchSettings

if TYPE_CHECKING:  # it brings the compiler, which an installation that serves ONNX alone lacks
    from millstream.features.registry import Registry
    from millstream.features.sets import FeatureSet

TOLD_MAX = 1_000_000
"""Users, and items, of whom is remembered when they were told of; as many as `Entities` remembers."""
_TOGETHER = 1000  # entities that become rows at once
logger = logging.getLogger("millstream")


class FeatureStore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Features that are kept in rows; see docs/features.md."""

    definitions: Annotated[
        str, msgspec.Meta(description="file of Python with the feature sets, beside this one; empty: there are none")
    ] = ""
    entities_max: Annotated[
        int, msgspec.Meta(ge=1, le=100_000_000, description="entities of one kind that a feature set keeps rows of")
    ] = 1_000_000
    stale_s_max: Annotated[
        float, msgspec.Meta(ge=0.1, description="rows as of longer ago are said to be stale, seconds")
    ] = 60.0
    log_share: Annotated[
        float,
        msgspec.Meta(ge=0.0, le=1.0, description="share of the reads that is logged, for `features verify`"),
    ] = 0.01


class Settings(ServeSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`millstream.toml`: every setting of an installation."""

    poll_s: Annotated[
        float, msgspec.Meta(ge=0.005, le=1.0, description="how often a role looks at the log for news, seconds")
    ] = 0.05
    log: LogLimits = LogLimits()
    outcomes: CollectLimits = CollectLimits()
    recommend: RecommendLimits = RecommendLimits()
    features: Annotated[Definition | None, msgspec.Meta(description="what a feature row of a ranker holds")] = None
    feature_store: FeatureStore = FeatureStore()
    facts: FactLimits = FactLimits()
    catalogue: CatalogueSettings = CatalogueSettings()
    histories: LiveSettings = LiveSettings()
    recall: BuildSettings = BuildSettings()
    speech: SpeechSettings = SpeechSettings()
    join: JoinSettings = JoinSettings()
    learn: LearnSettings = LearnSettings()
    learner: LearnerSettings = LearnerSettings()
    ftrl: FtrlSettings = FtrlSettings()
    ftrl_table: FtrlTableSettings = FtrlTableSettings()
    fm: FmSettings = FmSettings()
    deepfm: DeepFmSettings = DeepFmSettings()
    deep: DeepSettings = DeepSettings()
    towers: TowerSettings = TowerSettings()
    report: ReportSettings = ReportSettings()
    curate: CurateSettings = CurateSettings()
    console: ConsoleSettings = ConsoleSettings()
    watch: WatchSettings = WatchSettings()
    experiments: Annotated[
        dict[str, ExperimentSettings], msgspec.Meta(description="questions to splits, by name; see docs/experiments.md")
    ] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        """What learning names must be there: said here, no role starts again and again for it."""
        tasks, name = self.join.tasks, self.learn.task
        if name and name not in tasks:
            raise Misconfigured(f"learn.task: no task {name!r} in [join.tasks]; there are: {', '.join(tasks)}")
        if asked := self.learn.validate.slices:
            if self.features is None:
                raise Misconfigured(f"learn.validate.slices: {', '.join(asked)}: there is no [features] table")
            slices(self.learn.validate, msgspec.structs.replace(self.features, crosses=(), set=""))


class Installation:
    """The folder, opened: what every role of it shares. Use it in a `with`, or close it. `model`: what is learnt;
    `also`: the ranker that it stands beside, whose examples it learns too, "" for none; `ranker`: the model whose
    versions deep rankers are."""

    def __init__(self, folder: Path, settings: Settings, clock: Clock) -> None:
        self.folder, self.settings, self.clock = folder, settings, clock
        self.log = open_log(folder / "log", clock, settings.log)
        self.repository = Repository(folder / "models", clock=clock)
        learns, ranks = settings.learn.model, settings.recommend.model
        beside = learns in settings.recommend.beside
        self.model = learns or ranks
        self.also = ranks if beside else ""
        self.ranker = ranks if beside else self.model

    @classmethod
    def open(cls, file: Path) -> Installation:
        """From its `millstream.toml`: the installation is the folder the file lies in."""
        made = cls(file.resolve().parent, config.read(file, Settings), SystemClock())
        made._say_what_is_odd()
        return made

    def _say_what_is_odd(self) -> None:
        """A request may name any model, so one that learns and is not the usual one may be meant so, or misspelt."""
        learns, ranks = self.settings.learn.model, self.settings.recommend.model
        if learns and learns != ranks and not config.supervised() and learns not in self.repository.models():
            logger.warning(
                "learn.model is %r, of which there is no version, and rankings ask %r (recommend.model) where they "
                "name none: nothing is learnt before `millstream train offline` makes one", learns, ranks,
            )  # fmt: skip

    def meter(self, role: str) -> Meter:
        """The counters of one role; `render` sums those of all."""
        return Meter(self.folder / "state" / "meters", role)

    @property
    def definition(self) -> Definition:
        """The feature definition, with its feature set as it is now; Misconfigured when the settings have none, or
        name a set that is not defined."""
        if (found := self.settings.features) is None:
            raise Misconfigured(f"{self.folder}: ranking and learning need a [features] table in millstream.toml")
        if (features := self.ranker_set) is None:
            return found
        return found.taking(features)

    @cached_property
    def ranker_set(self) -> FeatureSet | None:
        """The feature set that a ranker's rows take; None where they take none."""
        if self.settings.features is None or not (name := self.settings.features.set):
            return None
        if name not in (sets := self.registry.sets):
            raise Misconfigured(
                f"features.set: no feature set {name!r} in feature_store.definitions; there are: "
                f"{', '.join(sorted(sets)) or 'none'}"
            )
        return sets[name]

    @cached_property
    def registry(self) -> Registry:
        """The feature sets that its file of definitions names, none without one, as of when they were first asked for:
        the file is run once, and changes of it are taken by the next start. Misconfigured."""
        from millstream.features.registry import Registry

        file = self.settings.feature_store.definitions
        return Registry.load(self.folder / file) if file else Registry({}, {})

    def learner(self, **other: Any) -> OnlineLearner:
        """A new learner of the kind that the settings name, as it begins; `other`: its settings that are not as
        configured. They cannot be, or its start does not fit: Misconfigured."""
        chosen = self.settings.learner
        how: msgspec.Struct = getattr(self.settings, chosen.kind)
        try:
            how = msgspec.convert(msgspec.to_builtins(how) | other, type(how))
        except msgspec.ValidationError as error:
            raise Misconfigured(f"{chosen.kind}: {error}") from None
        start = self.folder / chosen.start if chosen.start else None
        return online.begin(chosen.kind, how, self.definition.width, start, chosen.start_squares)

    @cached_property
    def task(self) -> Task:
        """The task of `[join.tasks]` that the model learns."""
        tasks = self.settings.join.tasks
        name = self.settings.learn.task or next(iter(tasks))
        of = tasks[name]
        shift = math.log(of.negatives) if of.negatives_by == "shift" else 0.0
        return Task(of.negatives, Correction(shift=shift, fake=of.delayed == "fnc"), name, of.window_s)

    @property
    def rows(self) -> Path:
        """Where the rows of feature sets lie."""
        return self.folder / "state" / "features"

    @property
    def live(self) -> Path:
        """Where servers that make lists keep what they know of people and items."""
        return self.folder / "state" / "live"

    @property
    def run(self) -> Path:
        """Where processes that run leave what others find them by."""
        return self.folder / "state" / "run"

    @property
    def indexes(self) -> Path:
        """Where recall's indexes lie."""
        return self.folder / "state" / "recall"

    def entities(self) -> Entities:
        """Known users and items as topics `users` and `items` have them now."""
        known = Known(Entities(self.definition), self.log, Meter())
        known.poll()
        return known.entities

    def described_items(self, meter: Meter) -> Known | None:
        """Items by their features, followed by who makes vectors of them; None where nobody does: without lists, or
        [features], or a model of towers."""
        settings = self.settings
        if not (settings.recommend.places and settings.features and settings.recall.towers):
            return None
        return Known(Entities(self.definition), self.log, meter, ("item",))

    def join(self, observe: Callable[[Event], None] | None = None) -> Operation:
        """The join of `served` and `outcomes`; one process at a time may hold it. `observe` is told its outputs."""
        path = self.folder / "state" / "join.snapshot"
        path.parent.mkdir(parents=True, exist_ok=True)
        join = Join(self.settings.join)
        return Operation(join, self.log, Join.inputs, "examples", path, self.clock, observe=observe)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the installation as its one supervisor; Conflict while another runs."""
        (self.folder / "state").mkdir(parents=True, exist_ok=True)
        other = Conflict(f"`millstream up` is running for {self.folder} already; stop that one first")
        with locked(self.folder / "state" / "up.lock", other):
            yield

    def close(self) -> None:
        """Close the log's writers; again is harmless."""
        self.log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Known:
    """Users and items, followed from their topics; of an id the attributes that arrived last count, whatever partition
    they are in. Those that cannot be read stay unknown. `kinds`: which of the two."""

    def __init__(self, entities: Entities, log: Log, meter: Meter, kinds: Sequence[Side] = ("user", "item")) -> None:
        self.entities = entities
        self._topics = [(kind, LenientReader(log.reader(f"{kind}s"), meter)) for kind in kinds]
        self._at: dict[tuple[str, int], int] = {}
        self._told: dict[str, dict[str, float]] = {"user": {}, "item": {}}  # arrivals, of TOLD_MAX each

    def poll(self) -> None:
        """Take in what is new."""
        for kind, topic in self._topics:
            for partition in topic.partitions():
                self._follow(kind, topic, partition)

    def reached(self, cut: Mapping[str, Mapping[int, int]]) -> bool:
        """Whether everything that can be read before these offsets, by topic and partition, has been taken."""
        return all(
            topic.past(partition, self._at.get((kind, partition), 0), offset)
            for kind, topic in self._topics
            for partition, offset in cut.get(f"{kind}s", {}).items()
        )

    def forget(self, mine: Callable[[str], bool]) -> int:
        """Forget users by their names; how many were known."""
        told = self._told["user"]
        for user in [user for user in told if mine(user)]:
            del told[user]
        return self.entities.forget("user", mine)

    def _follow(self, kind: Side, topic: LenientReader, partition: int) -> None:
        told, together = self._told[kind], dict[str, tuple[Entity, float]]()
        for record, event in topic.decoded(partition, self._at.get((kind, partition), 0), decode):
            if isinstance(event, Entity):
                if event.id in together or len(together) == _TOGETHER:
                    self._upsert(kind, together)
                    together = {}
                if record.arrival >= told.get(event.id, record.arrival):
                    together[event.id] = event, record.arrival
            self._at[kind, partition] = record.offset + 1
        self._upsert(kind, together)

    def _upsert(self, kind: Side, together: Mapping[str, tuple[Entity, float]]) -> None:
        """What the definition cannot take was appended all the same: it must not keep a role from starting."""
        told = self._told[kind]
        refused = self.entities.upsert_many(kind, ((id, event.attributes) for id, (event, _) in together.items()))
        for (id, (_, arrival)), error in zip(together.items(), refused, strict=True):
            if error is not None:
                logger.warning("%s stays unknown: %s", id, error)
                continue
            told.pop(id, None)  # the one that was told of longest ago goes first
            told[id] = arrival
            if len(told) > TOLD_MAX:
                del told[next(iter(told))]
