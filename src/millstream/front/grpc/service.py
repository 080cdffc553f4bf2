"""The V2 service behind a gRPC transport: who asks, what is asked, and the life of each call.

Rules of the room:
- A call costs no task: it is answered at once, or when the Door's future is done.
- A stream's requests start as they come, and are answered in their order; past IN_FLIGHT_MAX the client has to wait.
- A request that fails ends a unary call with its status; of a stream it is one answer, and the stream goes on.
- Who asks is asked for every request: a key that was revoked ends its stream with the next one.
- What is not an error of ours says nothing to the client and is logged: of a whole call by the transport, else here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
from google.protobuf.message import DecodeError

from millstream import errors
from millstream.clock import Clock
from millstream.front import answer
from millstream.front.bugs import told
from millstream.front.codec import REMEMBERED_BYTES_MAX, Plan
from millstream.front.door import Door
from millstream.front.explain import HEADER, explain
from millstream.front.grpc import read, wire
from millstream.front.grpc.call import Call, Receiver
from millstream.front.grpc.methods import SERVICE, Method, methods
from millstream.front.parameters import TEXT_CHARS_MAX
from millstream.front.record import PATH_CHARS_MAX, Observer, Record
from millstream.types import Description, Output, Principal, Request, Turn

log = logging.getLogger(__name__)

IN_FLIGHT_MAX = 32
# How many forms of requests, and of their parameters, are kept; past it they are forgotten and learnt again.
FORMS_MAX = 1024
MODELS_MAX = 1024
SAID_BYTES_MAX = 256
ASKED_BYTES_MAX = 1 << 16  # of every method but inference
TYPED_BYTES_MAX = 8 << 20  # of an inference, beside its raw contents: each value becomes an object
EXPLAIN = HEADER.lower().encode()
STOPPED = "the service stopped before an answer was ready: ask again"
INFER = f"/{SERVICE}/ModelInfer".encode()
STREAM = f"/{SERVICE}/ModelStreamInfer".encode()
CONVERSE = b"/millstream.speech.v1.Speech/Converse"
_NOTHING = read.Said()


class Inference:
    """`GRPCInferenceService` and the health check, in front of a Door. A `call.Service`."""

    def __init__(self, door: Door, clock: Clock, observer: Observer | None = None) -> None:
        self.door, self.monotonic, self.observer = door, clock.monotonic, observer
        self._clock = clock
        self._methods = methods(door)
        self._forms: dict[bytes, wire.Form] = {}
        self._said: dict[bytes, read.Said] = {}
        self._models: dict[tuple[str, str], tuple[Plan, wire.Answers]] = {}
        # Ids that are made here: unique between processes.
        self._id_prefix = os.urandom(6).hex()
        self._ids = itertools.count(1)

    def open(self, call: Call) -> Receiver:
        """Begin a call. Raises Missing for a method that is not here, Unauthenticated for a key that is not known."""
        path = call.path
        if self.observer is not None:
            call.record = Record(self.monotonic())
        if path == INFER:
            return _Infer(self, call, self.principal(call))
        if path == STREAM:
            self.principal(call)
            return _Stream(self, call)
        if path == CONVERSE:
            from millstream.front.grpc.speech import Converse  # its messages take memory that others have no use for

            return Converse(self.door, call, self.principal, self._clock)
        method = self._methods.get(path)
        if method is None:
            raise errors.Missing(f"no method {ascii(path[:200])[2:-1]} here; there are the methods of {SERVICE}")
        return _Unary(call, method, None if method.open_to_all else self.principal(call))

    def principal(self, call: Call) -> Principal:
        """Who asks: metadata `authorization: Bearer KEY`, or nobody. Raises Unauthenticated."""
        given = call.metadata.get(b"authorization")
        if given is None:
            return self.door.principal(None, call.peer)
        scheme, _, key = given.partition(b" ")
        if scheme.lower() != b"bearer" or not key.strip():
            raise errors.Unauthenticated("authorization: expected 'Bearer KEY'")
        principal = self.door.principal(key.strip().decode("latin-1"), call.peer)
        if self.observer is not None and call.record is not None:
            call.record.key = principal.name
        return principal

    def ask(self, data: bytes, principal: Principal, metadata: dict[bytes, bytes], left_s: float) -> Asked:
        """Start one request out of its message; `left_s`: seconds the call still has, 0 without end. Raises Error."""
        rest, said_bytes, ident_bytes, raws = wire.split(data)
        said = (self._said.get(said_bytes) or self._hear(said_bytes)) if said_bytes else _NOTHING
        try:
            form = self._forms.get(rest)
            if form is None or not self._current(form, principal):
                form = self._learn(rest, principal, raws)
            inputs = form.inputs(data, raws)
            if inputs is None:  # it says the same as one before, and its raw contents are of other sizes
                form = self._learn(rest, principal, raws)
                inputs = form.inputs(data, raws)
            if said.turn is not None and not said.turn.start:
                own = self._description_of(form.model, said.turn, principal)
                if own is not None and not own.alike(form.plan.description):
                    form = self._of_session(rest, own, raws)
                    inputs = form.inputs(data, raws)
        except errors.Error:
            # A step of a session that began on a version of other inputs, or of a model that was unloaded since.
            if said.turn is None or said.turn.start:
                raise
            own = self._description_of(read.rest(rest).model_name, said.turn, principal)
            if own is None:
                raise
            form = self._of_session(rest, own, raws)
            inputs = form.inputs(data, raws)
        assert inputs is not None, "its sizes were checked when it was learnt"
        ident = read.ident(ident_bytes) if ident_bytes else self._new_id(metadata)
        layout = form.layout
        timeout_s = said.timeout_s
        if left_s and (not timeout_s or left_s < timeout_s):
            timeout_s = left_s
        request = Request(  # positional: a keyword costs a tenth of a microsecond
            form.model,
            inputs,
            layout.rows,
            ident,
            form.version,
            said.key,
            layout.outputs,
            said.priority,
            timeout_s,
            said.turn,
        )
        future: asyncio.Future[Any] = self.door.call(request, principal)
        return Asked(future, form, ident_bytes or ident.encode(), said.final, said.explain or EXPLAIN in metadata)

    def _current(self, form: wire.Form, principal: Principal) -> bool:
        """Whether the model is still as this form knows it. Raises Forbidden, NotFound."""
        self.door.admit(principal, form.model, "infer")
        description = self.door.describe(form.model, form.version)
        return form.plan.description is description or form.plan.description == description

    def _learn(self, rest: bytes, principal: Principal, raws: wire.Raws) -> wire.Form:
        if len(rest) > TYPED_BYTES_MAX:
            raise errors.TooLarge(
                f"the message has {len(rest)} bytes beside raw_input_contents, {TYPED_BYTES_MAX} at most: send large "
                "tensors there"
            )
        message = read.rest(rest)
        name = (message.model_name, message.model_version)
        if not name[0]:
            raise errors.BadInput("model_name: empty; send the name of a model")
        self.door.admit(principal, name[0], "infer")  # before what a mistake would tell of the model
        description = self.door.describe(*name)
        known = self._models.get(name)
        if known is None or known[0].description != description:
            if len(self._models) >= MODELS_MAX:
                self._models.clear()
            plan = Plan(description)
            known = self._models[name] = (plan, wire.Answers(plan))
        form = read.form(*known, message, raws)
        if not form.layout.given and len(rest) <= REMEMBERED_BYTES_MAX:
            if len(self._forms) >= FORMS_MAX:
                self._forms.clear()
            self._forms[rest] = form
        return form

    def _description_of(self, model: str, turn: Turn, principal: Principal) -> Description | None:
        """The version that an open session is on; None where none is open."""
        try:
            return self.door.describe_step(model, turn, principal)
        except errors.NotFound:
            return None

    def _of_session(self, rest: bytes, description: Description, raws: wire.Raws) -> wire.Form:
        """How the version of an open session takes this step. Raises BadInput."""
        plan = Plan(description)
        return read.form(plan, wire.Answers(plan), read.rest(rest), raws)

    def _hear(self, data: bytes) -> read.Said:
        said = read.said(data)
        if said.turn is None and not said.key and len(data) <= SAID_BYTES_MAX:
            if len(self._said) >= FORMS_MAX:
                self._said.clear()
            self._said[data] = said
        return said

    def _new_id(self, metadata: dict[bytes, bytes]) -> str:
        """The x-request-id of the client, or the next id of this process."""
        given = metadata.get(b"x-request-id")
        if given is None:
            return f"{self._id_prefix}{next(self._ids):010x}"
        if not given.isascii() or not 0 < len(given) <= TEXT_CHARS_MAX:
            raise errors.BadInput(f"x-request-id: {len(given)} bytes; send 1 to {TEXT_CHARS_MAX} ASCII characters")
        return given.decode()


class Asked(msgspec.Struct, eq=False):
    """One request that the Door works on, and what its answer needs."""

    future: asyncio.Future[Any]
    form: wire.Form
    ident: bytes
    final: bool
    explain: bool

    def answer(self) -> tuple[bytes, tuple[tuple[bytes, bytes], ...]]:
        """(ModelInferResponse, metadata) once the future is done. Raises what went wrong."""
        if self.future.cancelled():
            raise errors.Busy(STOPPED)
        output: Output = self.future.result()
        message = self.form.answers.write(self.form.layout, self.ident, output, self.final)
        return message, ((EXPLAIN, explain(output).encode()),) if self.explain else ()


class _Infer:
    """One ModelInfer."""

    __slots__ = ("_asked", "_begun", "_call", "_gone", "_principal", "_service")

    def __init__(self, service: Inference, call: Call, principal: Principal) -> None:
        self._service, self._call, self._principal = service, call, principal
        self._asked: Asked | None = None
        self._begun = self._gone = False

    def message(self, data: bytes) -> None:
        if self._begun:
            return
        self._begun = True
        call = self._call
        try:
            self._asked = asked = self._service.ask(data, self._principal, call.metadata, call.timeout_s)
        except Exception as error:
            if self._service.observer is not None:
                _refused(call.record, data)
            call.finish(error)
            return
        if self._service.observer is not None:
            _asks(call.record, asked, data, self._service.monotonic())
        if asked.future.done():
            self._settle(asked.future)
        else:
            asked.future.add_done_callback(self._settle)

    def _settle(self, future: asyncio.Future[Any]) -> None:
        asked, call = self._asked, self._call
        if asked is None or self._gone:
            _look(future)
            return
        try:
            message, metadata = asked.answer()
        except Exception as error:
            call.finish(error)
            return
        if self._service.observer is not None:
            _answered(call.record, asked, message)
        call.send(message, metadata)
        call.finish()

    def ended(self) -> None:
        if not self._begun:
            self._begun = True
            self._call.finish(_no_message())

    def cancelled(self) -> None:
        self._begun = self._gone = True
        if self._asked is not None:
            self._asked.future.cancel()


class _Slot:
    """A place in the order of a stream's answers; `answer` once there is one."""

    __slots__ = ("answer", "asked", "metadata", "record")

    def __init__(self, record: Record | None = None) -> None:
        self.record = record
        self.asked: Asked | None = None
        self.answer: bytes | None = None
        self.metadata: tuple[tuple[bytes, bytes], ...] = ()


