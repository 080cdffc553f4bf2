"""`transcribe`: files of sound into text, captions, or who spoke when."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from millstream.cli.verbs import Verbs, asyncio_run, say

if TYPE_CHECKING:
    from millstream.app.transcribing import Source
    from millstream.flows.speech.offline import Offline, Recording
    from millstream.flows.speech.written import Format

TOLD_S = 5.0
FILES_AT_ONCE = 4


def add(verbs: Verbs) -> None:
    """The verb of this file."""
    made = verbs.add("transcribe", _transcribe, "make text, captions or speaker turns of files of sound")
    made.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="WAV, FLAC, MP3, M4A, Ogg, WebM ..., or a folder of them"
    )
    where = made.add_mutually_exclusive_group(required=True)
    where.add_argument("--models", type=Path, metavar="DIR", help="folder of models, as `speech fetch` makes it")
    where.add_argument("-c", "--config", type=Path, help="or millstream.toml of an installation, with [speech]")
    made.add_argument("--recogniser", default="", metavar="NAME", help="which model (default: the only one there is)")
    made.add_argument("--language", default="", metavar="CODE", help="such as en or zh (default: what is heard first)")
    made.add_argument(
        "--format", default="txt", metavar="NAME,...", help="of txt, srt, vtt, json, rttm; several need --out"
    )
    made.add_argument("--out", type=Path, metavar="DIR", help="write NAME.FORMAT there (default: print the text)")
    made.add_argument(
        "--speakers", action=argparse.BooleanOptionalAction, default=True, help="tell speakers apart by their voices"
    )
    made.add_argument(
        "--personal", action="store_true", help="leave numbers and addresses of people in the text (default: masked)"
    )
    made.add_argument(
        "--channels", choices=("mix", "split"), default="mix", help="split: each channel is a speaker by itself"
    )


def _transcribe(args: argparse.Namespace) -> object:
    args.files = [file for named in args.files for file in _meant(named)]
    formats = _formats(args)
    targets = _targets(args, formats)
    told = asyncio_run(_all(args, formats, targets))
    sound = all("error" not in one for one in told)
    if args.json:
        return {"files": told, "sound": sound}
    if not sound:
        sys.exit(f"millstream: {sum('error' in one for one in told)} of {len(told)} files were not transcribed")
    return None


def _meant(named: Path) -> list[Path]:
    """A file, or the recordings that lie in a folder. NotFound: none do."""
    from millstream.flows.speech.files import recordings

    return recordings(named) if named.is_dir() else [named]


def _formats(args: argparse.Namespace) -> list[Format]:
    from millstream.errors import BadInput
    from millstream.flows.speech.written import FORMATS

    asked = [name.strip() for name in args.format.split(",")]
    found = [form for form in FORMATS if form in asked]
    if unknown := [name for name in asked if name not in FORMATS]:
        raise BadInput(f"--format {unknown[0]!r}: there are {', '.join(FORMATS)}")
    if len(found) > 1 and args.out is None:
        raise BadInput("--format with several wants --out DIR, where they are written")
    if len(args.files) > 1 and args.out is None and found != ["txt"]:
        raise BadInput("several files can be printed as txt only; --out DIR is where others are written")
    return found


def _targets(args: argparse.Namespace, formats: Sequence[Format]) -> dict[Path, dict[Format, Path]]:
    """For each file where its text goes, by format. BadInput: two would go to the same place."""
    from millstream.errors import BadInput

    if args.out is None:
        return {file: {} for file in args.files}
    if args.out.exists() and not args.out.is_dir():
        raise BadInput(f"--out {args.out} is a file; name a folder")
    args.out.mkdir(parents=True, exist_ok=True)
    made = {file: {form: args.out / f"{file.stem}.{form}" for form in formats} for file in args.files}
    stems = [file.stem for file in args.files]
    if twice := [stem for stem in stems if stems.count(stem) > 1]:
        raise BadInput(f"two files would both become {twice[0]}.{formats[0]}; give them in two runs, or rename one")
    return made


async def _all(
    args: argparse.Namespace, formats: Sequence[Format], targets: dict[Path, dict[Format, Path]]
) -> list[dict[str, object]]:
    """Every file in turn, some beside each other; what became of each, in their order."""
    from millstream.app.transcribing import offline, source

    of: Source = source(
        args.models, args.config, args.recogniser, args.speakers and args.channels == "mix", args.personal
    )
    async with offline(of) as through:
        room = asyncio.Semaphore(FILES_AT_ONCE)
        tasks = [
            asyncio.create_task(_one(through, room, file, args, of.language, targets[file])) for file in args.files
        ]
        told = []
        try:
            for task in tasks:
                recording, one = await task
                if recording is not None and args.out is None and not args.json:
                    _print(recording, formats[0], args, len(tasks) > 1)
                told.append(one)
        finally:
            for task in tasks:
                task.cancel()
        return told


async def _one(
    through: Offline, room: asyncio.Semaphore, file: Path, args: argparse.Namespace, language: str,
    targets: dict[Format, Path],
) -> tuple[Recording | None, dict[str, object]]:  # fmt: skip
    """One file, and what became of it: an error of one is told, and stops no other."""
    from millstream.errors import Error

    async with room:
        began = told = time.monotonic()

        def read(seconds: float) -> None:
            nonlocal told
            if time.monotonic() - told >= TOLD_S:
                told = time.monotonic()
                say(f"{file}: {seconds:,.0f} s, {seconds / (told - began):.1f} times as fast as it was said")

        split, speakers = args.channels == "split", args.speakers
        try:
            recording = await through.transcribe(file, str(file), args.language or language, split, speakers, read=read)
            for form, to in targets.items():
                await asyncio.to_thread(_write, to, _rendered(recording, form, args))
        except (Error, OSError) as error:
            say(f"millstream: {error}")
            return None, {"file": str(file), "error": str(error)}
        took = time.monotonic() - began
        say(f"{file}: {recording.seconds:,.1f} s of {recording.language or 'no'} speech in {took:.1f} s")
        return recording, _summary(recording, file, args, targets, took)


def _summary(
    recording: Recording, file: Path, args: argparse.Namespace, targets: dict[Format, Path], took: float
) -> dict[str, object]:
    found: dict[str, object] = {
        "file": str(file),
        "language": recording.language,
        "seconds": round(recording.seconds, 3),
        "speech_s": round(recording.speech_s, 3),
        "took_s": round(took, 3),
        "speakers": len({recording.who(line) for line in recording.lines} - {""}),
        "words": sum(len(line.words) for line in recording.lines),
    }
    if targets:
        return found | {"out": [str(to) for to in targets.values()]}
    return found | {"text": _rendered(recording, _formats(args)[0], args)}


def _rendered(recording: Recording, form: Format, args: argparse.Namespace) -> str:
    from millstream.flows.speech.written import render

    who = recording.who if args.speakers or args.channels == "split" else None
    name = Path(recording.name).stem
    return render(form, recording.lines, who, name, recording.language, recording.seconds)


def _write(to: Path, text: str) -> None:
    from millstream.store.blob import write_atomic

    write_atomic(to, text.encode())


def _print(recording: Recording, form: Format, args: argparse.Namespace, named: bool) -> None:
    if named:
        sys.stdout.write(f"== {recording.name}\n")
    sys.stdout.write(_rendered(recording, form, args))
    sys.stdout.flush()
