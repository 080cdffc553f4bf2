"""What is served, as borders and operators see it: descriptions, settings, statistics, the index, loading by hand."""

from __future__ import annotations

from millstream import errors
from millstream.engine.lane import Lane
from millstream.engine.route import Route
from millstream.engine.session import Sessions
from millstream.engine.watch import ModelView, Served, Watch
from millstream.models.policy import Policy
from millstream.models.speech.tensors import hears
from millstream.types import Config, Description, Listed, Statistics, TensorSpec, Turn


class Catalogue:
    """The questions that an engine answers; who computes is none of its business."""

    _closing: bool
    _served: dict[str, Served]
    _sessions: Sessions
    _watch: Watch

    def models(self) -> tuple[str, ...]:
        """Models that answer."""
        return tuple(sorted(name for name, served in self._served.items() if served.route or served.asleep))

    def ready(self, none_needed: bool = False) -> bool:
        """Whether every model of the repository that was not unloaded answers, and at least one does, where one is
        needed."""
        wanted = [served for served in self._served.values() if not served.unloaded]
        answer = all(
            (served.route and not served.stuck(served.route.live.lane.version)) or served.asleep for served in wanted
        )
        return (bool(wanted) or none_needed) and answer and not self._sessions.closing

    def describe(self, model: str, version: str = "") -> Description:
        """Inputs and outputs of a model's live version, or of `version`; NotFound says what there is."""
        served = self._served.get(model)
        if served is not None and version in served.asleep:
            return served.asleep[version]
        route = self._route(model)
        known = route.described.get(version)
        if known is None:
            arm = route.explicit(version) if version else route.live
            known = route.described[version] = arm.lane.describe(tuple(sorted(self._served[model].lanes, key=int)))
        return known

    def widest(self, model: str, name: str) -> int:
        """How many columns input `name` has in the loaded version that takes the most of it, 0 where none takes it;
        NotFound."""
        served = self._served.get(model)
        if served is not None and served.asleep:
            return max(_columns(described.inputs, name) for described in served.asleep.values())
        route = self._route(model)
        if (known := route.widest.get(name)) is None:
            known = route.widest[name] = max(_columns(lane.inputs, name) for lane in route.lanes.values())
        return known

    def hears(self, model: str) -> bool:
        """Whether any loaded version of a model is a recogniser of speech; not, where there is no such model."""
        served = self._served.get(model)
        if served is None:
            return False
        tensors = [(one.inputs, one.outputs) for one in served.asleep.values()]
        if served.route is not None:
            tensors += [(lane.inputs, lane.loaded.outputs) for lane in served.route.lanes.values()]
        return any(hears([spec.name for spec in takes], [spec.name for spec in gives]) for takes, gives in tensors)

    def describe_step(self, model: str, turn: Turn) -> Description:
        """Inputs and outputs of the version that an open session is on; NotFound."""
        lane = self._sessions.of(model, turn).lane
        return lane.describe((lane.version,))

    def config(self, model: str, version: str = "") -> Config:
        """How a model's live version, or `version`, is batched; NotFound says what there is."""
        description = self.describe(model, version)
        return self.lane(model, version).config(description)

    def statistics(self, model: str = "", version: str = "") -> list[Statistics]:
        """What every loaded version has done since this process loaded it; NotFound."""
        if version:
            lanes = [self.lane(model, version)]
        elif model:
            self._route(model)
            lanes = list(self._served[model].lanes.values())
        else:
            lanes = [lane for _, served in sorted(self._served.items()) for lane in served.lanes.values()]
        return [lane.tally.statistics(lane.model, lane.version) for lane in lanes]

    def memory(self, model: str) -> dict[str, int]:
        """Bytes that each loaded version of a model took, as `engine/budget.py` measures them."""
        served = self._served.get(model)
        return {version: int(lane.memory_bytes) for version, lane in served.lanes.items()} if served else {}

    def index(self) -> list[Listed]:
        """Every version of the repository and whether it answers."""
        return self._watch.index()

    async def load(self, model: str) -> None:
        """Serve a model as the repository has it now, also one that was unloaded. NotFound, Misconfigured."""
        await self._watch.load(model)

    async def unload(self, model: str) -> None:
        """Serve a model no more on this process; what waits and its open sessions are still answered. NotFound."""
        self._watch.unload(model)

    def session(self, model: str, token: str) -> Turn:
        """Where the session of a token stands; NotFound."""
        return self._sessions.where(model, token)

    def lane(self, model: str, version: str = "") -> Lane:
        """The lane of a model's live version, or of `version`; NotFound."""
        route = self._route(model)
        return route.explicit(version).lane if version else route.live.lane

    def _route(self, model: str) -> Route:
        served = self._served.get(model)
        if served is None or served.route is None:
            raise self.not_here(model)
        return served.route

    def views(self) -> list[ModelView]:
        """The state of every model, problems included."""
        return [served.view() for _, served in sorted(self._served.items())]

    def policies(self) -> dict[str, Policy]:
        """The policy that each model that answers follows now."""
        return {name: served.route.policy for name, served in self._served.items() if served.route}

    def not_here(self, model: str) -> errors.Error:
        """Why a model does not answer now."""
        if self._closing:
            return errors.Busy("this process is stopping; ask another, or again when it is back")
        served = self._served.get(model)
        if served is None:
            return errors.NotFound(f"no model {model[:80]!r} here; there are: {', '.join(self.models()) or 'none yet'}")
        if served.unloaded:
            return errors.NotFound(f"{model} was unloaded here; load it again")
        if served.asleep:
            return errors.Busy(f"{model} gave way to others; its next inference request loads it again")
        if served.loading:
            return errors.Busy(f"{model} is still loading; try again")
        why = "; ".join(served.problems().values())
        return errors.Misconfigured(f"{model} has no version that answers: {why}")


def _columns(specs: tuple[TensorSpec, ...], name: str) -> int:
    return max((0, *(spec.shape[1] for spec in specs if spec.name == name and len(spec.shape) == 2)))