class _Stream:
    """One ModelStreamInfer."""

    def __init__(self, service: Inference, call: Call) -> None:
        self._service, self._call = service, call
        call.streams = True
        self._slots: deque[_Slot] = deque()
        self._error: errors.Error | None = None  # that the stream ends with, after the answers that are still due
        self._deadline = service.monotonic() + call.timeout_s if call.timeout_s else 0.0
        # One id cannot name all the requests of a stream.
        self._metadata = {key: value for key, value in call.metadata.items() if key != b"x-request-id"}
        self._held = self._ended = self._gone = False

    def message(self, data: bytes) -> None:
        if self._gone or self._ended:
            return
        try:
            principal = self._service.principal(self._call)
        except errors.Unauthenticated as error:  # a key that was revoked since the stream began
            self._error = error
            self.ended()
            return
        observer = self._service.observer
        slot = _Slot() if observer is None else _Slot(Record(observer.monotonic(), key=principal.name))
        self._slots.append(slot)
        left_s = max(1e-6, self._deadline - self._service.monotonic()) if self._deadline else 0.0
        try:
            slot.asked = asked = self._service.ask(data, principal, self._metadata, left_s)
        except Exception as error:
            slot.answer = self._failed(error, data)
            if observer is not None:
                _refused(slot.record, data)
                self._observe(slot, _code(error))
            self._flush()
        else:
            if observer is not None:
                _asks(slot.record, asked, data, observer.monotonic())
            if asked.future.done():
                self._settle(slot)
            else:
                asked.future.add_done_callback(lambda future: self._settle(slot))
        if len(self._slots) >= IN_FLIGHT_MAX and not self._held:
            self._held = True
            self._call.hold()

    def _settle(self, slot: _Slot) -> None:
        asked = slot.asked
        if asked is None:
            return
        if self._gone:
            _look(asked.future)
            return
        try:
            message, slot.metadata = asked.answer()
            slot.answer = wire.streamed(message)
        except Exception as error:
            slot.answer = wire.failed(_sentence(error), asked.ident)
            self._observe(slot, _code(error))
        else:
            _answered(slot.record, asked, message)
            self._observe(slot, "OK")
        self._flush()

    def _observe(self, slot: _Slot, code: str) -> None:
        """One request of the stream is over; the stream itself leaves a record at its end."""
        if slot.record is not None and (observer := self._service.observer) is not None:
            observer.grpc(slot.record, self._call.path, self._metadata, self._call.peer, code)
            slot.record = None

    def _failed(self, error: Exception, data: bytes) -> bytes:
        """What went wrong with a request that did not start; its id, where that much can be read."""
        try:
            ident = wire.split(data)[2]
            read.ident(ident)
        except errors.Error:
            ident = b""
        return wire.failed(_sentence(error), ident)

    def _flush(self) -> None:
        """Send what is next in the order and ready."""
        slots, call = self._slots, self._call
        while slots and slots[0].answer is not None:
            slot = slots.popleft()
            call.send(slot.answer, slot.metadata)  # type: ignore[arg-type]
        if self._ended and not slots:
            call.finish(self._error)
        elif self._held and len(slots) < IN_FLIGHT_MAX:
            self._held = False
            call.go_on()

    def ended(self) -> None:
        if not (self._ended or self._gone):
            self._ended = True
            self._flush()

    def cancelled(self) -> None:
        self._gone = True
        for slot in self._slots:
            self._observe(slot, "CANCELLED")
            if slot.asked is not None:
                slot.asked.future.cancel()
        self._slots.clear()


