"""gRPC alone: bytes in, the same bytes out, by a sync or an asyncio server; ECHO_MODEL: a call of the model between."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import runtime

THREADS = 8


def service(answer: Callable[..., object]) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        "inference.GRPCInferenceService", {"ModelInfer": grpc.unary_unary_rpc_method_handler(answer)}
    )


def reply(models: dict[bytes, Callable[[], object]]) -> Callable[[bytes], bytes]:
    """What a handler does: nothing, or the call of the model that the message names."""

    def plain(message: bytes) -> bytes:
        return message

    def modelled(message: bytes) -> bytes:
        models[message[2 : 2 + message[1]]]()
        return message

    return modelled if models else plain


def main() -> None:
    arguments = runtime.arguments()
    models = {}
    if os.environ.get("ECHO_MODEL"):
        for name in arguments.names:
            session = runtime.session(arguments.models / f"{name}.onnx")
            one = {key: np.ones((1, width), runtime.DTYPES[dtype]) for key, dtype, width in runtime.INPUTS[name]}
            models[name.encode()] = lambda session=session, one=one: session.run(None, one)
    act, address = reply(models), f"127.0.0.1:{arguments.grpc}"
    if os.environ.get("ECHO_AIO"):
        asyncio.run(serve(act, address))
        return
    server = grpc.server(ThreadPoolExecutor(THREADS))
    server.add_generic_rpc_handlers((service(lambda message, context: act(message)),))
    server.add_insecure_port(address)
    server.start()
    server.wait_for_termination()


async def serve(act: Callable[[bytes], bytes], address: str) -> None:
    async def handle(message: bytes, context: object) -> bytes:
        return act(message)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((service(handle),))
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


main()
