"""Voices that have names: the file of an installation that keeps them, and what a recording must be to enrol one.

Rules of the room:
- The file holds what a voice is like, never audio; only its owner may read it.
- Voices of two models cannot be compared: the file names the model of each, and another one is refused.
- It is replaced whole, under a lock: whoever reads it sees all of an enrolment or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.errors import BadInput, Corrupt, Later, Misconfigured, NotFound, TooLarge
from millstream.flows.speech.settings import RATE
from millstream.flows.speech.speakers.cluster import USUAL, Scale, share
from millstream.flows.speech.speakers.windows import LEAST, Voiced, Windows, grouped, mean_within
from millstream.models.speech.voice import SIZE
from millstream.store import blob

FORMAT: Final = 1
SPEECH_S_MIN: Final = 5.0
VOICES_MAX: Final = 500
OTHERS: Final = 0.15
"""Share of a recording that may sound like somebody else: a cough, a door, a word from aside."""

NEAR: Final = 0.8
"""A voice that is so near to what would be another one's, as a share of it, is warned of."""

_AGAIN = (
    "the two cannot be compared. Forget and enrol them again: millstream speech unenrol NAME, then enrol NAME FILE..."
)

Embed = Callable[[Sequence[NDArray[np.float32]]], NDArray[np.float32]]
"""Windows of audio, float32 [n] each, to their voices: [windows, d], each of length one."""


class Known(NamedTuple):
    """An enrolled voice: its name, the mean of its windows (float32 [d], shorter than one), how alike they are to each
    other, and seconds of speech."""

    name: str
    voice: NDArray[np.float32]
    alike: float
    seconds: float


class Enrolment(msgspec.Struct, frozen=True):
    """What was made of a recording. `alike`: how alike its windows are, 0 .. 1; `nearest`: the other enrolled name that
    is most like it, and how much; `warning`: why that is a risk, or ""."""

    name: str
    seconds: float
    windows: int
    alike: float
    nearest: str = ""
    likeness: float = 0.0
    warning: str = ""


class _Entry(msgspec.Struct, frozen=True):
    name: str
    model: str
    voice: bytes
    alike: float
    seconds: float
    at: float


class _Form(msgspec.Struct, frozen=True):
    format: int


class _File(_Form, frozen=True, kw_only=True):
    voices: list[_Entry] = []
    format: int = FORMAT


def nearest(
    known: Sequence[Known], voice: NDArray[Any], of: Scale, seconds: float
) -> tuple[Known | None, float, float, float]:
    """The enrolled voice that `seconds` of speech are most like, how much, how much like the next, and what is at least
    the same: a share of what both are like to themselves. None are enrolled: None and -1."""
    if not known:
        return None, -1.0, -1.0, of.bound(seconds)
    likeness = np.stack([k.voice for k in known]).astype(np.float64) @ voice.astype(np.float64)
    order = np.argsort(-likeness, kind="stable")
    best = known[int(order[0])]
    second = float(likeness[order[1]]) if len(known) > 1 else -1.0
    own = float(np.sqrt(of.same * max(best.alike, 0.1)))
    return best, float(likeness[order[0]]), second, share(seconds) * own


def load(path: Path, model: str) -> list[Known]:
    """The enrolled voices, by name; no file: none. `model`: what told the voices, such as "wespeaker/1"; those of
    another one are Misconfigured, and so are voices of another size; Later: a later Millstream wrote the file."""
    found = _read(path).voices
    other = sorted({entry.model for entry in found} - {model})
    if other:
        names = ", ".join(entry.name for entry in found if entry.model != model)
        raise Misconfigured(
            f"{path}: {names}: enrolled with {', '.join(other)}, and {model} tells voices here: {_AGAIN}"
        )
    if odd := [entry for entry in found if len(entry.voice) != SIZE * 4]:
        raise Misconfigured(
            f"{path}: {', '.join(entry.name for entry in odd)}: voices of {len(odd[0].voice) // 4} numbers, and a "
            f"voice has {SIZE} here: {_AGAIN}"
        )
    return [Known(e.name, np.frombuffer(e.voice, np.float32), e.alike, e.seconds) for e in found]


def listed(path: Path) -> list[dict[str, str | float]]:
    """What is enrolled: name, model, seconds of speech and when (seconds since 1970), by name."""
    return [{"name": e.name, "model": e.model, "seconds": e.seconds, "at": e.at} for e in _read(path).voices]


