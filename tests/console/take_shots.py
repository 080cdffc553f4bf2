"""Take the pictures of the console that README and docs show, from the demo as anybody runs it: `make shots`.

    python tests/console/take_shots.py [--into docs/images] [--seconds 75] [--rate 200]

The demo replays MovieLens meanwhile; Chromium is the machine's own.
"""

import argparse
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
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
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--seconds", type=float, default=75.0, help="of replay before the pictures")
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--http-port", type=int, default=8000)
    parser.add_argument("--console-port", type=int, default=8002)
    args = parser.parse_args()
    ports = ["--http-port", str(args.http_port), "--console-port", str(args.console_port)]
    command = [sys.executable, "-m", "millstream", "demo", "--rate", str(args.rate), *ports]
    demo = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{args.console_port}"
    try:
        wait_for(url)
        time.sleep(args.seconds)
        take(url, args.into)
    finally:
        demo.terminate()
        demo.wait(90)


def wait_for(url):
    """Until the console answers."""
    end = time.monotonic() + READY_S_MAX
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(url, timeout=10).read()
            return
        except (OSError, urllib.error.URLError):
            time.sleep(0.5)
    raise SystemExit(f"no console at {url} within {READY_S_MAX:.0f} s")


def take(url, into):
    """Every picture, with what a person would have done before."""
    into.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGS)
        for name, (page, language, theme, (width, height)) in SHOTS.items():
            context = browser.new_context(viewport={"width": width, "height": height}, locale=language)
            for key, value in (("millstream-language", language), ("millstream-theme", theme)):
                context.add_cookies([{"name": key, "value": value, "url": url}])
            tab = context.new_page()
            tab.goto(f"{url}/{page}")
            tab.wait_for_timeout(3000)
            acted(tab, page)
            file = into / f"console-{name}.png"
            tab.screenshot(path=file)
            assert file.stat().st_size < BYTES_MAX, f"{file} has {file.stat().st_size} bytes"
            print(file, file.stat().st_size)
            context.close()
        browser.close()


def acted(tab, page):
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


if __name__ == "__main__":
    main()
