"""Take the pictures of the console that README and docs show, from the demo as anybody runs it: `make shots`.

    python tests/console/take_shots.py [NAME ...] [--into docs/images] [--seconds 75] [--rate 200]

The demo replays MovieLens meanwhile, and a service of its own hears two people, with the weights that `make test-all`
fetches; Chromium is the machine's own.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import wave
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright

from millstream.demo.speech import two_people

ROOT = Path(__file__).parents[2]
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
ARGS += ["--autoplay-policy=no-user-gesture-required"]
BYTES_MAX = 300_000
READY_S_MAX = 180.0
WIDE, PHONE = (1280, 800), (390, 844)
# name of the picture: page, language, theme, size
SHOTS = {
    "overview": ("", "en", "light", WIDE),
    "recommend": ("recommend", "en", "light", WIDE),
    "learning": ("learning", "en", "dark", WIDE),
    "traffic": ("traffic", "en", "light", WIDE),
    "review": ("review", "en", "light", WIDE),
    "overview-zh": ("", "zh", "light", WIDE),
    "recommend-zh": ("recommend", "zh", "light", WIDE),
    "learning-zh": ("learning", "zh", "dark", WIDE),
    "recommend-phone": ("recommend", "en", "dark", PHONE),
    "speech": ("speech", "en", "light", WIDE),
    "speech-zh": ("speech", "zh", "light", WIDE),
}
HEARS = """http_port = {http}
grpc_port = 0
[console]
on = true
port = {console}
[speech]
recogniser = "whisper-base"
voice = "wespeaker"
turns = "pyannote"
[speech.profiles.caption]
first_token_ms_max = 9000
"""
HEARD_LINES = 7
HEARD_S_MAX = 90.0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SHOTS)} (default: all)")
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--seconds", type=float, default=75.0, help="of replay before the pictures")
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--http-port", type=int, default=8000)
    parser.add_argument("--console-port", type=int, default=8002)
    args = parser.parse_args()
    if unknown := set(args.names) - set(SHOTS):
        parser.error(f"no picture {', '.join(sorted(unknown))}; there are: {', '.join(SHOTS)}")
    wanted = {name: shot for name, shot in SHOTS.items() if not args.names or name in args.names}
    heard = {name: shot for name, shot in wanted.items() if shot[0] == "speech"}
    url = f"http://127.0.0.1:{args.console_port}"
    if shown := {name: shot for name, shot in wanted.items() if name not in heard}:
        ports = ["--http-port", str(args.http_port), "--console-port", str(args.console_port)]
        with running(url, "demo", "--rate", str(args.rate), *ports):
            time.sleep(args.seconds)
            take(url, args.into, shown)
    if heard:
        with tempfile.TemporaryDirectory() as aside:
            folder = Path(aside) / "demo"  # the console shows its name
            clip = hearing(folder, args.http_port, args.console_port)
            with running(url, "up", "-c", str(folder / "millstream.toml")):
                wait_for(f"http://127.0.0.1:{args.http_port}/v2/health/ready")
                take(url, args.into, heard, clip)


@contextmanager
def running(url, *words):
    """A command of `millstream`, until it is left, with its console at a URL."""
    process = subprocess.Popen([sys.executable, "-m", "millstream", *words], stdin=subprocess.DEVNULL)
    try:
        wait_for(url)
        yield
    finally:
        process.terminate()
        process.wait(90)


def hearing(folder, http, console):
    """An installation that hears, over the weights that are there, and a file of two people to play to it."""
    weights = Path(os.environ.get("MILLSTREAM_SPEECH_MODELS") or Path(sys.prefix) / "speech-models")
    (folder / "models").mkdir(parents=True)
    for name in ("whisper-base", "silero-vad", "wespeaker", "pyannote"):
        if not (weights / name).is_dir():
            raise SystemExit(f"millstream speech fetch {name} --models {weights}")
        (folder / "models" / name).symlink_to((weights / name).resolve())
    (folder / "millstream.toml").write_text(HEARS.format(http=http, console=console))
    with wave.open(str(folder / "two.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((np.clip(two_people(folder), -1, 1) * 32767).astype("<i2").tobytes())
    return folder / "two.wav"


def wait_for(url):
    """Until something answers there."""
    end = time.monotonic() + READY_S_MAX
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(url, timeout=10).read()
            return
        except (OSError, urllib.error.URLError):
            time.sleep(0.5)
    raise SystemExit(f"no answer at {url} within {READY_S_MAX:.0f} s")


def take(url, into, shots, clip=None):
    """These pictures, with what a person would have done before; the page Speech is played the clip."""
    into.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGS)
        for name, (page, language, theme, (width, height)) in shots.items():
            context = browser.new_context(viewport={"width": width, "height": height}, locale=language)
            for key, value in (("millstream-language", language), ("millstream-theme", theme)):
                context.add_cookies([{"name": key, "value": value, "url": url}])
            tab = context.new_page()
            tab.goto(f"{url}/{page}")
            tab.wait_for_timeout(3000)
            acted(tab, page, clip)
            file = into / f"console-{name}.png"
            tab.screenshot(path=file)
            assert file.stat().st_size < BYTES_MAX, f"{file} has {file.stat().st_size} bytes"
            print(file, file.stat().st_size)
            context.close()
        browser.close()


def acted(tab, page, clip):
    """What is done on the page first."""
    if page == "recommend":
        tab.keyboard.press("3")
        tab.wait_for_selector(".rated .line-in", timeout=20_000)
        tab.locator(".film summary").first.click()
        tab.wait_for_timeout(2500)
    if page == "review":
        tab.locator(".page-actions > .button").last.click()
        tab.wait_for_selector(".case-title", timeout=60_000)
        tab.wait_for_timeout(1500)
    if page == "speech":
        tab.locator("input[type=file]").set_input_files(clip)
        said = (
            f"document.querySelectorAll('.speech-line[data-state=final]').length >= {HEARD_LINES}"
            " && document.querySelectorAll('.speech-text .loose').length > 3"
        )
        tab.wait_for_function(said, timeout=HEARD_S_MAX * 1000, polling=50)


if __name__ == "__main__":
    main()
