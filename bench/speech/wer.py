"""Live text beside offline text of the same model: words wrong, how soon, how often changed; and the laws of time.

    MILLSTREAM_AUDIO=CLIPS python bench/speech/wer.py [--models DIR] [--recogniser whisper-base] [--few N] [--json]

First table: clips with transcripts. "offline": each a file, through the code of `millstream transcribe`; the others
are live sessions as a client hears them, in messages of 20 ms at the pace of speech, on a clock of their own on which
every call of the recogniser takes the CPU time that it took here, one thread; the words are those of the final texts.
Changed: words that were shown and changed before they were final, a final word. RTF: CPU seconds a second of audio,
everything.

Second table: clips whose stretches of speech are labelled. First words: from the labelled onset to the first text of
that segment; final: from the labelled end of speech to the final text, on that clock too. p50 / p95 / p99.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from offline import file_of, text
from streaming import CAPTION, QUANTILES, live, measured

from millstream.app.transcribing import Source, offline
from millstream.flows.speech.measured import Numbers
from millstream.flows.speech.offline import PROFILE
from millstream.flows.speech.settings import RATE, Profile
from millstream.meter import Meter
from millstream.models.model import Model, load
from millstream.models.repository import Repository
from millstream.models.speech.vad import Vad
from millstream.spoken import Segment
from models import Clip, cer, clips, wer

WAYS: dict[str, dict[str, Any]] = {
    "live, 1 s": {"step_ms": 992, "look_ahead_ms": 1500},
    "live, .5 s": {"step_ms": 512, "look_ahead_ms": 1500},
}
GAP_MAX, FIRST_S_MAX = 1.5, {"live, 1 s": 1.3, "live, .5 s": 1.0}
ALONE: dict[str, Any] = {"speakers": "none", "instant": False}


class Timed:
    """A model, and what each of its calls took: CPU seconds, by the width of its beam."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.took: dict[int, list[float]] = {}

    def predict(self, inputs: Any) -> Any:
        began = time.process_time()
        found = self._model.predict(inputs)
        self.took.setdefault(int(inputs["beam"][0]), []).append(time.process_time() - began)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


async def whole(models: Path, recogniser: str, given: list[Clip]) -> dict[str, Any]:
    """The row of `millstream transcribe --language --personal`: numbers are not masked, as they are not in `live`."""
    async with offline(Source(models=models, recogniser=recogniser, voice="", personal=True), PROFILE) as through:
        await through.transcribe(file_of(given[0].sound), "warm")
        began = time.process_time()
        told = await asyncio.gather(
            *(through.transcribe(file_of(clip.sound), clip.name, language(clip)) for clip in given)
        )
        took = time.process_time() - began
    pairs: dict[str, list[tuple[str, str]]] = {"en": [], "zh": []}
    for clip, one in zip(given, told, strict=True):
        pairs[language(clip)].append((clip.said, text(one)))
    seconds = sum(len(clip.sound) for clip in given) / RATE
    return {"wer": round(wer(pairs["en"]), 1), "cer_zh": round(cer(pairs["zh"]), 1), "rtf": round(took / seconds, 3)}


def language(clip: Clip) -> str:
    """What is spoken in it."""
    return "zh" if clip.name.startswith("zh/") else "en"


def labelled(folder: Path) -> list[tuple[Clip, list[tuple[float, float]]]]:
    """Clips, and where somebody speaks in each, in seconds."""
    found = []
    for path in sorted((folder / "vad").glob("*.scv")):
        cells = path.read_text().strip().split(",")[1:]
        stretches = zip(cells[::3], cells[1::3], cells[2::3], strict=True)
        marks = [(float(begin), float(end)) for begin, end, kind in stretches if kind == "1"]
        sound, _ = soundfile.read(path.with_suffix(".flac"), dtype="float32")
        found.append((Clip(f"vad/{path.stem}", "", np.asarray(sound, np.float32)), marks))
    return found


