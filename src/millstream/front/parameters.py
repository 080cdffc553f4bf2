"""The `parameters` of the V2 protocol: what a caller may say beside its tensors, and what its answer says.

Rules of the room:
- A parameter that is not known means nothing here: the protocol lets clients send their own.
- One that is known is read strictly: no number as text, no boolean as a number.
"""

from __future__ import annotations

from typing import Any

from millstream import errors
from millstream.front.select import Pick
from millstream.front.tensor import shown
from millstream.types import Output, Turn

TEXT_CHARS_MAX = 256
TOKEN_CHARS_MAX = 1024
COUNT_MAX = 2**63 - 1

SHARED = "shared_memory_region"


def of(holder: dict[str, Any], where: str) -> dict[str, Any]:
    """The `parameters` of a request, an input or an output. Raises BadInput."""
    parameters = holder.get("parameters")
    if isinstance(parameters, dict):
        return parameters
    if "parameters" not in holder:
        return {}
    raise errors.BadInput(f"{where}: parameters is {shown(parameters)}; send an object")


def flag(parameters: dict[str, Any], name: str, where: str) -> bool:
    """True or false; left out: false. `where`: what an error calls it. Raises BadInput."""
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise errors.BadInput(f"{where}: got {shown(value)}; send true or false")
    return value


def text(holder: dict[str, Any], name: str, where: str, most: int = TEXT_CHARS_MAX) -> str:
    """A string of at most `most` characters; left out: empty. Raises BadInput."""
    value = holder.get(name, "")
    if not isinstance(value, str) or len(value) > most:
        raise errors.BadInput(f"{where}: got {shown(value)}; send a string of at most {most} characters")
    return value


def count(parameters: dict[str, Any], name: str, where: str, least: int = 1) -> int:
    """An integer of at least `least`; left out: 0. Raises BadInput."""
    if name not in parameters:
        return 0
    value = parameters[name]
    if type(value) is not int or not least <= value <= COUNT_MAX:
        raise errors.BadInput(f"{where}: got {shown(value)}; send an integer from {least} to {COUNT_MAX}")
    return value


def turn(parameters: dict[str, Any]) -> Turn | None:
    """The step of a session that the request is, if it says so. Raises BadInput."""
    ident = parameters.get("sequence_id", "")
    if type(ident) is int and 0 <= ident < 2**64:
        ident = str(ident) if ident else ""
    elif not isinstance(ident, str) or len(ident) > TEXT_CHARS_MAX:
        raise errors.BadInput(
            f"parameters.sequence_id: got {shown(ident)}; send an integer from 0 to {2**64 - 1} or a string of at most "
            f"{TEXT_CHARS_MAX} characters"
        )
    start = flag(parameters, "sequence_start", "parameters.sequence_start")
    end = flag(parameters, "sequence_end", "parameters.sequence_end")
    step = count(parameters, "sequence_step", "parameters.sequence_step")
    token = text(parameters, "resume_token", "parameters.resume_token", TOKEN_CHARS_MAX)
    if not (ident or start or end or step or token):
        return None
    if not (ident or start or token):
        raise errors.BadInput(
            "parameters.sequence_id: missing; send the id of the sequence, or sequence_start: true for a new one"
        )
    return Turn(ident, start, end, step, token)


def pick(parameters: dict[str, Any], output: str) -> Pick | None:
    """Which of an output's values are asked for: `top_k` or `classification`. Raises BadInput."""
    best = count(parameters, "top_k", f"output {output!r}: parameters.top_k")
    labels = count(parameters, "classification", f"output {output!r}: parameters.classification")
    if best and labels:
        raise errors.BadInput(f"output {output!r}: has both top_k and classification; ask for one of them")
    return Pick(best or labels, bool(labels)) if best or labels else None


def answered(output: Output) -> dict[str, str | int]:
    """What an answer says beside its tensors: arm and policy; of a session also where it stands."""
    said: dict[str, str | int] = {"arm": output.arm, "policy": output.policy}
    if output.turn is not None:
        said |= standing(output.turn)
    return said


def standing(session: Turn) -> dict[str, str | int]:
    """A session as its caller knows it."""
    return {"sequence_id": session.id, "sequence_step": session.step, "resume_token": session.token}


def not_shared(own: dict[str, Any], where: str) -> None:
    """Refuse a tensor that lies in shared memory. Raises Missing."""
    if SHARED in own:
        raise errors.Missing(f"{where}: {SHARED}: memory is not shared with clients here; send the values")