class _Unary:
    """One call of a method beside inference."""

    def __init__(self, call: Call, method: Method, principal: Principal | None) -> None:
        self._call, self._method, self._principal = call, method, principal
        self._answer: asyncio.Future[Any] | None = None
        self._begun = self._gone = False

    def message(self, data: bytes) -> None:
        if self._begun:
            return
        self._begun = True
        asked = self._method.takes()
        try:
            if len(data) > ASKED_BYTES_MAX:
                raise errors.TooLarge(f"the message has {len(data)} bytes, this method takes {ASKED_BYTES_MAX} at most")
            asked.ParseFromString(data)
            answer = self._method.run(asked, self._principal)
        except DecodeError:
            self._call.finish(errors.BadInput(wire.BROKEN))
            return
        except Exception as error:
            self._call.finish(error)
            return
        if isinstance(answer, asyncio.Future):
            self._answer = answer
            answer.add_done_callback(self._settle)
        else:
            self._send(lambda: answer)

    def _settle(self, future: asyncio.Future[Any]) -> None:
        if self._gone:
            _look(future)
        else:
            self._send(future.result)

    def _send(self, answer: Callable[[], Any]) -> None:
        try:
            message = answer().SerializeToString()
        except Exception as error:
            self._call.finish(error)
            return
        self._call.send(message)
        self._call.finish()

    def ended(self) -> None:
        if not self._begun:
            self._begun = True
            self._call.finish(_no_message())

    def cancelled(self) -> None:
        self._begun = self._gone = True
        if self._answer is not None:
            self._answer.cancel()


