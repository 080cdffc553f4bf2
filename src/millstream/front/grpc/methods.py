"""What the methods beside inference answer: health, metadata, configuration, statistics, the repository.

Rules of the room:
- A method takes its message and who asks, and gives its answer, or the future of it; its errors are those of the Door.
- Health says nothing of models and asks for no key, as load balancers have none.
- What Triton offers and this service does not is refused with what to do instead; taking back what was never given
  is granted, as clients do that before they begin.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal

import msgspec
from google.protobuf import json_format

import millstream
from millstream import errors
from millstream.front import model_config
from millstream.front.door import Door, may_describe
from millstream.front.grpc import messages
from millstream.front.tensor import shown
from millstream.front.v2 import EXTENSIONS
from millstream.types import Principal, TensorSpec

SERVICE = f"{messages.INFERENCE}.GRPCInferenceService"
Message = messages.Message


class Method(msgspec.Struct, frozen=True):
    """`run` takes a message of class `takes` and who asks (nobody, where `open_to_all`)."""

    takes: Any
    run: Callable[[Message, Principal | None], Message | asyncio.Future[Message]]
    open_to_all: bool = False


def methods(door: Door) -> dict[bytes, Method]:
    """Every unary method but inference, by its path."""
    replies = Replies(door)
    runs: dict[str, Callable[[Message, Principal], Any]] = {
        "ModelReady": replies.model_ready,
        "ServerMetadata": replies.server_metadata,
        "ModelMetadata": replies.model_metadata,
        "ModelConfig": replies.model_config,
        "ModelStatistics": replies.model_statistics,
        "RepositoryIndex": replies.repository_index,
        "RepositoryModelLoad": replies.repository_model_load,
        "RepositoryModelUnload": replies.repository_model_unload,
        "TraceSetting": _refused("traces are not set here; ask for an explanation with metadata millstream-explain: 1"),
        "LogSettings": _refused("what is logged is not set here; it is set where the service is started"),
    }
    for kind in ("System", "Cuda"):
        runs[f"{kind}SharedMemoryStatus"] = _region_status(kind)
        runs[f"{kind}SharedMemoryRegister"] = _refused(
            "memory is not shared with clients here; send the values in raw_input_contents"
        )
        runs[f"{kind}SharedMemoryUnregister"] = _nothing(f"{kind}SharedMemoryUnregisterResponse")
    found = {
        f"/{SERVICE}/{name}".encode(): Method(messages.of(f"{name}Request"), run)  # type: ignore[arg-type]
        for name, run in runs.items()
    }
    for name, health in (("ServerLive", replies.server_live), ("ServerReady", replies.server_ready)):
        found[f"/{SERVICE}/{name}".encode()] = Method(messages.of(f"{name}Request"), health, True)
    check = Method(messages.CLASSES[f"{messages.HEALTH}.HealthCheckRequest"], replies.check, True)
    return {**found, f"/{messages.HEALTH}.Health/Check".encode(): check}


class Replies:
    """The answers that come from behind a Door."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def server_live(self, message: Message, principal: Principal | None) -> Message:
        """That this process answers."""
        return messages.of("ServerLiveResponse")(live=True)

    def server_ready(self, message: Message, principal: Principal | None) -> Message:
        """Whether the service answers for its models now."""
        return messages.of("ServerReadyResponse")(ready=self._door.ready())

    def check(self, message: Message, principal: Principal | None) -> Message:
        """gRPC's health check: of the server (""), or of the inference service, which is the same."""
        if message.service not in ("", SERVICE):
            raise errors.NotFound(f"no service {message.service[:80]!r} here; there is {SERVICE}")
        status = "SERVING" if self._door.ready() else "NOT_SERVING"
        return messages.CLASSES[f"{messages.HEALTH}.HealthCheckResponse"](status=status)

    def model_ready(self, message: Message, principal: Principal) -> Message:
        """Not ready is an answer, also of a model that is not there: clients ask until it is."""
        name = self._known(message.name, principal)
        return messages.of("ModelReadyResponse")(ready=self._door.ready(name, message.version))

    def server_metadata(self, message: Message, principal: Principal) -> Message:
        """Name, version and extensions of the server."""
        return messages.of("ServerMetadataResponse")(
            name="millstream", version=millstream.__version__, extensions=EXTENSIONS
        )

    def model_metadata(self, message: Message, principal: Principal) -> Message:
        """A model's versions and tensors, shapes with the row."""
        described = self._door.describe(self._known(message.name, principal), message.version)

        def tensors(specs: tuple[TensorSpec, ...]) -> list[dict[str, object]]:
            return [{"name": spec.name, "datatype": spec.datatype, "shape": spec.shape} for spec in specs]

        return messages.of("ModelMetadataResponse")(
            name=described.model,
            versions=described.versions,
            platform=described.platform,
            inputs=tensors(described.inputs),
            outputs=tensors(described.outputs),
        )

    def model_config(self, message: Message, principal: Principal) -> Message:
        """How a model is batched."""
        config = self._door.config(self._known(message.name, principal), message.version)
        return _read("ModelConfigResponse", {"config": model_config.config(config)})

    def model_statistics(self, message: Message, principal: Principal) -> Message:
        """What models have done; of all of them where none is named."""
        if message.name:
            self._known(message.name, principal)
        found = self._door.statistics(message.name, message.version)
        known = [one for one in found if may_describe(self._door, principal, one.model)]
        return _read("ModelStatisticsResponse", model_config.statistics(known))

    def repository_index(self, message: Message, principal: Principal) -> Message:
        """Every version of the repository; with `ready` those that answer."""
        _one_repository(message)
        known = [one for one in self._door.index() if may_describe(self._door, principal, one.model)]
        listed = [one for one in known if one.state == "READY" or not message.ready]
        return messages.of("RepositoryIndexResponse")(
            models=[
                {"name": one.model, "version": one.version, "state": one.state, "reason": one.reason} for one in listed
            ]
        )

    def repository_model_load(self, message: Message, principal: Principal) -> asyncio.Future[Message]:
        """Serve a model as the repository has it now."""
        return self._control("load", message, principal)

    def repository_model_unload(self, message: Message, principal: Principal) -> asyncio.Future[Message]:
        """Serve it no more."""
        return self._control("unload", message, principal)

    def _known(self, name: str, principal: Principal) -> str:
        """The name of a model that the principal may describe. Raises BadInput, Forbidden."""
        self._door.admit(principal, _named(name, "name"), "describe")
        return name

    def _control(
        self, verb: Literal["load", "unload"], message: Message, principal: Principal
    ) -> asyncio.Future[Message]:
        _one_repository(message)
        if more := sorted(set(message.parameters) - {"unload_dependents"}):  # no model here has any
            raise errors.BadInput(
                f"parameters: got {shown(more)}; a model is loaded as the repository has it: put a new version there"
            )
        done = self._door.control(verb, _named(message.model_name, "model_name"), principal)
        answer: asyncio.Future[Message] = done.get_loop().create_future()
        made = messages.of(f"RepositoryModel{verb.title()}Response")()

        def settle(done: asyncio.Future[None]) -> None:
            """A client that went away takes its answer back, and not what it asked for."""
            error = errors.Busy("the service stopped before it was done") if done.cancelled() else done.exception()
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(made)

        done.add_done_callback(settle)
        return answer


def _read(name: str, document: dict[str, object]) -> Message:
    return json_format.ParseDict(document, messages.of(name)())


def _named(name: str, field: str) -> str:
    if not name:
        raise errors.BadInput(f"{field}: empty; send the name of a model")
    return name


def _one_repository(message: Message) -> None:
    if message.repository_name:
        raise errors.BadInput(f"repository_name: got {message.repository_name[:80]!r}; there is one, leave it empty")


def _refused(sentence: str) -> Callable[[Message, Principal], Message]:
    def run(message: Message, principal: Principal) -> Message:
        raise errors.Missing(sentence)

    return run


def _nothing(name: str) -> Callable[[Message, Principal], Message]:
    return lambda message, principal: messages.of(name)()


def _region_status(kind: str) -> Callable[[Message, Principal], Message]:
    def run(message: Message, principal: Principal) -> Message:
        if message.name:
            raise errors.NotFound(f"no shared memory {message.name[:80]!r}: memory is not shared with clients here")
        return messages.of(f"{kind}SharedMemoryStatusResponse")()

    return run
