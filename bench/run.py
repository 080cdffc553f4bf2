"""Run the benchmarks one after the other and keep their tables: `make bench`, or `make bench ARGS="log serving"`.

Each part is a program of its own, with `--help`. What it prints goes to bench/results/PART.md, with the command, the
machine, its load and the date, so that a figure can be found again and argued with.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

BENCH = Path(__file__).resolve().parent
MILLSTREAM = str(Path(sys.executable).parent / "millstream")
WEIGHTS = os.environ.get("MILLSTREAM_SPEECH_MODELS") or str(Path(sys.prefix) / "speech-models")
"""What `make` fetches for live speech; its clips are where MILLSTREAM_AUDIO says."""


def speech(name: str, *options: str) -> list[str]:
    """A benchmark of live speech."""
    return [sys.executable, f"bench/speech/{name}.py", "--models", WEIGHTS, *options]


PARTS: dict[str, tuple[str, list[str]]] = {
    "startup": ("What a start costs", [sys.executable, "bench/startup.py"]),
    "log": ("The event log", [sys.executable, "bench/log.py"]),
    "join": ("The join", [sys.executable, "bench/join.py"]),
    "learners": ("The learner beside Vowpal Wabbit and River", [sys.executable, "bench/learners.py"]),
    "deepfm": ("Models that keep learning beside themselves frozen", [sys.executable, "bench/deepfm.py"]),
    "learning": ("The whole loop at log time", [sys.executable, "bench/learning.py"]),
    "freshness": (
        "What freshness is worth",
        [sys.executable, "bench/freshness.py", "--page", "docs/freshness.md", "--plots", "bench/results"],
    ),
    "pressure": ("The whole loop under load", [sys.executable, "bench/pressure.py"]),
    "serving": (
        "Serving beside the fixed floor and other servers",
        [sys.executable, "bench/serving", "--seconds", "3", "--plot", "bench/results/serving.svg"],
    ),
    "generator": ("What one load generator can send", [sys.executable, "bench/generator.py"]),
    "grpc_echo": ("A gRPC call that carries bytes", [sys.executable, "bench/grpc_echo.py"]),
    "straggler": ("Short utterances among long ones", [sys.executable, "bench/serving/straggler.py"]),
    "overload": ("Twice what can be computed", [sys.executable, "bench/serving/overload.py"]),
    "reload": ("Reloads, roll backs and shadows under load", [sys.executable, "bench/serving/reload.py"]),
    "sizes": ("What an install weighs", [sys.executable, "bench/sizes.py"]),
    "formats": ("A model in a process of its own", [sys.executable, "bench/formats.py"]),
    "features": ("The feature store beside Feast", [sys.executable, "bench/features"]),
    "recall": ("Recall beside implicit, and a million items", [sys.executable, "bench/recall.py"]),
    "scale": ("A million items and ten million", [sys.executable, "bench/scale.py"]),
    "ranking": ("Ranking beside pure ONNX Runtime", [sys.executable, "bench/ranking.py"]),
    "curation": ("Review queues", [sys.executable, "bench/curation.py"]),
    "arms": ("Whether a report finds the better rules", [sys.executable, "bench/arms.py"]),
    "experiments": ("Experiments that are looked at every day", [sys.executable, "bench/experiments.py"]),
    "reports": ("A report of a large log", [sys.executable, "bench/reports.py"]),
    "batches": ("Lists for many at once", [sys.executable, "bench/batches.py"]),
    "shards": ("Recall over several processes", [sys.executable, "bench/shards.py"]),
    "watch": ("What watching costs and finds", [sys.executable, "bench/watch.py"]),
    "traces": ("How long the story of a request is looked for", [sys.executable, "bench/traces.py"]),
    "lists": ("Whole lists under load", [sys.executable, "bench/lists.py", "--items", "200000"]),
    "console": ("The console with a million events behind it", [sys.executable, "bench/console.py"]),
    "speech_models": ("Recognisers on clips", speech("models")),
    "speech_wer": ("Live text beside offline text", speech("wer")),
    "speech_level": ("Quiet speech and the voice detector", speech("level")),
    "speech_offline": ("Recordings transcribed", speech("offline")),
    "speech_voices": ("Voices told apart", speech("voices")),
    "speech_speakers": ("Who spoke", speech("speakers")),
    "speech_streams": ("Live sessions of a core, beside another streaming loop", speech("streams")),
    "speech_load": ("A hundred live sessions", speech("sessions")),
    "demo": ("The live demo, real time", [MILLSTREAM, "demo", "--seconds", "125", "--json", "--http-port", "0"]),
}

GROUPS = {
    "recommend": ["recall", "ranking", "lists", "arms", "reports", "batches", "shards", "scale"],
    "speech": [
        "speech_models",
        "speech_wer",
        "speech_level",
        "speech_offline",
        "speech_voices",
        "speech_speakers",
        "speech_streams",
        "speech_load",
    ],
    "trust": ["watch", "experiments", "console", "traces", "curation"],
}

# Parts that print tables of markdown, not of text.
MARKDOWN = {
    "freshness",
    "serving",
    "straggler",
    "overload",
    "reload",
    "sizes",
    "formats",
    "features",
    "watch",
    "speech_models",
    "speech_wer",
    "speech_level",
    "speech_offline",
    "speech_voices",
    "speech_speakers",
}


def processor() -> str:
    """The processor's name where Linux tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def run(part: str) -> bool:
    """Run one part, show it and keep it; whether it succeeded."""
    title, command = PARTS[part]
    load = os.getloadavg()[0]
    done = subprocess.run(command, cwd=BENCH.parent, capture_output=True, text=True)
    names = {sys.executable: "python", MILLSTREAM: "millstream", WEIGHTS: "MODELS"}
    shown = " ".join(names.get(word, word) for word in command)
    said = (done.stdout.strip() or done.stderr.strip()).replace(tempfile.gettempdir(), "$TMPDIR")
    print(f"== {title}\n{said}\n", flush=True)
    if done.returncode != 0:
        print(f"{part} failed ({done.returncode}):\n{done.stderr}", file=sys.stderr)
        return False
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    machine = f"{processor()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    body = said if part in MARKDOWN else f"```\n{said}\n```"
    text = f"# {title}\n\n`{shown}`  \n{today}; {machine}; load before it {load:.2f}\n\n{body}\n"
    (BENCH / "results").mkdir(exist_ok=True)
    (BENCH / "results" / f"{part}.md").write_text(text)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*PARTS, *GROUPS]
    parser.add_argument("parts", nargs="*", choices=[*names, []], help=f"which (default: all): {', '.join(names)}")
    named = parser.parse_args().parts or list(PARTS)
    parts = [part for name in named for part in GROUPS.get(name, [name])]
    failed = [part for part in parts if not run(part)]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
