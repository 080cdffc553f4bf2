"""`millstream train offline --model deepfm|din`: a deep ranker from the log, as a version that the policy can take.

Rules of the room:
- It is judged by rows that it has not seen: without an end of its span by the last fifth of it, and then made of all.
- It is registered as every version that is trained: with the hash of its rows' definition, and where it comes from.
- Figures are of tasks; how good an amount is foretold is said, as its mean beside the true one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.app import training
from millstream.app.installation import Installation
from millstream.app.training import MADE_BY, Made
from millstream.errors import BadInput, Error
from millstream.learn.calibration import Calibration
from millstream.learn.deep import DeepSettings, Head, Kind, Shown, Source, Span, heads, read
from millstream.learn.offline import HELD, Plan, Progress
from millstream.learn.train import known_by
from millstream.learn.validation import Figures, Labels, Scores
from millstream.models import online
from millstream.models.manifest import Batching, Manifest
from millstream.models.runtimes.onnx import Onnx
from millstream.types import Array

if TYPE_CHECKING:
    from millstream.learn.deep.fit import Learnt

FILE: Final = "model.onnx"
Floats = NDArray[np.float32]


def train(
    installation: Installation, kind: Kind, plan: Plan, role: str = "", say: Progress = lambda line: None
) -> Made:
    """Join all that the log holds and train a deep ranker by `plan`; what it is to `role`, see `training.train`.
    BadInput: nothing was shown, or a search is asked for; Missing: torch, or what writes ONNX, is not installed."""
    if training.join(installation):
        say("another process joins what comes (`millstream up`?): training from the examples that are there")
    return train_joined(installation, kind, plan, role, say)


def train_joined(
    installation: Installation, kind: Kind, plan: Plan, role: str = "", say: Progress = lambda line: None
) -> Made:
    """As `train`, from the examples that are there."""
    at = installation
    training.need_torch("a deep ranker")
    settings = _settings(at, plan)
    outputs, live = _heads(at, settings), _Live.of(at)
    own = settings.history if kind == "din" else 0
    whole, upto = _read(at, plan, outputs, max(own, live.history if live else 0))
    shown = whole.cut(own)
    later = f", {len(shown) - shown.inside} after them to judge by" if plan.until is not None else ""
    say(f"{shown.inside} shown items to learn{later}; outputs: {', '.join(head.name for head in outputs)}")
    end = shown.inside if plan.until is not None else int(shown.inside * (1 - HELD))
    learnt = _fit(at, shown, end, outputs, settings, plan, say)
    said = learnt.said(shown, end, len(shown))
    figures = _figures(shown, end, said, outputs, say)
    if live is not None and (found := live.judged(whole, end, say)) is not None:
        figures["live"] = found
    slopes, intercepts = _honest(at, shown, end, said, outputs)
    if end < shown.inside:
        learnt = _fit(at, shown, shown.inside, outputs, settings, plan, say)
    learnt.slopes, learnt.intercepts = slopes, intercepts
    manifest, files = _version(at, kind, plan, settings, shown, upto, learnt, figures)
    version, role = training.put(at, at.ranker, manifest, files, role)
    return Made(
        model=at.ranker, version=version, role=role, examples=shown.inside, settings=msgspec.to_builtins(settings),
        figures=figures,
    )  # fmt: skip


def _settings(at: Installation, plan: Plan) -> DeepSettings:
    if plan.trials:
        raise BadInput(
            "--search tries settings of the learners that learn on; a deep ranker has them by --set or [deep]"
        )
    return training.chosen(at.settings.deep, plan, "deep")


def _heads(at: Installation, settings: DeepSettings) -> tuple[Head, ...]:
    kept = {name: task.negatives for name, task in at.settings.join.tasks.items()}
    return heads(at.task.name, kept, settings.amounts)


def _read(at: Installation, plan: Plan, outputs: tuple[Head, ...], history: int) -> tuple[Shown, int]:
    """What was shown, and the offset in `examples` before which it was learnt."""
    definition, reader = at.definition, at.log.reader("examples")
    if history:
        definition.id_place  # noqa: B018  it says what is missing, before the log is read
    first = reader.start(0) if plan.since is None else known_by(reader, plan.since)
    upto = reader.end(0) if plan.until is None else known_by(reader, plan.until)
    state = at.folder / "state"
    state.mkdir(parents=True, exist_ok=True)
    source = Source(at.ranker, definition, outputs, history)
    span = Span(first, upto) if plan.until is None else Span(first, upto, plan.until)
    shown = read(at.log, source, span, state)
    if not shown.inside:
        raise BadInput(
            f"there is nothing to learn: no item of {at.ranker} was shown in that span, or rows of another [features]"
        )
    return shown, upto


def _fit(
    at: Installation, shown: Shown, end: int, outputs: tuple[Head, ...], settings: DeepSettings, plan: Plan,
    say: Progress,
) -> Learnt:  # fmt: skip
    from millstream.learn.deep.fit import fit

    item = at.definition.id_place if shown.history else 0
    return fit(shown, end, outputs, settings, item, plan.passes, plan.seed, say)


def _figures(shown: Shown, first: int, said: Floats, outputs: tuple[Head, ...], say: Progress) -> dict[str, Figures]:
    """Of what was said of rows from `first` on: the candidate's, by task; and of the served scores."""
    found = {}
    for place, head in enumerate(outputs):
        if not head.amount:
            found["candidate" if not place else f"candidate {head.name}"] = _judged(said[:, place], shown, first, place)
        elif len(said):
            true = float(np.average(shown.labels[first:, place], weights=shown.weights[first:, place]))
            mean = float(np.average(said[:, place], weights=shown.weights[first:, place]))
            say(f"{head.name}: {mean:.4g} foretold, {true:.4g} came, on the mean of a shown item")
    found["served"] = _judged(shown.scores[first:], shown, first, 0)
    return {name: one for name, one in found.items() if one is not None}


