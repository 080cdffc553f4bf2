"""Two towers: trained from the log (`millstream train offline --model towers`), and at work in the roles.

Rules of the room:
- They learn from what people liked, as indexes of recall do (`[histories] kinds`), with attributes as they are now.
- They are judged by likes that they have not seen: without an end of the span by the last fifth of it, and then made of
  all. A like is in a span by its own time.
- A version is of the model `recall.towers`, with both towers as files. The live one counts: there is no shadow and no
  canary of it, as a list has one index.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from millstream.app import training
from millstream.app.installation import Installation
from millstream.app.training import MADE_BY
from millstream.errors import BadInput, Error, Misconfigured
from millstream.features import Entities
from millstream.learn.offline import HELD, Plan, Progress
from millstream.learn.towers.judge import Retrieved, judged, popularity
from millstream.learn.towers.rows import Known, Likes
from millstream.learn.towers.settings import TowerSettings
from millstream.meter import Meter
from millstream.models.manifest import Manifest
from millstream.recall.cooccur import Positives
from millstream.recall.liked import Liked
from millstream.recall.shelving import Source
from millstream.recall.towers import USERS, Telling, Towers

if TYPE_CHECKING:
    from millstream.learn.towers.fit import Learnt


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """A version of two towers, learnt from `likes` of `people` for `items`; `role`: what the policy gives it, "live" or
    "". Figures are of the likes that it was judged by: its own, the live version's where that had seen none of them,
    and of what is popular."""

    model: str
    version: str
    role: str
    likes: int
    people: int
    items: int
    settings: dict[str, Any]
    figures: dict[str, Retrieved]


def source(at: Installation, entities: Entities) -> Source | None:
    """The model of towers as recall takes it, with tokens by `entities`; None where the settings name none, or rows
    have no column with an item's own id."""
    model = at.settings.recall.towers
    try:
        entities.definition.id_place  # noqa: B018  it says whether there is one
    except Misconfigured:
        return None
    if not model:
        return None
    telling = Telling(
        items=lambda names: entities.tokens("item", names),
        user=lambda user, attributes: entities.described("user", user, attributes),
        history=entities.history,
        hash=entities.definition.hash,
    )
    return Source(
        live=lambda: _live_of(at, model),
        open=lambda version: Towers.open(at.repository, model, version, telling.hash),
        telling=telling,
    )


def train(
    installation: Installation, plan: Plan, role: str = "", say: Progress = lambda line: None, passes: int = 0
) -> Made:
    """Train both towers on all likes of the log by `plan`; `passes`: 0 for as many as [towers] says. The first version
    goes live, another waits until somebody promotes it. BadInput: nothing was liked, or a search or a part is asked
    for; Misconfigured: `recall.towers` names no model; Missing: torch, or what writes ONNX, is not installed."""
    at = installation
    model, settings = _checked(at, plan, role), training.chosen(at.settings.towers, plan, "towers")
    likes = _read(at, plan)
    inside = len(likes) if plan.until is None else int(np.searchsorted(likes.times, plan.until, side="right"))
    end = inside if plan.until is not None else int(inside * (1 - HELD))
    if not end:
        raise BadInput(f"there is nothing to learn: {len(likes)} likes of that span are known ([histories] kinds)")
    known, count = likes.known, passes or settings.passes
    say(f"{inside} likes of {len(known.people)} people for {len(known.items)} items; {len(likes) - end} to judge by")
    from millstream.learn.towers.fit import fit

    learnt = fit(likes, end, settings, count, plan.seed, say)
    figures = _figures(at, model, likes, end, learnt, settings, plan.seed, say)
    if end < inside:
        learnt = fit(likes, inside, settings, count, plan.seed, say)
    manifest, files = _version(at, plan, count, settings, likes, inside, learnt, figures)
    version, given = training.put(at, model, manifest, files, "")
    return Made(
        model=model, version=version, role=given, likes=inside, people=len(known.people), items=len(known.items),
        settings=msgspec.to_builtins(settings), figures=figures,
    )  # fmt: skip


def _checked(at: Installation, plan: Plan, role: str) -> str:
    """The model, before the log is read and an hour is spent on it."""
    if not (model := at.settings.recall.towers):
        raise Misconfigured("recall.towers is empty: name the model whose versions two towers are")
    if plan.trials or role:
        raise BadInput(
            "--search and --as are for rankers; towers have settings by --set or [towers], and count once live"
        )
    at.definition.id_place  # noqa: B018  a history names items
    training.need_torch("two towers")
    return model


def _read(at: Installation, plan: Plan) -> Likes:
    """All likes of the log after `since`."""
    recall = at.settings.recall
    liked = Liked(at.log, Meter(), at.settings.histories.kinds, recall.positives_max, recall.requests_max)
    while liked.step():
        pass
    people, (positives, items, _) = liked.people(), liked.gathered()
    if plan.since is not None:
        after = positives.times > plan.since
        positives = Positives(positives.users[after], positives.items[after], positives.times[after])
    entities = at.entities()
    tokens = entities.tokens("item", items)
    marks = entities.history(items, len(items))[0]
    return Likes(positives, Known(entities.tokens("user", people), tokens, marks))


def _figures(
    at: Installation, model: str, likes: Likes, end: int, learnt: Learnt, settings: TowerSettings, seed: int,
    say: Progress,
) -> dict[str, Retrieved]:  # fmt: skip
    known = likes.known

    def by(users: Callable[..., Any], items: Any, history: int) -> Retrieved | None:
        return judged(
            likes, end, lambda people: users(known.people[people], likes.pasts(people, end, history)) @ items.T, seed
        )

    found = {"candidate": by(learnt.users, learnt.items(known.items), settings.history)}
    if (towers := _live(at, model, likes, end, say)) is not None:
        found["live"] = by(towers.users, towers.items(known.items), towers.history)
    found["popular"] = judged(likes, end, popularity(likes, end), seed)
    return {name: one for name, one in found.items() if one is not None}


def _live(at: Installation, model: str, likes: Likes, end: int, say: Progress) -> Towers | None:
    """The live version, to be asked the same; None where it cannot be, or has seen any of it."""
    if not (version := _live_of(at, model)) or end == len(likes):
        return None
    try:
        towers = Towers.open(at.repository, model, version, at.definition.hash)
        newest = float(str(at.repository.manifest(model, version).lineage.get("newest", np.inf)))
    except Error:
        return None
    if newest >= likes.times[end]:
        say(f"version {version} is live and had learnt some of the likes to judge by: it is not judged")
        return None
    return towers


def _live_of(at: Installation, model: str) -> str:
    """The live version; "" where there is none, or nobody can tell."""
    try:
        return at.repository.policy(model).live if model in at.repository.models() else ""
    except Error:
        return ""


def _version(
    at: Installation, plan: Plan, passes: int, settings: TowerSettings, likes: Likes, inside: int, learnt: Learnt,
    figures: dict[str, Retrieved],
) -> tuple[Manifest, dict[str, bytes]]:  # fmt: skip
    from millstream.learn.towers.export import to_onnx

    files, apart = to_onnx(learnt, likes)
    manifest = Manifest(
        format="onnx",
        file=USERS,
        features=at.definition.hash,
        lineage={
            "made_by": MADE_BY,
            "network": "towers",
            "settings": msgspec.to_builtins(settings),
            "tokens": learnt.vocabulary.size - 1,
            "likes": inside,
            "newest": float(likes.times[inside - 1]),
            "passes": passes,
            "seed": plan.seed,
            "absolute_difference": apart,
            "figures": {name: msgspec.to_builtins(one) for name, one in figures.items()},
        },
    )
    return manifest, files
