"""`serve`, `up`, `demo`, `capacity`, `doctor`: running an installation."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from pathlib import Path
from typing import Any

import msgspec

from millstream.cli.verbs import (
    Verbs,
    asyncio_run,
    bounded,
    count_of,
    duration,
    from_zero,
    instances,
    port,
    positive,
    rows,
)
from millstream.errors import Misconfigured, Missing


def add(verbs: Verbs) -> None:
    """The verbs of this file."""
    _add_demo(verbs)
    _add_roles(verbs)
    _add_capacity(verbs)
    doctor = verbs.add("doctor", _doctor, "what is installed, what is missing, and how to get it")
    doctor.add_argument("path", type=Path, nargs="?", help="an installation's folder to look at too")
    doctor.add_argument("--warm", action="store_true", help="compile the learner's kernels now; the install does this")


def _add_demo(verbs: Verbs) -> None:
    demo = verbs.add("demo", _demo, "the whole loop on real data: serve, log, join, learn, push")
    demo.add_argument("--data", choices=("movielens", "simulator"), default="movielens", help="what is replayed")
    demo.add_argument("--seconds", type=positive, help="end so long after the first request (default: until Ctrl-C)")
    demo.add_argument("--rate", type=positive, default=500.0, help="rankings a second to aim at (default: 500)")
    demo.add_argument("--http-port", type=port, default=8000, help="port of the service (default: 8000)")
    demo.add_argument("--console-port", type=port, default=8002, help="port of the console (default: 8002)")
    demo.add_argument("--dir", type=Path, help="an empty folder for its log and models (default: a temporary one)")


def _add_roles(verbs: Verbs) -> None:
    serve = verbs.add("serve", _serve, "serve a model folder or a single .onnx file over HTTP and gRPC")
    serve.add_argument(
        "path",
        help="FILE.onnx, a folder with NAME/VERSION/model.onnx, FILE.zip of `models pack`, or one of these elsewhere: "
        "s3://BUCKET/models, models:/NAME/VERSION of MLflow (fetched once, at the start)",
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    serve.add_argument("--http-port", type=port, default=8000, help="0 picks a free one (default: 8000)")
    serve.add_argument("--grpc-port", type=port, default=-1, help="0 picks a free one (default: the one after HTTP's)")
    serve.add_argument(
        "--max-batch-size",
        type=rows,
        metavar="ROWS",
        help="most rows of a call (default: what takes 10 ms)",
    )
    serve.add_argument(
        "--max-wait-time",
        type=duration,
        metavar="TIME",
        help="a batch waits so long to fill, such as 5ms (default: none)",
    )
    serve.add_argument(
        "--instances",
        type=instances,
        help="calls of a model at once (default: one less than the cores)",
    )
    serve.add_argument(
        "--timeout", type=duration, metavar="TIME", help="drop what is not answered by then (default: never)"
    )
    serve.add_argument(
        "--p99-ms", type=positive, metavar="MS", help="the goal that the batcher pursues (default: none)"
    )
    serve.add_argument(
        "--memory-mb",
        type=positive,
        metavar="MB",
        help="of all models; over it the one asked least recently is unloaded",
    )
    serve.add_argument(
        "--device", default="cpu", help="cpu, cuda:0 or tensorrt:0, for models that do not say themselves"
    )
    serve.add_argument(
        "--allow-code",
        action="store_true",
        help="serve models that are programs too (pickle, torch, keras, Python), each in its own process",
    )
    serve.add_argument("--tls-cert", metavar="FILE", help="speak TLS with this certificate (PEM), also when it changes")
    serve.add_argument("--tls-key", metavar="FILE", help="its private key (default: in the same file)")
    serve.add_argument("--tls-client-ca", metavar="FILE", help="clients must show a certificate that this one signed")
    serve.add_argument("--keys", metavar="FILE", help="let in who has one of these keys; see `keys`")
    serve.add_argument("--access-log", metavar="FILE", help="a line of JSON for every request; -: to stdout")
    serve.add_argument("--trace", metavar="URL", help="send traces to this collector (OTLP over HTTP)")
    serve.add_argument(
        "--sessions", type=Path, metavar="FILE", help="hand open sessions over to the next start in FILE"
    )
    serve.add_argument(
        "--workers", type=instances, metavar="N", help="processes that answer at the same ports (default: 1)"
    )
    serve.add_argument(
        "--resident-mb",
        type=positive,
        metavar="MB",
        help="of all processes; near it the largest of several workers is replaced (default: what the machine allows)",
    )
    up = verbs.add("up", _up, "run every role of an installation, supervised")
    up.add_argument(
        "--role", type=_role, metavar="ROLE", help="run one role alone, in this process: serve, learn, recall-0 .."
    )
    for one in (serve, up):
        one.add_argument("--place", type=_place, help=argparse.SUPPRESS)  # what a supervisor tells its workers
    up.add_argument("-c", "--config", type=Path, required=True, help="millstream.toml of the installation")


def _add_capacity(verbs: Verbs) -> None:
    capacity = verbs.add(
        "capacity", _capacity, "the highest rate that this machine serves a model at, and what that costs"
    )
    capacity.add_argument("path", type=Path, help="FILE.onnx, or a folder with NAME/VERSION/model.onnx")
    capacity.add_argument("--p99-ms", type=positive, required=True, metavar="MS", help="99 of 100 answers under this")
    capacity.add_argument("--model", default="", help="which one, where the folder has several")
    capacity.add_argument("--rows", type=count_of, default=1, help="rows of a request (default: 1)")
    capacity.add_argument("--connections", type=count_of, default=64, help="requests at once (default: 64)")
    capacity.add_argument("--requests-per-day", type=from_zero, default=0.0, metavar="X", help="to be served")
    capacity.add_argument(
        "--machine-cost", type=from_zero, default=0.0, metavar="Y", help="of a machine like this, an hour"
    )
    capacity.add_argument(
        "--peak-factor",
        type=bounded(float, 1.0, 1000.0, "a number from 1"),
        default=3.0,
        help="the busiest time beside the average (default: 3)",
    )
    capacity.add_argument("--seconds", type=positive, default=2.0, help="of one trial; longer is surer (default: 2)")


def _serve(args: argparse.Namespace) -> None:
    from millstream.app.plain import serve_path
    from millstream.app.service import ServeSettings
    from millstream.app.workers import serve_workers
    from millstream.engine import EngineLimits
    from millstream.front.access import AccessSettings
    from millstream.front.trace import TraceSettings
    from millstream.guard.tls import TlsSettings

    batching = _said(
        rows_max=args.max_batch_size,
        wait_ms=args.max_wait_time,
        instances=args.instances,
        timeout_ms=args.timeout,
        p99_ms=args.p99_ms,
        memory_bytes_max=None if args.memory_mb is None else int(args.memory_mb * 2**20),
    )
    settings = ServeSettings(
        engine=EngineLimits(**batching),
        allow_code=args.allow_code,
        **_said(host=args.host, http_port=args.http_port, grpc_port=args.grpc_port, device=args.device),
        **_said(workers=args.workers, keys=args.keys),
        resident_bytes_max=int((args.resident_mb or 0) * 1e6),
        tls=TlsSettings(**_said(certificate=args.tls_cert, key=args.tls_key, client_ca=args.tls_client_ca)),
        access_log=AccessSettings(**_said(file=args.access_log)),
        trace=TraceSettings(**_said(endpoint=args.trace)),
    )
    if settings.workers > 1 and args.place is None:
        if args.sessions is not None:
            raise Misconfigured("--sessions hands sessions over to one process: leave it out, or serve with one worker")
        return asyncio_run(serve_workers(args.path, settings, args.line))
    return asyncio_run(serve_path(args.path, settings, args.sessions, args.place))


def _role(text: str) -> str:
    if text not in ("serve", "learn", "watch", "console") and not re.fullmatch(r"recall-\d{1,2}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r}: a role is serve, learn, watch, console, or recall-N for shard N of recall"
        )
    return text


def _place(text: str) -> object:
    from millstream.app.place import Place

    return msgspec.json.decode(text, type=Place)


def _said(**options: Any) -> dict[str, Any]:
    """Those that were typed: of the others the settings have the defaults."""
    return {name: value for name, value in options.items() if value is not None}


def _up(args: argparse.Namespace) -> None:
    from millstream.app import roles

    asyncio_run(roles.run_role(args.config, args.role, args.place) if args.role else roles.supervise(args.config))


def _demo(args: argparse.Namespace) -> None:
    try:
        from millstream.demo.run import run
    except ImportError as error:
        raise Missing.extra("demo", f"the demo ({error})") from None
    logging.getLogger().setLevel(logging.WARNING)
    asyncio_run(run(args.data, args.dir, args.seconds, args.http_port, args.console_port, args.rate, args.json))


def _capacity(args: argparse.Namespace) -> object:
    from millstream.ops.capacity import capacity
    from millstream.ops.report import render

    found = asyncio_run(
        capacity(
            args.path,
            p99_ms=args.p99_ms,
            model=args.model,
            rows=args.rows,
            connections=args.connections,
            requests_per_day=args.requests_per_day,
            machine_cost_per_hour=args.machine_cost,
            peak_factor=args.peak_factor,
            seconds=args.seconds,
            progress=lambda line: print(line, file=sys.stderr, flush=True),
        )
    )
    return found if args.json else render(found)


def _doctor(args: argparse.Namespace) -> object:
    from millstream.ops.doctor import examine, warm

    if args.warm:
        return warm()
    return examine(args.path)
