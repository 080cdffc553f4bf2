"""Sessions: callers' streams whose state the model carries from step to step. A stateless request is a session of
length one and never comes here.

Rules of the room:
- A session stays on the version that it began with, whatever the policy says later; its version stays loaded for it.
- Its steps are computed one after the other in the order they came, each in a batch with other sessions' steps.
- Between its steps its slot holds still. A step that fails or is given up before it was computed leaves no trace.
- A numbered step that was applied already is answered from memory: a client may retry without knowing what arrived.
- An id means something within its owner; whoever has the token has the session, from anywhere.
- Everything is bounded: sessions a version (slots), steps that wait (STEPS_MAX), time without a step (idle_s).
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from millstream import errors
from millstream.types import Output, Request, Turn

if TYPE_CHECKING:
    from millstream.engine.batch import Answer
    from millstream.engine.lane import Lane
    from millstream.engine.route import Arm

STEPS_MAX = 64
ENDED_MAX, ENDED_S = 1000, 30.0  # sessions that have ended, and how long their last answer may be asked for again
STATELESS_MAX = 100_000  # sessions of a version that carries no state: they are a name and a number
Key = tuple[str, str, str]


class Session:
    """One stream: `steps` applied so far, `last` what the latest was answered, `slot` of its lane (-1: no state)."""

    __slots__ = (
        "arm",
        "busy",
        "closed",
        "gone",
        "id",
        "key",
        "last",
        "slot",
        "steps",
        "token",
        "touched",
        "waiting",
    )

    def __init__(self, key: Key, arm: Arm, slot: int, token: str, now: float, gone: Callable[[Answer], None]) -> None:
        self.gone = gone
        self.key, self.id, self.arm, self.slot, self.token = key, key[2], arm, slot, token
        self.steps = 0
        self.last: Output | None = None
        self.waiting: deque[Answer] = deque()  # steps behind the one that the lane has
        self.busy: Answer | None = None
        self.closed = False
        self.touched = now

    @property
    def lane(self) -> Lane:
        """The version that it stays on."""
        return self.arm.lane

    def leave(self, answer: Answer) -> None:
        """Give up a step that is not being computed: it has left its lane, or has not reached it."""
        if answer in self.waiting:
            self.waiting.remove(answer)
            self.lane.steps_waiting -= 1
        else:
            self.gone(answer)

    @property
    def ending(self) -> bool:
        """Whether a step that is still to come is its last."""
        return any(_turn(answer).end for answer in (*self.waiting, *([self.busy] if self.busy else [])))

    def turn(self) -> Turn:
        """Where it stands, as its caller is told."""
        return Turn(id=self.id, step=self.steps, token=self.token, end=self.ending)


class Sessions:
    """Every open session of an engine. `queue(answer)` lets a step wait in its lane; `freed(lane)` follows the end of
    a session there."""

    def __init__(self, queue: Callable[[Answer], None], freed: Callable[[Lane], None]) -> None:
        self._queue, self._freed = queue, freed
        self._open: dict[Key, Session] = {}
        self._tokens: dict[str, Session] = {}
        self._ended: dict[Key, Session] = {}  # whose last answer may be asked for again
        self.closing = False  # no new ones

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._open.values()))

    def find(self, request: Request) -> Session | None:
        """The open session that this step belongs to; None: it begins one. NotFound, Conflict, BadInput, Busy."""
        turn = request.turn
        assert turn is not None
        if request.rows != 1:
            raise errors.BadInput(
                f"{request.model}: a session steps one row at a time, got {request.rows}; open a session for each"
            )
        key = request.model, turn.owner, turn.id
        found = self._found(key, turn.token)
        ended = None if found is not None or turn.start else self._ended.get(key)
        if ended is None and found is None and turn.token:
            ended = next((one for one in self._ended.values() if one.token == turn.token), None)
        if ended is not None and turn.step == ended.steps and turn.token in ("", ended.token):
            return ended  # the answer to its last step was lost on the way
        if found is not None and found.key[0] != request.model:
            raise errors.NotFound(f"this resume_token belongs to a session of {found.key[0]}, not of {request.model}")
        if found is None and turn.token and key in self._open:
            raise errors.Conflict(
                f"{request.model}: session {turn.id!r} was begun anew since; begin your own again, under another id"
            )
        if found is None and not turn.start:
            raise errors.NotFound(
                f"{request.model}: no session {turn.id[:80]!r} is open here: it has ended, or was idle too long; begin "
                "it with sequence_start"
            )
        if turn.start and turn.step > 1:
            raise errors.BadInput(f"{request.model}: sequence_start is step 1, got sequence_step {turn.step}")
        if turn.start and not turn.token:
            return None  # as Triton has it: the same id begins anew
        if found is not None and found.ending:
            raise errors.Conflict(f"{request.model}: session {found.id!r} has been asked to end; begin a new one")
        if found is not None and turn.start and not turn.step and (found.busy or found.waiting):
            raise errors.Conflict(
                f"{request.model}: a step of session {found.id!r} is not answered yet; begin again when it is"
            )
        if found is not None and len(found.waiting) >= STEPS_MAX:
            raise errors.Overloaded(
                f"{request.model}: {STEPS_MAX} steps of session {found.id!r} wait; send the next later"
            )
        return found

    def _found(self, key: Key, token: str) -> Session | None:
        return self._tokens.get(token) if token else self._open.get(key)

    def begin(self, request: Request, arm: Arm, now: float) -> Session:
        """Open one on the version of `arm`. Busy: this process drains; Overloaded: every slot is taken."""
        turn = request.turn
        assert turn is not None
        if self.closing:
            raise errors.Busy("this process is stopping and begins no sessions; ask another, or again when it is back")
        key = request.model, turn.owner, turn.id or secrets.token_hex(8)
        if key in self._open:
            self.close(self._open[key], "it was begun anew")
        return self.adopt(key, arm, secrets.token_urlsafe(18), now)

    def adopt(self, key: Key, arm: Arm, token: str, now: float) -> Session:
        """Open one under a known key and token, its state fresh. Overloaded: every slot is taken."""
        lane, slot = arm.lane, -1
        if lane.slots is not None:
            if not lane.slots_free:
                raise errors.Overloaded(
                    f"{lane.label}: all {lane.manifest.sessions.slots} sessions are taken; end one, or try again"
                )
            slot = lane.slots_free.pop()
            lane.slots.reset(np.array([slot]))
        elif lane.sessions >= STATELESS_MAX:
            raise errors.Overloaded(f"{lane.label}: {STATELESS_MAX} sessions are open; end one, or try again")
        session = Session(key, arm, slot, token, now, self._gone)
        self._open[key] = self._tokens[token] = session
        lane.sessions += 1
        lane.numbers.sessions.set(lane.sessions)
        return session

    def step(self, session: Session, answer: Answer, now: float) -> None:
        """Let a step wait for those before it."""
        session.touched = now
        turn = _turn(answer)
        if turn.start and session.steps and not turn.step:
            if session.lane.slots is not None:
                session.lane.slots.reset(np.array([session.slot]))
            session.steps, session.last = 0, None
        session.waiting.append(answer)
        session.lane.steps_waiting += 1
        self._next(session)

    def done(self, answer: Answer, output: Output | None, now: float) -> None:
        """The step that the lane had was computed (None: it failed, or was given up): on to the next."""
        session = answer.session
        assert session is not None
        if session.busy is not answer:
            return
        session.busy = None
        if session.closed:
            self._free(session)
            return
        session.touched = now
        turn = _turn(answer)
        if output is not None:
            session.steps += 1
            output.turn = Turn(id=session.id, step=session.steps, token=session.token, end=turn.end)
            session.last = output
        if output is not None and turn.end:
            self.close(session, "it has ended")
        else:
            self._next(session)

    def _next(self, session: Session) -> None:
        """Hand the lane the next step, answering on the way what was answered before."""
        while session.waiting and session.busy is None:
            answer = session.waiting.popleft()
            session.lane.steps_waiting -= 1
            turn = _turn(answer)
            if turn.step == session.steps and turn.step and session.last is not None:
                answer.set_result(only(session.last, answer.request.outputs))
                if turn.end and not session.closed:
                    self.close(session, "it has ended")
            elif session.closed:
                answer.set_exception(errors.NotFound(f"{session.key[0]}: session {session.id!r} has ended; begin anew"))
            elif turn.step and turn.step != session.steps + 1:
                answer.set_exception(
                    errors.Conflict(
                        f"{session.key[0]}: session {session.id!r} has done {session.steps} steps, got sequence_step "
                        f"{turn.step}; send {session.steps + 1}"
                    )
                )
            else:
                session.busy = answer
                self._queue(answer)

    def close(self, session: Session, why: str) -> None:
        """End it: free its slot once nothing computes there, and refuse what still waits."""
        if self._open.get(session.key) is session:
            del self._open[session.key]
        if self._tokens.pop(session.token, None) is None:
            return
        waiting, session.waiting = session.waiting, deque()
        session.lane.steps_waiting -= len(waiting)
        self._ended[session.key] = session
        if len(self._ended) > ENDED_MAX:
            del self._ended[next(iter(self._ended))]
        for answer in waiting:
            if not answer.done():
                answer.set_exception(errors.NotFound(f"{session.key[0]}: session {session.id!r} is closed: {why}"))
        session.closed = True
        busy = session.busy
        if busy is not None and not session.lane.leave(busy):
            return  # its slot is being computed in: `done` frees it
        if busy is not None and not busy.done():
            busy.set_exception(errors.NotFound(f"{session.key[0]}: session {session.id!r} is closed: {why}"))
        self._free(session)

    def _gone(self, answer: Answer) -> None:
        """A step was given up before it was computed."""
        assert answer.session is not None
        self.done(answer, None, answer.session.touched)

    def _free(self, session: Session) -> None:
        lane = session.lane
        if session.slot >= 0:
            lane.slots_free.append(session.slot)
        lane.sessions -= 1
        lane.numbers.sessions.set(lane.sessions)
        self._freed(lane)

    def expire(self, now: float) -> None:
        """End those that had no step for longer than their model allows."""
        for session in self:
            if session.busy is None and now - session.touched > session.lane.manifest.sessions.idle_s:
                self.close(session, f"it was idle for {session.lane.manifest.sessions.idle_s:g} s")
        for key, session in tuple(self._ended.items()):
            if now - session.touched > ENDED_S:
                del self._ended[key]

    def of(self, model: str, turn: Turn) -> Session:
        """The open session that a step belongs to. NotFound."""
        found = self._found((model, turn.owner, turn.id), turn.token)
        if found is None or found.key[0] != model:
            raise errors.NotFound(f"{model}: no session {turn.id[:80]!r} is open here")
        return found

    def where(self, model: str, token: str) -> Turn:
        """Where the session of a token stands. NotFound."""
        found = self._tokens.get(token)
        if found is None or found.key[0] != model:
            raise errors.NotFound(f"{model}: no open session has this token; it has ended, or was idle too long")
        return found.turn()


def only(output: Output, wanted: tuple[str, ...]) -> Output:
    """An answer with the outputs that a request names; all of them where it names none."""
    if not wanted:
        return output
    return replace(output, outputs={name: output.outputs[name] for name in wanted})


def _turn(answer: Answer) -> Turn:
    assert answer.request.turn is not None
    return answer.request.turn
