"""Live speech to look at: a server of its own hears two people at the pace at which they spoke, and a terminal shows
what it tells: words that still change, lines that stand, and speakers that are corrected later."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, TextIO
from unicodedata import east_asian_width

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.client.speech import Speech
from millstream.clock import Clock, SystemClock
from millstream.errors import Busy, Late, Misconfigured
from millstream.flows.speech.files import blocks
from millstream.flows.speech.settings import RATE
from millstream.models.repository import Repository
from millstream.models.speech import shelf
from millstream.ops.supervise import Launch, Supervisor
from millstream.spoken import Correction, Line, Metrics, Segment, SpeakerTold, Told, Transcript, Vad, written

RECOGNISER, VAD, VOICE, TURN_TAKING = "whisper-base", "silero-vad", "wespeaker", "pyannote"
READY_S_MAX = 120.0
PIECE_MS = 40
TURNS: Final = (
    ("two_cities.wav", 0.6, 8.45), ("endgame_nagg_nell.wav", 4.7, 8.3), ("endgame_nagg_nell.wav", 23.6, 27.7),
    ("two_cities.wav", 8.5, 17.3), ("endgame_nagg_nell.wav", 12.0, 14.2), ("endgame_nagg_nell.wav", 20.3, 22.1),
    ("two_cities.wav", 17.4, 24.2),
)  # fmt: skip
"""Of the recordings, from one second to another: somebody who reads, and somebody of a scene, by turns."""
TOML: Final = """# The installation of `millstream speech demo`. `millstream up -c FILE` runs it again.
http_port = {port}
grpc_port = 0