def _no_message() -> errors.Error:
    return errors.BadInput("the call ended without a message; send one")


def _sentence(error: Exception) -> str:
    """What a stream says of a request that failed; a bug of ours is logged and says nothing."""
    said = told(log, error, "a request of a stream failed")
    return str(error)[: answer.SENTENCE_CHARS_MAX] if said else answer.INTERNAL


def _code(error: Exception) -> str:
    return error.code if isinstance(error, errors.Error) else "INTERNAL"


def _asks(record: Record | None, asked: Asked, data: bytes, now: float) -> None:
    if record is not None:
        record.asks(asked.form.model, asked.form.layout.rows, asked.ident.decode(), now)
        record.bytes_in = len(data)


def _answered(record: Record | None, asked: Asked, message: bytes) -> None:
    if record is not None:
        record.answered(asked.future.result())
        record.bytes_out = len(message)


def _refused(record: Record | None, data: bytes) -> None:
    """A request that did not start: the model it was for, where that much can be read."""
    if record is not None:
        record.bytes_in = len(data)
        with contextlib.suppress(errors.Error):
            record.model = read.rest(wire.split(data)[0]).model_name[:PATH_CHARS_MAX]


def _look(future: asyncio.Future[Any]) -> None:
    """Nobody reads this answer: an error of it is nobody's business either."""
    if not future.cancelled():
        future.exception()