def times(model: Model, vad: Vad, way: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A row of the second table."""
    profile = Profile(**{**CAPTION, **ALONE, **way})
    firsts: list[float] = []
    ends: list[float] = []
    for clip, marks in labelled(folder):
        told, _ = asyncio.run(live(model, vad, profile, clip, Numbers(Meter())))
        seen: set[str] = set()
        last = 0.0
        for at, one in told:
            if not isinstance(one, Segment) or not one.words:
                continue
            inside = [mark for mark in marks if mark[0] < one.end + 0.1 and mark[1] > max(one.start - 0.1, last)]
            if one.id not in seen and inside and inside[0][0] >= last:
                firsts.append(at - inside[0][0])
            seen.add(one.id)
            if one.state == "final":
                if inside and inside[-1][1] < at:
                    ends.append(at - inside[-1][1])
                last = one.end
    return {
        "first_s": [round(float(q), 2) for q in np.quantile(firsts, QUANTILES)],
        "final_s": [round(float(q), 2) for q in np.quantile(ends, QUANTILES)],
        "hangover_s": profile.hangover_ms / 1000,
        "segments": len(ends),
    }


def slashed(found: list[float]) -> str:
    """p50 / p95 / p99."""
    return " / ".join(f"{each:.2f}" if isinstance(each, float) else str(each) for each in found)


def report(result: dict[str, Any]) -> str:
    """The tables."""
    rows, late, took = result["rows"], result["times"], result["took_ms"]
    plain = rows["offline"]["wer"]
    lines = [
        f"{result['clips']} clips, {result['seconds']:.0f} s; {result['recogniser']}. Load of the machine: "
        f"{result['load'][0]} before, {result['load'][1]} after. "
        f"CPU ms of a hypothesis: {slashed(took['1'])}, of a final text: {slashed(took['5'])} (p50 / p95 / p99).",
        "",
        "| | WER % | gap to offline | CER % (zh) | changed words a final word | calls a second | RTF |",
        "|-|-:|-:|-:|-:|-:|-:|",
    ]
    for name, row in rows.items():
        gap = "" if name == "offline" else f"{row['wer'] - plain:+.1f}"
        changed, calls = row.get("changed", ""), row.get("calls_s", "")
        lines.append(f"| {name} | {row['wer']} | {gap} | {row['cer_zh']} | {changed} | {calls} | {row['rtf']} |")
    lines += [
        "",
        "| labelled clips | first words s, p50 / p95 / p99 | bound, p95 | final text s, p50 / p95 / p99 | bound, p95 |",
        "|-|-:|-:|-:|-:|",
    ]
    for name, row in late.items():
        bound = row["hangover_s"] + 0.4
        lines.append(
            f"| {name}, {row['segments']} segments | {slashed(row['first_s'])} | {FIRST_S_MAX[name]} | "
            f"{slashed(row['final_s'])} | {bound:.2f} |"
        )
    missed = [
        f"WER of {name!r} is {row['wer'] - plain:.1f} points over offline, at most {GAP_MAX} wanted"
        for name, row in rows.items()
        if row["wer"] - plain >= GAP_MAX
    ]
    for name, row in late.items():
        if row["first_s"][1] >= FIRST_S_MAX[name]:
            missed.append(f"first words of {name!r} after {row['first_s'][1]} s, {FIRST_S_MAX[name]} wanted")
        if row["final_s"][1] >= row["hangover_s"] + 0.4:
            missed.append(f"final texts of {name!r} after {row['final_s'][1]} s, {row['hangover_s'] + 0.4:.2f} wanted")
    return "\n".join([*lines, "", "Bounds missed: " + ("; ".join(missed) if missed else "none") + "."])


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed."""
    audio = Path(os.environ["MILLSTREAM_AUDIO"])
    load_before = round(os.getloadavg()[0], 1)
    repository = Repository(args.models)
    vad = Vad(load(repository, "silero-vad", repository.policy("silero-vad").live))
    model: Any = Timed(load(repository, args.recogniser, repository.policy(args.recogniser).live))
    given = [clip for clip in clips(audio) if not clip.name.startswith("fsdd/")]
    given = [clip for clip in given if not clip.name.startswith("zh/")][:: args.few] + [
        clip for clip in given if clip.name.startswith("zh/")
    ]
    rows = {"offline": asyncio.run(whole(args.models, args.recogniser, given))}
    late = {}
    for name, way in WAYS.items():
        rows[name] = measured(model, vad, {**ALONE, **way}, given)
        rows[name].pop("texts")
        print(name, rows[name], file=sys.stderr)
        late[name] = times(model, vad, way, audio)
    calls: dict[int, list[float]] = model.took
    return {
        "recogniser": args.recogniser,
        "clips": len(given),
        "seconds": sum(len(clip.sound) for clip in given) / RATE,
        "load": [load_before, round(os.getloadavg()[0], 1)],
        "took_ms": {
            str(beam): [round(1000 * float(q)) for q in np.quantile(took, QUANTILES)] for beam, took in calls.items()
        },
        "rows": rows,
        "times": late,
    }


def main() -> None:
    """The tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path(sys.prefix) / "speech-models")
    parser.add_argument("--recogniser", default="whisper-base")
    parser.add_argument("--few", type=int, default=1, help="every so many of the English clips")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if "MILLSTREAM_AUDIO" not in os.environ:
        parser.error("no clips: set MILLSTREAM_AUDIO to their folder")
    result = run(args)
    print(json.dumps(result) if args.json else report(result))


if __name__ == "__main__":
    main()