[speech]
recogniser = "{recogniser}"
voice = "{voice}"
turns = "{turns}"
"""
Sound = NDArray[np.float32]


class Times(msgspec.Struct, frozen=True):
    """Of latencies, in ms."""

    median: int
    most: int
    count: int


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """What a run showed; `--json` prints it. `first_words_ms`: after speech began; `final_ms`: after it ended."""

    seconds: float
    lines: int
    speakers: list[str]
    corrections: int
    first_words_ms: Times
    final_ms: Times
    rtf: float
    text: list[str]


def two_people(folder: Path) -> Sound:
    """The clip of the demo, float32 at 16 kHz, out of recordings that are fetched into a folder once."""
    found = {name: sound_of(path) for name, path in shelf.recordings(folder, _say).items()}
    pause = np.zeros(int(0.7 * RATE), np.float32)
    pieces = [found[name][int(start * RATE) : int(end * RATE)] for name, start, end in TURNS]
    return np.concatenate([pause, *(part for piece in pieces for part in (piece, pause))])


def sound_of(path: Path) -> Sound:
    """A file as one channel at 16 kHz. NotFound, BadInput."""
    return np.concatenate([block for (block,) in blocks(path, path.name)])


async def run(folder: Path, file: Path | None, as_json: bool) -> None:
    """The whole demo on a terminal: its models and its clip in `folder`, which stays. What cannot be fetched is raised
    as `shelf.fetch` says."""
    said = await asyncio.to_thread(sound_of, file) if file else None  # before 220 MB are fetched for it
    folder.mkdir(parents=True, exist_ok=True)
    repository = Repository(folder / "models")
    wanted = [name for name in (VAD, VOICE, TURN_TAKING, RECOGNISER) if name not in repository.models()]
    await asyncio.to_thread(shelf.fetch, wanted, repository, _say)
    sound = await asyncio.to_thread(two_people, folder) if said is None else said
    heard = await show(folder, sound, sys.stdout)
    if as_json:
        print(json.dumps(msgspec.to_builtins(heard)))


async def show(
    folder: Path,
    sound: Sound,
    out: TextIO,
    recogniser: str = RECOGNISER,
    voice: str = VOICE,
    clock: Clock | None = None,
) -> Heard:
    """Play the sound to a server that runs for it in `folder`, and write to `out` what it tells."""
    clock = clock or SystemClock()
    port = _free_port()
    file = folder / "millstream.toml"
    said = TOML.format(port=port, recogniser=recogniser, voice=voice, turns=TURN_TAKING if voice else "")
    file.write_text(said, encoding="utf-8")
    command = [sys.executable, "-m", "millstream", "up", "-c", str(file), "--role", "serve"]
    supervisor = Supervisor({"serve": partial(Launch, command)}, clock)
    screen = Screen(out)
    _say("starting a server, which loads its models")
    await supervisor.start()
    try:
        async with contextlib.AsyncExitStack() as stack:
            live = await _opened(f"http://127.0.0.1:{port}", clock)
            stack.push_async_exit(live)
            _say(f"listening to {len(sound) / RATE:.0f} s of sound as if they were live")
            playing = asyncio.create_task(_play(live, sound, clock))
            began = clock.monotonic()
            try:
                async for told in live:
                    screen.show(told, live.transcript, clock.monotonic() - began)
            finally:
                playing.cancel()
                await asyncio.wait([playing])
    finally:
        await supervisor.stop()
    return screen.close(live.transcript, len(sound) / RATE)


async def _opened(url: str, clock: Clock) -> Speech:
    """A session that is open, once the server answers. Misconfigured: it does not."""
    deadline = clock.monotonic() + READY_S_MAX
    while True:
        live = Speech(url, rate=RATE, clock=clock)
        try:
            return await live.__aenter__()
        except (Busy, Late) as error:
            if clock.monotonic() > deadline:
                raise Misconfigured(f"no server within {READY_S_MAX:.0f} s ({error}); its words are above") from None
            await clock.sleep(0.2)


async def _play(live: Speech, sound: Sound, clock: Clock) -> None:
    """Each piece when its last sample would have been spoken, then finish."""
    audio = np.round(np.clip(sound, -1, 1) * 32767).astype("<i2")
    began, step = clock.monotonic(), RATE * PIECE_MS // 1000
    for at in range(0, len(audio), step):
        await clock.sleep(max(0.0, began + (at + step) / RATE - clock.monotonic()))
        await live.send(audio[at : at + step].tobytes())
    await live.finish()


class Screen:
    """Lines of a terminal: the last one is written over while its words change; elsewhere only what stands is said."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._over = out, out.isatty()
        self._onset: float | None = None
        self._first: list[float] = []
        self._final: list[float] = []
        self._corrected = 0
        self._rtf = 0.0

    def show(self, told: Told, held: Transcript, now: float) -> None:
        """A message, `now` seconds after the first sample."""
        match told:
            case Vad(state="start"):
                self._onset = told.t
            case Segment():
                if told.words and self._onset is not None:
                    self._first.append(now - self._onset)
                    self._onset = None
                self._segment(told, held.lines[told.id], held, now)
            case Correction():
                self._corrected += 1
                line = held.lines[told.id]
                self._print(f"  ^ {_clock(line.start)} is {held.who(line)}: {told.reason or 'corrected'}", "2")
            case SpeakerTold(op="merge"):
                self._print(f"  ^ {told.id} was {told.into} all along", "2")
            case Metrics():
                self._rtf = told.rtf
            case _:
                pass

    def close(self, held: Transcript, seconds: float) -> Heard:
        """The last words: the transcript as it stands, and the times."""
        lines = held.shown()
        heard = Heard(
            seconds=round(seconds, 1),
            lines=len(lines),
            speakers=sorted({held.who(line) for line in lines}),
            corrections=self._corrected,
            first_words_ms=_times(self._first),
            final_ms=_times(self._final),
            rtf=self._rtf,
            text=[f"{held.who(line)}: {line.text}" for line in lines],
        )
        self._print("")
        for name, of in (
            ("first words after speech began", heard.first_words_ms),
            ("final text after it ended", heard.final_ms),
        ):
            self._print(f"{name}: median {of.median} ms, most {of.most} ms of {of.count}")
        self._print(f"{self._corrected} corrections of speakers; {self._rtf:.2f} s of computing a second of sound")
        return heard

    def _segment(self, told: Segment, line: Line, held: Transcript, now: float) -> None:
        if told.state == "final":
            self._final.append(now - told.end)
            self._print(f"{held.who(line):<10} {_clock(line.start)}  {line.text}")
        elif self._over:
            stable, loose = written(told.words[: told.stable]), written(told.words[told.stable :])
            said = f"{held.who(line):<10} {_clock(line.start)}  {stable}"
            room = shutil.get_terminal_size().columns - 1
            self._out.write(f"\r\x1b[2K{_end(said, room)}\x1b[2m {_end(loose, room - _width(said) - 1)}\x1b[0m")
            self._out.flush()

    def _print(self, said: str, style: str = "0") -> None:
        self._out.write(f"\r\x1b[2K\x1b[{style}m{said}\x1b[0m\n" if self._over else f"{said}\n")
        self._out.flush()


def _times(found: Sequence[float]) -> Times:
    ms = [round(one * 1000) for one in found]
    return Times(round(median(ms)), max(ms), len(ms)) if ms else Times(0, 0, 0)


def _end(said: str, room: int) -> str:
    """The end of a text that fits into so many columns."""
    while said and _width(said) > max(0, room):
        said = said[1:]
    return said


def _width(said: str) -> int:
    return sum(2 if east_asian_width(each) in "WF" else 1 for each in said)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60:02}:{int(seconds) % 60:02}"


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
