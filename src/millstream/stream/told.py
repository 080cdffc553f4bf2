"""What the join says of an item: an example, or outcomes that are set aside."""

from __future__ import annotations

from millstream.stream.event import Event
from millstream.stream.remembered import Item, Remembered, Scored, score_of
from millstream.stream.tasks import Rule
from millstream.types import Example, Served, SetAside

Emitted = list[tuple[str, Event]]


def estimate(served: Served | Scored, place: int) -> float | None:
    """The logged score of a candidate as a probability; None where there is none."""
    score: float = score_of(served.scores, 4 * place)[0] if served.scores else float("nan")
    return None if score != score else min(1.0, max(0.0, score))


def example(
    rule: Rule, form: str, one: Remembered, served: Served | Scored, item: str, place: int, label: float,
    weight: float, event_time: float, arrival: float, wait_s: float, keys: list[str],
) -> tuple[str, Example]:  # fmt: skip
    """The example of a candidate that stands at `place`, with its logged row and score, under its request's key."""
    request, width = one.request, len(served.tokens) // one.count
    return request, Example(
        request=request,
        item=item,
        model=served.model,
        version=served.version,
        tokens=served.tokens[place * width : (place + 1) * width],
        score=score_of(served.scores, 4 * place)[0] if served.scores else 0.0,
        label=label,
        weight=weight,
        event_time=event_time,
        arrival=arrival,
        wait_s=wait_s,
        outcomes=keys,
        definition=served.definition,
        task=rule.name,
        form=form,
    )


def aside(key: str, cause: str, request: str, item: str, event_time: float, count: int = 1) -> SetAside:
    """An outcome that is not learnt; or `count` of them, then `key` is ""."""
    return SetAside(outcome=key, cause=cause, request=request, item=item, event_time=event_time, count=count)


def set_aside(one: Remembered, name: str, item: Item, keys: list[str], cause: str, out: Emitted) -> None:
    """Outcomes of an item that are not learnt."""
    for key in keys:
        out.append((one.request, aside(key, cause, one.request, name, item.event_time)))
