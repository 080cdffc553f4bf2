"""Who spoke: the confusion part of the diarization error, online, delayed, corrected and enrolled.

    MILLSTREAM_AUDIO=DIR python bench/speech/speakers.py [--models DIR] [--cache FILE] [--json]

Clips with a reference (RTTM): two mixes of read speech and a telephone call; and `made`, a meeting made of the read
voices: turns of .7 to 6 s, one in six begins while the one before still speaks, in a simulated room. Speech comes from
the reference, or from the voice activity model. What is scored: time of one speaker that the best mapping of ids gives
to another one, over all speech of the reference, with .25 s around its edges left out, overlapping speech with it.
`enrolled`: speakers are known by up to 12 s of them from other recordings (the mixes and the meeting), or by the first
half of their speech while the second is scored (the telephone call).
`overlap`: of the segments in which two speak at once for .2 s or more, those that are flagged; `in vain`: of those in
which nobody speaks beside another. Of less than .2 s a segment counts for neither.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from millstream.flows.speech.level import Level
from millstream.flows.speech.settings import FRAME, PROFILES, RATE, Profile
from millstream.flows.speech.speakers import Known, Moved, Named, Speakers, Voiced, looked
from millstream.flows.speech.speakers.windows import Windows, mean_within, united, within
from millstream.models import Model, Repository, load
from millstream.models.speech.turns import Spoken, Turns
from millstream.spoken import Word

Sound = NDArray[np.float32]
Embed = Callable[[str, Sound, int, int], NDArray[np.float32]]
Listen = Callable[[Sound], Spoken]
STEP = 0.01
COLLAR = 0.25
PIECE = 0.3
MEETINGS = (5, 6, 7, 8, 9)
"""Seeds of meetings of 120 s beside the one of 180 s."""


class Turn(NamedTuple):
    """`who` speaks from `start` to `end`, seconds."""

    start: float
    end: float
    who: str


class Clip(NamedTuple):
    """Audio with its reference; `scored` from where on; `enrolment`: by speaker, stretches of audio."""

    name: str
    sound: Sound
    turns: list[Turn]
    enrolment: dict[str, list[Sound]]
    scored: float = 0.0


# -- the score


def active(turns: Sequence[Turn], names: Sequence[str], length: float) -> NDArray[np.bool_]:
    """[frames, names]: who speaks in each frame of 10 ms."""
    found = np.zeros((int(length / STEP) + 1, len(names)), bool)
    for turn in turns:
        found[round(turn.start / STEP) : round(turn.end / STEP), names.index(turn.who)] = True
    return found


def confusion(reference: Sequence[Turn], said: Sequence[Turn], begin: float = 0.0) -> tuple[float, float]:
    """Confusion and the whole error (missed and false speech with it), as shares of the reference's speech."""
    length = max(turn.end for turn in [*reference, *said])
    names, ids = sorted({t.who for t in reference}), sorted({t.who for t in said})
    ref, hyp = active(reference, names, length), active(said, ids, length)
    scored = np.ones(len(ref), bool)
    scored[: round(begin / STEP)] = False
    for turn in reference:
        for edge in (turn.start, turn.end):
            scored[max(0, round((edge - COLLAR) / STEP)) : round((edge + COLLAR) / STEP)] = False
    ref, hyp = ref[scored], hyp[scored]
    together = ref.astype(float).T @ hyp.astype(float)
    right = best_sum(together)
    many, few = np.maximum(ref.sum(1), hyp.sum(1)).sum(), np.minimum(ref.sum(1), hyp.sum(1)).sum()
    return float((few - right) / ref.sum()), float((many - right) / ref.sum())


def best_sum(together: NDArray[np.float64]) -> float:
    """The most that a one to one mapping of rows to columns sums up to: by subsets of the fewer, exact up to 16."""
    table = together if together.shape[0] <= together.shape[1] else together.T
    rows, best = table.shape[0], {0: 0.0}
    for column in table.T:
        for mask, value in list(best.items()):
            for row in range(rows):
                if not mask >> row & 1:
                    joined = mask | 1 << row
                    best[joined] = max(best.get(joined, 0.0), value + float(column[row]))
    return max(best.values())


# -- the clips


def rttm(path: Path) -> list[Turn]:
    """The turns of a file."""
    rows = [line.split() for line in path.read_text().splitlines() if line.startswith("SPEAKER")]
    return [Turn(float(row[3]), float(row[3]) + float(row[4]), row[7]) for row in rows]