def _labels(shown: Shown, first: int, place: int, known: NDArray[np.bool_]) -> Labels:
    labels = shown.labels[first:, place][known].astype(np.float64)
    return Labels(labels, shown.weights[first:, place][known].astype(np.float64), np.zeros(len(labels), np.bool_))


def _judged(scores: Floats, shown: Shown, first: int, place: int) -> Figures | None:
    """How good scores are where the task's label is known; those of 0 were never given."""
    known = ~np.isnan(shown.labels[first:, place]) & (scores > 0)
    if not known.any():
        return None
    books = Scores()
    books.add(scores[known].astype(np.float64), _labels(shown, first, place, known))
    return books.figures()


def _honest(
    at: Installation, shown: Shown, first: int, said: Floats, outputs: tuple[Head, ...]
) -> tuple[Floats, Floats]:
    """Slopes and intercepts [heads] fitted to what was said of rows from `first` on."""
    slopes, intercepts = np.ones(len(outputs), np.float32), np.zeros(len(outputs), np.float32)
    for place, head in enumerate(outputs):
        if at.settings.learn.calibrate and not head.amount:
            known = ~np.isnan(shown.labels[first:, place])
            made = Calibration()
            made.observe(said[:, place][known], _labels(shown, first, place, known))
            slopes[place], intercepts[place] = made.fit()
    return slopes, intercepts


class _Live:
    """The live version's file, to be asked what it says of the same rows. `history`: items that it takes of one."""

    def __init__(self, version: str, upto: int, model: Any, history: int) -> None:
        self.version, self.upto, self.model, self.history = version, upto, model, history

    @classmethod
    def of(cls, at: Installation) -> _Live | None:
        """None where there is none that these rows can be told to."""
        live = at.repository.policy(at.ranker).live if at.ranker in at.repository.models() else ""
        if not live:
            return None
        try:
            manifest = at.repository.manifest(at.ranker, live)
            if manifest.features != at.definition.hash:
                return None
            file = at.repository.folder(at.ranker, live) / manifest.file
            model = Onnx(file) if manifest.format == "onnx" else online.load_served(file)
        except Error:
            return None
        history = next((spec.shape[1] for spec in model.inputs if spec.name == "history"), 0)
        return cls(live, int(str(manifest.lineage.get("upto", 0))), model, history)

    def judged(self, shown: Shown, first: int, say: Progress) -> Figures | None:
        """How good it is on the rows from `first` on; None where it cannot be asked, or has learnt any of them."""
        if first >= len(shown):
            return None
        if (known := int((shown.offsets[first:] < self.upto).sum())) > 0:
            say(
                f"version {self.version} is live and had learnt {known} of the rows to judge by: `served` is how good "
                "it was"
            )
            return None
        rows = np.arange(first, len(shown))
        given: dict[str, Array] = {"tokens": shown.tokens(rows)}
        if self.history:
            given["history"] = shown.cut(self.history).histories(rows)
        try:
            scores = self.model.predict(given)["probability"]
        except (Error, KeyError):
            return None
        return _judged(np.asarray(scores, np.float32).reshape(-1), shown, first, 0)


def _version(
    at: Installation, kind: Kind, plan: Plan, settings: DeepSettings, shown: Shown, upto: int, learnt: Learnt,
    figures: dict[str, Figures],
) -> tuple[Manifest, dict[str, bytes]]:  # fmt: skip
    from millstream.learn.deep.export import to_onnx

    model, apart = to_onnx(learnt, shown)
    manifest = Manifest(
        format="onnx",
        file=FILE,
        features=at.definition.hash,
        batching=Batching(once=("history",) if learnt.network.shape.history else ()),
        lineage={
            "made_by": MADE_BY,
            "network": kind,
            "settings": msgspec.to_builtins(settings),
            "tokens": learnt.vocabulary.size - 1,
            "examples": shown.inside,
            "upto": upto,
            "passes": plan.passes,
            "seed": plan.seed,
            "absolute_difference": apart,
            "figures": {name: training.known_of(one) for name, one in figures.items()},
        },
    )
    return manifest, {FILE: model}
