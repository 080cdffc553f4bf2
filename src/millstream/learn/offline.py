"""The offline twin of learning: any span of the log again, as often as wanted, judged by the span that follows it.

Rules of the room:
- It learns what serving learnt from: rows of topic `examples`, in order, with the same learners. Nothing is computed a
  second time, so a model that is good here is good there.
- Rows are read from the log once and kept in a file that goes with this process; each pass reads that.
- What is tried out is judged on the last fifth of the span it learns; what is made, on the span after it. Neither has
  seen what it is judged by.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.errors import BadInput
from millstream.learn.calibration import Calibration
from millstream.learn.curate.dataset import Curated
from millstream.learn.judge import Task
from millstream.learn.train import Batch, gather, in_words, known_before, known_by, known_first
from millstream.learn.validation import Figures, Labels, Scores
from millstream.models.online import OnlineLearner, Served
from millstream.stream.log import Reader

CHUNK: Final = 50_000
HELD: Final = 0.2  # of a span, for judging
Make = Callable[[Mapping[str, Any]], OnlineLearner]
"""A new learner, with these of its settings other than configured."""
Progress = Callable[[str], None]

_LINEAR: Final[dict[str, Any]] = {"alpha": (0.02, 1.0), "l2": (0.01, 10.0)}
_FTRL: Final[dict[str, Any]] = {**_LINEAR, "l1": [0.0, 0.01, 0.1, 1.0]}
_FM: Final[dict[str, Any]] = {**_LINEAR, "rate": (0.005, 0.5), "factors": [4, 8, 16]}
SPACES: Final[dict[str, dict[str, Any]]] = {
    "ftrl": _FTRL,
    "ftrl_table": _FTRL,
    "fm": _FM,
    "deepfm": {**_FM, "dense_rate": (0.001, 0.1)},
}
"""What a search tries, by kind of learner: a pair is a range, drawn evenly in its logarithm; a list, one of it."""


class Rows:
    """Examples in order, columns of n: `tokens` uint32 [n, width] in a file, labels and weights float32, `scores` as
    served float32, `judged`; those before `inside` are to be learnt, and the live version may have learnt those before
    `had`."""

    def __init__(self, tokens: NDArray[np.uint32], batches: list[Batch], task: Task, inside: int, had: int = 0) -> None:
        self.tokens, self.inside, self.had = tokens, inside, had

        def column(name: str) -> NDArray[Any]:
            return np.concatenate([getattr(batch, name) for batch in batches] or [np.empty(0, np.float32)])

        self.labels, self.weights, self.scores = (column(name) for name in ("labels", "weights", "scores"))
        self.judged = task.judged(self.labels, column("takes_back").astype(np.bool_))
        self.told = ~column("again").astype(np.bool_)

    def __len__(self) -> int:
        return len(self.labels)


class Source(NamedTuple):
    """Whose examples: the model, the hash of its definition, the width of its rows, what its labels are, and another
    model whose examples it learns too."""

    model: str
    definition: str
    width: int
    task: Task
    also: str = ""


def read(reader: Reader, first: int, until: int, source: Source, folder: Path, had: int = 0) -> Rows:
    """The model's examples from offset `first` on, those before offset `until` to be learnt, those before offset `had`
    known to the live version; their tokens in a file below `folder`."""
    batches: list[Batch] = []
    inside, known, at, end = 0, 0, max(first, reader.start(0)), reader.end(0)
    with tempfile.TemporaryFile(dir=folder) as file:
        while at < end:
            bound = min(one for one in (until, had, end) if one > at)
            records = reader.read(0, at, min(CHUNK, bound - at))
            records = [record for record in records if record.offset < bound]  # offsets may leap
            batch, _ = gather(records, source.model, source.definition, source.width, source.task.name, source.also)
            batch.tokens.tofile(file)
            batches.append(batch._replace(tokens=np.empty((0, source.width), np.uint32)))
            inside += len(batch.labels) if at < until else 0
            known += len(batch.labels) if at < had else 0
            at = records[-1].offset + 1 if records else bound
        count = sum(len(batch.labels) for batch in batches)
        shape = (count, source.width)
        tokens = np.memmap(file, np.uint32, "r", shape=shape) if count else np.empty(shape, np.uint32)
    return Rows(tokens, batches, source.task, inside, known)


def learn(learner: OnlineLearner, rows: Rows, passes: int, first: int, end: int, say: Progress) -> None:
    """Fold rows `first` to before `end` into the learner, `passes` times."""
    for number in range(passes):
        for at in range(first, end, CHUNK):
            part = slice(at, min(end, at + CHUNK))
            learner.learn(np.ascontiguousarray(rows.tokens[part]), rows.labels[part], rows.weights[part])
        if passes > 1:
            say(f"pass {number + 1} of {passes}")


def learn_curated(learner: OnlineLearner, curated: Curated | None, passes: int, pseudo: bool = True) -> None:
    """Fold labelled rows into the learner, but the gold ones; without `pseudo` none of a teacher's."""
    if curated is None:
        return
    mine = curated.human | curated.pseudo if pseudo else curated.human
    for _ in range(passes):
        learner.learn(curated.tokens[mine], curated.labels[mine], curated.weights[mine])