def read(path: Path) -> Sound:
    """A clip at 16 kHz."""
    import soundfile

    sound, rate = soundfile.read(path, dtype="float32", always_2d=True)
    assert rate == RATE, path
    return np.ascontiguousarray(sound.mean(axis=1), np.float32)


def mixed(audio: Path, name: str) -> Clip:
    """A mix of readers."""
    turns = rttm(audio / "mix" / f"{name}.rttm")
    names = sorted({turn.who for turn in turns})
    sound = read(audio / "mix" / f"{name}.flac")
    return Clip(name, sound, turns, {who: unheard(audio, who, sound) for who in names})


def unheard(audio: Path, who: str, sound: Sound) -> list[Sound]:
    """Audio of a reader that is not in `sound`: recordings that do not occur, else what a turn left of one: turns are
    at most 7 s."""
    found: list[Sound] = []
    occurs = finder(sound)
    for path in sorted((audio / "librispeech").glob(f"{who}-*.flac")):
        if sum(map(len, found)) < 12 * RATE:
            whole = read(path)
            rest = whole[int(7.1 * RATE) :] if occurs(whole[RATE // 2 : RATE // 2 + RATE]) else whole
            found += [rest[: 8 * RATE]] if len(rest) >= 1.6 * RATE else []
    return found


def finder(sound: Sound) -> Callable[[Sound], bool]:
    """Says whether a second of audio is somewhere in `sound`: normalised correlation over .5."""
    size = 1 << (len(sound) + RATE).bit_length()
    spectrum = np.fft.rfft(sound, size)
    energy = np.cumsum(np.append(0.0, sound.astype(np.float64) ** 2))

    def occurs(piece: Sound) -> bool:
        product = np.fft.irfft(spectrum * np.conj(np.fft.rfft(piece, size)), size)[: len(sound)]
        local = energy[np.minimum(np.arange(len(sound)) + len(piece), len(sound))] - energy[: len(sound)]
        own = (piece.astype(np.float64) ** 2).sum()
        return bool((product / np.sqrt(np.maximum(local, 1e-3) * own)).max() > 0.5)

    return occurs


def call(audio: Path) -> Clip:
    """The telephone call; enrolled by what each says alone in its first 18 s."""
    turns = rttm(audio / "pyannote-sample" / "sample.rttm")
    sound = read(audio / "pyannote-sample" / "sample.flac")
    alone: dict[str, list[Sound]] = {}
    for turn in turns:
        rest = [t for t in turns if t.who != turn.who]
        begin = max([turn.start, *(t.end for t in rest if t.start < turn.start < t.end)])
        end = min([turn.end, *(t.start for t in rest if turn.start < t.start < turn.end)])
        if turn.end < 18.1 and end - begin > 0.4:
            alone.setdefault(turn.who, []).append(sound[int(begin * RATE) : int(end * RATE)])
    return Clip("telephone", sound, turns, alone, 18.1)


def made(audio: Path, seconds: float = 180.0, seed: int = 4) -> Clip:
    """A meeting of four of the readers, as the head of this file says."""
    chance = np.random.default_rng(seed)
    readers = ["1688", "2609", "367", "533"]
    speech = {
        who: np.concatenate([read(p) for p in sorted((audio / "librispeech").glob(f"{who}-*"))]) for who in readers
    }
    at = dict.fromkeys(readers, 20 * RATE)  # the first 20 s are for enrolment
    sound, turns, clock, last = np.zeros(int((seconds + 8) * RATE), np.float32), [], 1.0, ""
    while clock < seconds:
        who = str(chance.choice([r for r in readers if r != last]))
        length = float(np.clip(chance.lognormal(0.9, 0.6), 0.7, 6.0))
        begin = clock - (chance.uniform(0.3, 1.2) if last and chance.random() < 1 / 6 else -chance.uniform(0.05, 0.8))
        begin, count = max(begin, 0.0), int(length * RATE)
        if at[who] + count > len(speech[who]):
            at[who] = 20 * RATE
        piece = speech[who][at[who] : at[who] + count] * np.hanning(count) ** 0.02
        at[who] += count
        room = chance.standard_normal(int(0.25 * RATE)) * np.exp(-np.arange(int(0.25 * RATE)) / (0.05 * RATE)) * 0.05
        room[0] = 1.0
        heard = np.convolve(piece, room)[:count] * chance.uniform(0.4, 1.0)
        sound[int(begin * RATE) : int(begin * RATE) + count] += heard.astype(np.float32)
        turns.append(Turn(begin, begin + length, who))
        clock, last = max(clock, begin + length), who
    sound += chance.standard_normal(len(sound)).astype(np.float32) * 0.001
    return Clip(f"made {seed}", sound, turns, {who: [speech[who][: 12 * RATE]] for who in readers})


def levelled(clip: Clip) -> Clip:
    """As a session hears it."""
    level = Level()
    heard = level.feed(np.pad(clip.sound, (0, -len(clip.sound) % FRAME)))
    return clip._replace(sound=np.concatenate([heard, level.flush()])[: len(clip.sound)])


# -- a session over a clip


def regions(clip: Clip) -> list[tuple[float, float]]:
    """Where anybody speaks, by the reference."""
    found: list[list[float]] = []
    for turn in sorted(clip.turns):
        if found and turn.start <= found[-1][1]:
            found[-1][1] = max(found[-1][1], turn.end)
        else:
            found.append([turn.start, turn.end])
    return [(a, b) for a, b in found]


def newest(models: Path, name: str) -> Model:
    """A model of the repository, its latest version."""
    repository = Repository(models)
    return load(repository, name, repository.versions(name)[-1])


def vad_regions(clip: Clip, models: Path) -> list[tuple[float, float]]:
    """Where the voice activity model hears speech: from .5 on until under .35."""
    from millstream.models.speech.vad import Vad

    model = Vad(newest(models, "silero-vad"))
    told, _ = model.probabilities(clip.sound[: len(clip.sound) // FRAME * FRAME], model.fresh())
    found, begin = [], -1
    for k, chance in enumerate([*told.tolist(), 0.0]):
        if begin < 0 and chance >= 0.5:
            begin = k
        elif begin >= 0 and chance < 0.35:
            found.append((begin * FRAME / RATE, k * FRAME / RATE))
            begin = -1
    return found


def segments(speech: Sequence[tuple[float, float]], profile: Profile) -> list[list[Word]]:
    """Pieces of .3 s of speech as its words, cut into segments at pauses as a session does."""
    words, hangover, longest = [], profile.hangover_ms / 1000, profile.segment_s_max
    for begin, end in speech:
        count = max(1, round((end - begin) / PIECE))
        edges = np.linspace(begin, end, count + 1)
        words += [Word("-", float(a), float(b)) for a, b in itertools.pairwise(edges)]
    found: list[list[Word]] = []
    for word in words:
        if found and word.start - found[-1][-1].end < hangover and word.end - found[-1][0].start < longest:
            found[-1].append(word)
        else:
            found.append([word])
    return found


class Outcome(NamedTuple):
    """Who spoke as it was shown first and as it ended; how many segments, corrections and ids there were; `flags`: of
    each segment its first and last second, and whether it was flagged as overlapping speech."""

    first: list[Turn]
    last: list[Turn]
    segments: int
    corrections: int
    ids: int
    cpu_s: float
    flags: list[tuple[float, float, bool]]


def session(
    clip: Clip, speech: Sequence[tuple[float, float]], embed: Embed, speakers: Speakers,
    listen: Listen = lambda sound: Spoken([], []), profile: Profile = PROFILES["meeting"],
) -> Outcome:  # fmt: skip
    """A clip from its first to its last sample, cut as the profile says."""
    shown: dict[str, tuple[list[Word], str, str]] = {}
    ids: set[str] = set()
    into: dict[str, str] = {}
    moved, cpu = 0, 0.0
    flags: list[tuple[float, float, bool]] = []

    def take(changes: Sequence[Named | Moved]) -> None:
        nonlocal moved
        for change in changes:
            if isinstance(change, Moved):
                words, first, _ = shown[change.segment]
                moved += speakers.policy == "correctable"
                first = change.speaker.id if speakers.policy == "delayed" else first
                shown[change.segment] = words, first, change.speaker.id
            elif change.op == "merge":
                into[change.id] = change.into

    for number, words in enumerate(segments(speech, profile)):
        start, end = int(words[0].start * RATE), int(words[-1].end * RATE)
        wanted = speakers.wants(start, end, closed=True)
        voices = [Voiced(a, b, embed(clip.name, clip.sound, a, b)) for a, b in wanted]
        windows = speakers.looks(start, end, closed=True)
        seen = looked(windows, [listen(clip.sound[a:b]) for a, b in windows])
        begin = time.process_time()
        now = end + profile.hangover_ms * RATE // 1000
        take(speakers.due(now))
        for k, run in enumerate(speakers.split(words, voices, start, end, seen)):
            segment = f"{number}.{k}"
            told = speakers.hear(segment, run.start, run.end, voices, now, seen)
            flags.append((run.start / RATE, run.end / RATE, told.speaker.overlap))
            take(told.told)
            shown[segment] = words[run.first : run.last], told.speaker.id, told.speaker.id
            ids.add(told.speaker.id)
        cpu += time.process_time() - begin
    take(speakers.end(len(clip.sound)))

    def resolved(ident: str) -> str:
        while ident in into:
            ident = into[ident]
        return ident

    first = [Turn(w.start, w.end, who) for words, who, _ in shown.values() for w in words if who]
    last = [Turn(w.start, w.end, resolved(who)) for words, _, who in shown.values() for w in words if who]
    return Outcome(first, last, len(shown), moved, len({t.who for t in last}), cpu, flags)


def flagged(clip: Clip, flags: Sequence[tuple[float, float, bool]]) -> tuple[int, int, int, int]:
    """Segments in which two speak at once and that are flagged; that are not; flagged ones in which nobody does; and
    all of those."""
    turns = [(int(turn.start * RATE), int(turn.end * RATE)) for turn in clip.turns]
    both = united(
        (max(a, c), min(b, d)) for k, (a, b) in enumerate(turns) for c, d in turns[:k] if max(a, c) < min(b, d)
    )
    right = missed = wrong = single = 0
    for start, end, flag in flags:
        lasts = within(both, int(start * RATE), int(end * RATE)) / RATE
        right += flag and lasts >= 0.2
        missed += not flag and lasts >= 0.2
        wrong += flag and not lasts
        single += not lasts
    return right, missed, wrong, single


def known(clip: Clip, embed: Embed) -> list[Known]:
    """Its speakers, enrolled."""
    found = []
    for who, stretches in sorted(clip.enrolment.items()):
        voices, begin = [], 0
        for k, part in enumerate(stretches):
            for a, b in Windows().wanted(0, len(part), closed=True):
                voices.append(Voiced(begin + a, begin + b, embed(f"{clip.name} {who} {k}", part, a, b)))
            begin += len(part)
        mean, seconds, alike, _ = mean_within(voices, 0, begin)
        found.append(Known(who, mean, alike, seconds))
    return found


def embedder(models: Path, cache: Path | None) -> tuple[Embed, Callable[[], None], dict[str, float]]:
    """The voice of a window by the model in `models`; what was computed before comes from `cache`."""
    from millstream.models.speech.voice import Voice

    model = Voice(newest(models, "wespeaker"))
    held = dict(np.load(cache)) if cache and cache.exists() else {}
    spent = {"windows": 0.0, "cpu_s": 0.0}

    def embed(name: str, sound: Sound, a: int, b: int) -> NDArray[np.float32]:
        key = f"{name}|{a}|{b}".replace("/", "_")
        if key not in held:
            begin = time.process_time()
            held[key] = model.embed([sound[a:b]])[0]
            spent["windows"] += 1
            spent["cpu_s"] += time.process_time() - begin
        return held[key]

    def keep() -> None:
        if cache:
            np.savez(cache, **held)

    return embed, keep, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=os.environ.get("MILLSTREAM_SPEECH_MODELS"))
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    audio = os.environ.get("MILLSTREAM_AUDIO")
    if not audio or not args.models:
        sys.exit("set MILLSTREAM_AUDIO to the folder of clips, and --models to what `millstream speech fetch` made")
    embed, keep, spent = embedder(Path(args.models), args.cache)
    clips = [mixed(Path(audio), "mix2a"), mixed(Path(audio), "mix3a"), call(Path(audio)), made(Path(audio))]
    clips = [levelled(clip) for clip in [*clips, *(made(Path(audio), 120.0, seed) for seed in MEETINGS)]]
    listen, turned = listener(Path(args.models))
    rows = measured(clips, embed, listen, Path(args.models))
    keep()
    if args.json:
        print(json.dumps(rows))
        return
    print(table(rows), end="\n\n")
    for line in sums(rows):
        print(line)
    each = [f"{1e3 * one['cpu_s'] / one['windows']:.0f} ms" for one in (spent, turned) if one["windows"]]
    if len(each) == 2:  # nothing came from a cache
        print(f"- CPU: {each[0]} a window of 1.6 s for its voice, each .8 s; {each[1]} a look at up to 10 s, each 5 s.")


def listener(models: Path) -> tuple[Listen, dict[str, float]]:
    """Turns, by the model in `models`."""
    model, spent = Turns(newest(models, "pyannote")), {"windows": 0.0, "cpu_s": 0.0}
    known: dict[bytes, Spoken] = {}

    def listen(sound: Sound) -> Spoken:
        key = hashlib.sha256(sound.tobytes()).digest()
        if key not in known:
            begin = time.process_time()
            (known[key],) = model.spoken([sound])
            spent["windows"] += 1
            spent["cpu_s"] += time.process_time() - begin
        return known[key]

    return listen, spent


def measured(clips: Sequence[Clip], embed: Embed, listen: Listen, models: Path) -> list[dict[str, str | float]]:
    """A row for each clip, source of speech, and profile."""
    rows: list[dict[str, str | float]] = []
    for clip in clips:
        sources = {"reference": regions(clip), "vad": vad_regions(clip, models)}
        for name, (source, speech) in itertools.product(("caption", "meeting"), sources.items()):

            def heard(speakers: Speakers, speech: Any = speech, clip: Clip = clip, name: str = name) -> Outcome:
                return session(clip, speech, embed, speakers, listen, PROFILES[name])

            free, late = heard(Speakers("correctable")), heard(Speakers("delayed"))
            names = heard(Speakers("enrolled", known=known(clip, embed)))
            right, missed, wrong, single = flagged(clip, free.flags)
            row: dict[str, str | float] = {"clip": clip.name, "cut": name, "speech": source}
            row |= {"speakers": len({t.who for t in clip.turns}), "found": free.ids}
            row |= {"online": confusion(clip.turns, free.first)[0], "corrected": confusion(clip.turns, free.last)[0]}
            row |= {"delayed": confusion(clip.turns, late.last)[0]}
            row |= {"enrolled": confusion(clip.turns, names.last, clip.scored)[0]}
            row |= {"segments": free.segments, "corrections": free.corrections}
            row |= {"overlap": f"{right} of {right + missed}", "in vain": f"{wrong} of {single}"}
            rows.append(row)
    return rows


def table(rows: Sequence[dict[str, str | float]]) -> str:
    """In Markdown."""
    names = list(rows[0])
    lines = [[f"{100 * v:.1f} %" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    head = [names, ["-", "-", "-", *["-:"] * (len(names) - 3)]]
    return "\n".join(f"| {' | '.join(line)} |" for line in [*head, *lines])


def sums(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Beside the bounds."""
    found = []
    kinds = list(itertools.product(("caption", "meeting"), ("reference", "vad")))
    for what, clip, column, most in (
        ("mixes, corrected", "mix", "corrected", 0.02),
        ("made meetings, corrected, mean", "made", "corrected", 0.05),
        ("enrolled, mean of all clips", "", "enrolled", 0.03),
    ):
        told, missed = [], False
        for kind in kinds:
            each = [row[column] for row in rows if row["clip"].startswith(clip) and (row["cut"], row["speech"]) == kind]
            missed |= bool(np.mean(each) >= most)
            told.append(f"{', '.join(kind)} {100 * np.mean(each):.1f} % (most {100 * max(each):.1f})")
        found.append(f"- {what}: {'; '.join(told)}; bound {100 * most:.0f} %{': missed' if missed else ''}.")
    for kind in kinds:
        mine = [row for row in rows if (row["cut"], row["speech"]) == kind]
        (right, both), (wrong, single) = (
            tuple(sum(int(row[column].split()[k]) for row in mine) for k in (0, 2)) for column in ("overlap", "in vain")
        )
        found.append(
            f"- overlap, {', '.join(kind)}: {right} of {both} segments found in which two speak for .2 s; {wrong} of "
            f"{single} flagged in which nobody does."
        )
    return found


if __name__ == "__main__":
    main()
