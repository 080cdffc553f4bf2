"""What the story of a request holds. Times are unix seconds; names are as the tenant calls them, where there is one."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

End = Literal["example", "set aside", "waiting", "counted"]
Known = Literal["exact", "about", "hidden", "empty"]
SHADOWS_MAX: Final = 100


class Place(msgspec.Struct, frozen=True):
    """Where something stands in the log, and when it arrived there."""

    topic: str
    partition: int
    offset: int
    arrival: float


class Asked(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who asked for what. `rules`: the arm of rules of order that the person is in, `rules_hash` what these were;
    `rules_same`: the settings have them still, None where nobody can say; `history`: what the user liked, newest last,
    as far as it was looked at; `times`: how often it is logged."""

    user: str = ""
    placement: str = ""
    rules: str = ""
    rules_hash: str = ""
    rules_same: bool | None = None
    context: dict[str, str | float | bool] = {}
    history: list[str] = []
    event_time: float = 0.0
    times: int = 1


class Change(msgspec.Struct, frozen=True):
    """A policy of a model: its number, and who made it, why and when (RFC 3339)."""

    number: int
    who: str
    why: str
    when: str


class Answered(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who answered. `version`: version@delta, "" where recall's own scores stood in; `arm`: of traffic; `policy`: its
    number, `changed` who made it what it was, None where the history has it no more; `made_by`, `parent`: of the
    version's base; `instead`: what answered for a ranker that could not; `missed`: paths of recall, models beside the
    ranker and shards that were too late or failed; `beside`: models beside the ranker and their version@delta;
    `definition`: hash of the feature definition, `definition_same`: the settings have it still; `shadows`: by model and
    version@delta, what shadows said where there are no candidates, the first SHADOWS_MAX numbers."""

    model: str = ""
    version: str = ""
    arm: str = ""
    policy: int = 0
    changed: Change | None = None
    made_by: str = ""
    parent: str = ""
    instead: str = ""
    missed: list[str] = []
    beside: dict[str, str] = {}
    definition: str = ""
    definition_same: bool | None = None
    shadows: dict[str, list[float]] = {}


class Feature(msgspec.Struct, frozen=True):
    """A column of a feature row. `values`: what its tokens stood for; `known`: "exact", "about" (a number of a feature
    set, within an eighth), "hidden" (a token that nothing known makes), "empty"."""

    name: str
    values: list[str]
    known: Known


class Candidate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An item on its way to its place. `position` from 1, 0: not in the list; `sources`: paths that found it, `recall`
    their score; `outputs`: of the ranker, and "model.output" of those beside it; `shadow`: by version, what shadows
    said; `score`: what it was put in order by; `reasons`: of each step that had a say; `propensity`: how likely it was
    to be first, `explored`: chance put it there; `price`: of a click; `features`: of the item and of both together."""

    item: str
    title: str = ""
    position: int = 0
    sources: list[str] = []
    recall: float | None = None
    outputs: dict[str, float] = {}
    shadow: dict[str, float] = {}
    score: float | None = None
    reasons: list[str] = []
    propensity: float | None = None
    explored: bool = False
    price: float | None = None
    features: list[Feature] = []


class Read(msgspec.Struct, frozen=True):
    """A logged read of a feature set about this person at that time: `values` by column, the rows as of `as_of`."""

    features: str
    hash: str
    at: float
    as_of: float
    entities: dict[str, list[str]]
    values: list[dict[str, float | None]]


class Happened(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An outcome. `after_s`: its arrival after the answer's; `end`: where it is now: in `examples` (their offsets), set
    aside (`cause`), still waiting, or among those that were set aside as a number."""

    key: str
    kind: str
    item: str
    value: float
    event_time: float
    arrival: float
    after_s: float
    end: End
    cause: str = ""
    examples: list[int] = []
    text: str = ""


class Learnt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An example. `offset`: its position in topic `examples`; `known`: when its label was; `outcomes`: keys of those it
    is made of; `pushes`: numbers in `Story.pushes` of those that have it; `why_not`: why none has."""

    offset: int
    item: str
    task: str
    label: float
    weight: float
    score: float
    event_time: float
    arrival: float
    known: float
    form: str = ""
    outcomes: list[str] = []
    pushes: list[int] = []
    why_not: str = ""


class Seen(msgspec.Struct, frozen=True):
    """The first answer that was logged with a push: of which request, by which version@delta, when."""

    request: str
    version: str
    at: float


class Pushed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """New weights that learnt from this request. `version`: version@delta that they make; `offset`: of the delta;
    `upto`: the position in `examples` before which all is in it; `examples`: how many it learnt, `slots` how many
    weights it touched; `staleness_s`: from when the last label of this request was known to `seen`, or to the push
    where no answer with it was found (`seen` None)."""

    model: str
    version: str
    at: float
    offset: int
    upto: int
    examples: int
    slots: int
    staleness_s: float
    seen: Seen | None = None


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of one request. `kind`: "list", "ranking", "inference", "history" (imported), or "unknown"
    where the log has what came of it but not the answer; `said`: in a sentence; `user`: features of the person;
    `notes`: what is missing and why, a sentence each."""

    request: str
    tenant: str
    kind: Literal["list", "ranking", "inference", "history", "unknown"]
    said: str
    place: Place | None
    asked: Asked
    answered: Answered
    user: list[Feature]
    candidates: list[Candidate]
    reads: list[Read]
    outcomes: list[Happened]
    examples: list[Learnt]
    pushes: list[Pushed]
    notes: list[str]


def said(story: Story) -> str:
    """All of it in a sentence."""
    by = f"{story.answered.model} {story.answered.version}".strip()
    what = {
        "list": f"a list of {sum(one.position > 0 for one in story.candidates)} of {len(story.candidates)} candidates",
        "ranking": f"{len(story.candidates)} candidates in order",
        "inference": "an inference",
        "history": "imported history",
        "unknown": "no answer in the log",
    }[story.kind]
    parts = [what + (f" by {by}" if by and story.kind not in ("history", "unknown") else "")]
    if story.outcomes:
        ends = [sum(one.end == end for one in story.outcomes) for end in ("example", "set aside", "waiting", "counted")]
        words = zip(ends, ("in examples", "set aside", "waiting", "set aside as a number"), strict=True)
        ended = ", ".join(f"{count} {word}" for count, word in words if count)
        parts.append(f"{_several(len(story.outcomes), 'outcome')} ({ended})")
    elif story.kind not in ("inference", "unknown"):
        parts.append("no outcome yet")
    if story.examples:
        pushed = sum(bool(one.pushes) for one in story.examples)
        pushes = _several(len(story.pushes), "push", "pushes")
        parts.append(f"{_several(len(story.examples), 'example')}, {pushed} of them in {pushes}")
    seen = [one for one in story.pushes if one.seen is not None]
    if seen:
        parts.append(f"back in answers {min(one.staleness_s for one in seen):.2f} s after the label was known")
    return "; ".join(parts) + "."


def _several(count: int, one: str, more: str = "") -> str:
    return f"{count} {one if count == 1 else more or one + 's'}"