def set_apart(rows: Rows, curated: Curated) -> None:
    """Judge by no row of the log that is learnt from a dataset, too, and learn none that is gold."""
    known, gold = curated.tokens[~curated.gold], curated.tokens[curated.gold]
    for at in range(0, len(rows), CHUNK):
        part = slice(at, at + CHUNK)
        rows.told[part] &= ~_among(rows.tokens[part], known)
        rows.weights[part] *= ~_among(rows.tokens[part], gold)


def _among(tokens: NDArray[np.uint32], others: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Which rows [n, width] are the same as one of `others` [m, width]."""
    there = {row.tobytes() for row in others}
    return np.fromiter((row.tobytes() in there for row in np.ascontiguousarray(tokens)), np.bool_, len(tokens))


def judged_by(learner: Served, curated: Curated) -> Figures | None:
    """How good a model is by the gold rows, which it has not learnt; None where there are none."""
    if not curated.gold.any():
        return None
    books, labels = Scores(), curated.labels[curated.gold].astype(np.float64)
    scores = learner.predict({"tokens": curated.tokens[curated.gold]})["probability"].astype(np.float64)
    books.add(scores, Labels(labels, np.ones(len(labels)), np.zeros(len(labels), np.bool_)))
    return books.figures()


def raw(learner: OnlineLearner, rows: Rows, first: int, end: int) -> NDArray[np.float32]:
    """What the learner says of rows, without learning them."""
    parts = [
        learner.predict({"tokens": np.ascontiguousarray(rows.tokens[at : min(end, at + CHUNK)])})["probability"]
        for at in range(first, end, CHUNK)
    ]
    return np.concatenate(parts).astype(np.float32) if parts else np.empty(0, np.float32)


def figures(scores: NDArray[np.floating], rows: Rows, first: int, end: int) -> Figures | None:
    """How good scores of rows are, where there are any; those of 0 were never given."""
    told = rows.told[first:end] & (scores > 0)
    if not told.any():
        return None
    books = Scores()
    books.add(scores[told].astype(np.float64), rows.judged.some(slice(first, end)).some(told))
    return books.figures()


def calibrated(said: NDArray[np.float32], rows: Rows, first: int, end: int) -> Calibration:
    """Fitted to what was said of rows before they were learnt."""
    made, told = Calibration(), rows.told[first:end]
    made.observe(said[told], rows.judged.some(slice(first, end)).some(told))
    return made


def search(
    make: Make, kind: str, rows: Rows, end: int, passes: int, trials: int, seed: int, task: Task, say: Progress
) -> dict[str, Any]:
    """The settings, of `trials` drawn ones and the configured, with the least log loss on the last fifth of the rows
    before `end` after learning the others. BadInput where these are too few to tell."""
    held = int(end * (1 - HELD))
    random, best, least = np.random.default_rng(seed), dict[str, Any](), math.inf
    for number in range(trials + 1):
        tried = _drawn(SPACES[kind], random) if number else {}
        learner = make(tried)
        learn(learner, rows, passes, 0, held, lambda _: None)
        found = figures(task.correction.apply(raw(learner, rows, held, end)), rows, held, end)
        if found is None or found.logloss is None:
            raise BadInput(f"{end} examples are too few to search with; leave the search out")
        if found.logloss < least:
            best, least = tried, found.logloss
        shown = " ".join(f"{name}={value:.4g}" for name, value in tried.items()) or "as configured"
        say(f"trial {number} of {trials}: log loss {found.logloss:.4f}, least {least:.4f}; {shown}")
    return best


def _drawn(space: Mapping[str, Any], random: np.random.Generator) -> dict[str, Any]:
    drawn: dict[str, Any] = {}
    for name, choices in space.items():
        if isinstance(choices, list):
            drawn[name] = choices[int(random.integers(len(choices)))]
        else:
            low, high = map(math.log, choices)
            drawn[name] = float(f"{math.exp(random.uniform(low, high)):.4g}")
    return drawn


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be trained: examples whose labels were known after `since` and by `until` (unix seconds; None: all),
    `passes` times; `trials` of other settings first; `settings` other than configured."""

    since: float | None = None
    until: float | None = None
    passes: int = 1
    trials: int = 0
    seed: int = 0
    settings: dict[str, Any] = {}

    @property
    def spans(self) -> bool:
        """Whether a part of the log was asked for."""
        return self.since is not None or self.until is not None


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """A learner made of `examples` rows, those before offset `upto`, and how good it was on the rows from `first` on
    before it learnt any of them; `served`: how good the scores were that people got with them. `plain`: a learner of
    the same without a teacher's labels, where there were any."""

    learner: OnlineLearner
    calibration: Calibration
    upto: int
    examples: int
    rows: Rows
    first: int
    figures: Figures | None
    served: Figures | None
    plain: OnlineLearner | None = None


def train(
    reader: Reader, source: Source, plan: Plan, make: Make, kind: str, folder: Path, say: Progress, *,
    had: int = 0, some: bool = False, curated: Curated | None = None,
) -> Trained:  # fmt: skip
    """Carry out a plan. Without an end of its span, what is judged learns four fifths of it, and what is made all.
    `had`: the offset up to which the live version has learnt; `some`: there must be examples. `curated`: labelled rows
    to learn beside those of the log, which judge by none that is among them.

    BadInput: the span ends before it begins, or has no example where it was asked for, or some must be."""
    if plan.since is not None and plan.until is not None and not plan.since < plan.until:
        raise BadInput(f"{source.model}: the span ends at {plan.until:.0f}, not after it begins, at {plan.since:.0f}")
    first = reader.start(0) if plan.since is None else known_by(reader, plan.since)
    upto = reader.end(0) if plan.until is None else known_by(reader, plan.until)
    rows = read(reader, first, upto, source, folder, had)
    if not rows.inside and (some or plan.spans):
        raise BadInput(f"{source.model}: nothing can be learnt: {_nothing(reader, source, plan)}")
    inside = rows.inside
    if curated is not None:
        set_apart(rows, curated)
    say(f"{inside} examples to learn" + (f", {len(rows) - inside} after them to judge by" if plan.until else ""))
    chosen = dict(plan.settings)
    if plan.trials:
        chosen |= search(
            lambda other: make({**plan.settings, **other}),
            kind, rows, inside, plan.passes, plan.trials, plan.seed, source.task, say,
        )  # fmt: skip
    end = inside if plan.until is not None else int(inside * (1 - HELD))
    learner = make(chosen)
    learn(learner, rows, plan.passes, 0, end, say)
    learn_curated(learner, curated, plan.passes)
    said = source.task.correction.apply(raw(learner, rows, end, len(rows)))
    found = figures(said, rows, end, len(rows))
    served = figures(rows.scores[end:], rows, end, len(rows))
    calibration = calibrated(said, rows, end, len(rows))
    if end < inside:
        if plan.passes > 1:
            learner, end = make(chosen), 0
            learn_curated(learner, curated, plan.passes)
        learn(learner, rows, plan.passes, end, inside, say)
    plain = None
    if curated is not None and curated.pseudo.any():
        plain = make(chosen)
        learn(plain, rows, plan.passes, 0, end, say)
        learn_curated(
            plain, curated, plan.passes, pseudo=False
        )  # at the same place, or the order would tell them apart
        learn(plain, rows, plan.passes, end, inside, say)
    return Trained(
        learner=learner, calibration=calibration, upto=upto, examples=inside, rows=rows,
        first=len(rows) - len(said), figures=found, served=served, plain=plain,
    )  # fmt: skip


def _nothing(reader: Reader, source: Source, plan: Plan) -> str:
    """Why a plan has no examples."""
    first = known_first(reader, source.model, source.task.name, source.also)
    last = known_before(reader, reader.end(0), source.model, source.task.name, source.also)
    if not (first and last):
        return f"the log holds no examples of task {source.task.name!r}; `millstream log import` brings some"
    there = f"the log holds examples that were known from {in_words(first)} to {in_words(last)}"
    return f"{there}; give a span that has some" if plan.spans else f"{there}, all made by another [features]"