def remove(path: Path, name: str) -> None:
    """Forget a voice. NotFound: it is not enrolled."""
    with blob.locked(_lock(path)):
        file = _read(path)
        kept = [entry for entry in file.voices if entry.name != name]
        if len(kept) == len(file.voices):
            names = ", ".join(entry.name for entry in kept) or "nobody"
            raise NotFound(f"{path}: no voice {name!r} is enrolled; there are: {names}")
        _write(path, kept)


def enrol(
    path: Path, name: str, speech: Sequence[NDArray[np.float32]], embed: Embed, model: str, at: float
) -> Enrolment:
    """Keep the voice of `speech`, stretches of audio without their silence, under a name; what it had before is
    replaced. BadInput: too little speech, two voices in it, or a voice that is enrolled under another name."""
    if not name.strip() or name != name.strip() or len(name) > 64 or not name.isprintable():
        raise BadInput(f"speech enrol: {name!r} is no name: 1 to 64 printable characters, no spaces around them")
    speech = [part for part in speech if len(part) >= LEAST]
    seconds = sum(len(part) for part in speech) / RATE
    if seconds < SPEECH_S_MIN:
        raise BadInput(f"speech enrol {name}: {seconds:.1f} s of speech, it takes {SPEECH_S_MIN:g} s: give more audio")
    made, windows = _listen(name, speech, embed, seconds)
    with blob.locked(_lock(path)):
        others = [known for known in load(path, model) if known.name != name]
        if len(others) >= VOICES_MAX:
            raise TooLarge(f"{path}: {len(others)} voices are enrolled, the most there may be; remove one first")
        result = _compared(made, others, windows)
        entry = _Entry(name, model, made.voice.tobytes(), made.alike, made.seconds, at)
        kept = [e for e in _read(path).voices if e.name != name]
        _write(path, sorted([*kept, entry], key=lambda e: e.name))
    return result


def _listen(name: str, speech: Sequence[NDArray[np.float32]], embed: Embed, seconds: float) -> tuple[Known, int]:
    sounds, voices = [], []
    begin = 0
    for part in speech:
        wanted = Windows().wanted(0, len(part), closed=True)
        sounds += [part[a:b] for a, b in wanted]
        voices += [(begin + a, begin + b) for a, b in wanted]
        begin += len(part)
    told = embed(sounds)
    windows = [Voiced(a, b, voice) for (a, b), voice in zip(voices, told, strict=True)]
    mean, _, alike, _ = mean_within(windows, 0, begin)
    others = 1 - np.bincount(grouped(windows, Scale(USUAL))).max() / len(windows)
    if others > OTHERS:
        raise BadInput(
            f"speech enrol {name}: {others:.0%} of the recording sounds like somebody else: enrol a recording in which "
            "one person speaks, without music"
        )
    return Known(name, mean, alike, round(seconds, 2)), len(windows)


def _compared(made: Known, others: Sequence[Known], windows: int) -> Enrolment:
    other, likeness, _, bound = nearest(others, made.voice, Scale(made.alike), made.seconds)
    if other is None:
        return Enrolment(made.name, made.seconds, windows, round(made.alike, 3))
    if likeness >= bound:
        raise BadInput(
            f"speech enrol {made.name}: sounds like {other.name}, who is enrolled (likeness {likeness:.2f}, one voice "
            f"from {bound:.2f} on): sessions could not tell them apart. If it is the same person, remove that name "
            "first; else enrol both from other recordings"
        )
    warning = f"sounds like {other.name}: brief segments may be mixed up" if likeness >= NEAR * bound else ""
    return Enrolment(made.name, made.seconds, windows, round(made.alike, 3), other.name, round(likeness, 3), warning)


def _lock(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f"{path.name}.lock")


def _read(path: Path) -> _File:
    try:
        data = path.read_bytes()
        if (said := msgspec.msgpack.decode(data, type=_Form).format) > FORMAT:
            raise Later(path, said, FORMAT)
        return msgspec.msgpack.decode(data, type=_File)
    except FileNotFoundError:
        return _File()
    except msgspec.MsgspecError as error:
        raise Corrupt(
            f"{path}: not a file of enrolled voices ({error}): restore it, or remove it and enrol again"
        ) from error


def _write(path: Path, voices: list[_Entry]) -> None:
    blob.write_atomic(path, msgspec.msgpack.encode(_File(voices=voices)), mode=0o600)
