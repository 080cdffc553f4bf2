"""The bodies of /v1: ask for a ranking, tell what people did with it.

Rules of the room:
- A field that is not known is refused: a misspelt `event_time` would otherwise be an hour of wrong labels.
- Every list has a bound; every number is finite (JSON has no other).
"""

from __future__ import annotations

import msgspec

from millstream import errors
from millstream.types import Ask, Outcome, Rank, Ranked, TenantOutcome

TEXT_CHARS_MAX = 1024
RANK_EXAMPLE = '{"id": "r1", "user": "u1", "candidates": ["a", "b"]}'
OUTCOME_EXAMPLE = '{"request": "r1", "item": "a", "kind": "like", "value": 1, "event_time": 1700000000.0}'


class _Asked(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`Rank` or `Ask` as the wire has it: `id` may be left out."""

    id: str = ""
    user: str = ""
    candidates: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    model: str = ""
    event_time: float = 0.0
    visitor: str = ""
    placement: str = ""
    n: int = 0
    exclude: tuple[str, ...] = ()
    context: dict[str, str | float | bool] = {}
    cursor: str = ""
    explain: bool = False
    tenant: str = ""

    def is_rank(self) -> bool:
        """Whether it is about candidates, and nothing is said that only a list has."""
        listed = (self.visitor, self.placement, self.n, self.exclude, self.context, self.cursor, self.explain)
        return self.candidates is not msgspec.UNSET and not any(listed)


class _Outcome(TenantOutcome, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="outcome"):
    """An outcome as the wire has it."""


# RecursionError: a body of a hundred thousand opening brackets.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_asked = msgspec.json.Decoder(_Asked)
_outcome = msgspec.json.Decoder(_Outcome)
_outcomes = msgspec.json.Decoder(list[_Outcome])
_either = msgspec.json.Decoder(list[msgspec.Raw] | dict[str, msgspec.Raw])
_encode = msgspec.json.Encoder().encode


def read_rank(body: bytes | bytearray, fallback_id: str) -> Rank | Ask:
    """The ranking or the list asked for. Without an `id` it gets `fallback_id`. Raises BadInput."""
    try:
        asked = _asked.decode(body)
    except UNREADABLE as error:
        raise errors.BadInput(f"recommend: {said(body, error)}; send a body like {RANK_EXAMPLE}") from None
    if not asked.is_rank():
        return _ask(asked, fallback_id)
    if not asked.candidates:
        raise errors.BadInput(f"recommend: candidates is empty; send at least one item, like {RANK_EXAMPLE}")
    if not asked.user:
        raise errors.BadInput(f"recommend: user is empty; send the id of the user, like {RANK_EXAMPLE}")
    for name, text in (("id", asked.id), ("user", asked.user), ("candidates", max(asked.candidates, key=len))):
        bounded(f"recommend: {name}", text)
    return Rank(
        id=asked.id or fallback_id,
        user=asked.user,
        candidates=asked.candidates,
        model=asked.model,
        event_time=asked.event_time,
        tenant=asked.tenant,
    )


def _ask(asked: _Asked, fallback_id: str) -> Ask:
    if asked.model:
        raise errors.BadInput("recommend: model is for putting candidates in order; a list's placement has its own")
    for name, text in (("id", asked.id), ("user", asked.user), ("visitor", asked.visitor), ("cursor", asked.cursor)):
        bounded(f"recommend: {name}", text)
    return Ask(
        id=asked.id or fallback_id, user=asked.user, visitor=asked.visitor, placement=asked.placement, n=asked.n,
        candidates=asked.candidates or (), exclude=asked.exclude, context=asked.context, cursor=asked.cursor,
        explain=asked.explain, event_time=asked.event_time, tenant=asked.tenant,
    )  # fmt: skip


def read_outcomes(body: bytes | bytearray, outcomes_max: int) -> list[Outcome]:
    """One outcome object, an array of them, or {"outcomes": [...]}. Raises BadInput, TooLarge."""
    try:
        found = _items(body)
    except UNREADABLE as error:
        raise errors.BadInput(
            f'outcomes: {said(body, error)}; send one object, an array, or {{"outcomes": [...]}} of {OUTCOME_EXAMPLE}'
        ) from None
    if not found:
        raise errors.BadInput(f"outcomes: the list is empty; send at least one, like {OUTCOME_EXAMPLE}")
    if len(found) > outcomes_max:
        raise errors.TooLarge(f"outcomes: {len(found)} in one request, at most {outcomes_max}: split")
    for at, one in enumerate(found):
        if not one.kind:
            raise errors.BadInput(f"outcomes[{at}].kind is empty; send what happened: impression, like, watermark ...")
        for name in ("request", "item", "kind", "id"):
            bounded(f"outcomes[{at}].{name}", getattr(one, name))
    return [_plain(one) for one in found]


def write_ranked(ranked: Ranked) -> bytes:
    """{"id", "model", "version", "items": [{"item", "score"}]}, best first."""
    return _encode(ranked)


def _plain(o: _Outcome) -> Outcome:
    plain = Outcome(
        request=o.request, item=o.item, kind=o.kind, value=o.value, event_time=o.event_time, id=o.id, text=o.text
    )
    return TenantOutcome(**msgspec.structs.asdict(plain), tenant=o.tenant) if o.tenant else plain


def _items(body: bytes | bytearray) -> list[_Outcome]:
    either = _either.decode(body)
    if isinstance(either, list):
        return _outcomes.decode(body)
    if "outcomes" not in either:
        return [_outcome.decode(body)]
    if len(either) > 1:
        raise msgspec.ValidationError(f"unknown fields beside `outcomes`: {sorted(set(either) - {'outcomes'})[:5]}")
    return _outcomes.decode(either["outcomes"])


def bounded(name: str, text: str) -> None:
    if len(text) > TEXT_CHARS_MAX:
        raise errors.BadInput(f"{name}: {len(text)} characters, at most {TEXT_CHARS_MAX}")


def said(body: bytes | bytearray, error: Exception) -> str:
    return str(error) if body else "the body is empty"
