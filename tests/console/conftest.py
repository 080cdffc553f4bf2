"""The console's tests share one installation that runs, and one Chromium."""

import os
import shutil
from pathlib import Path

import pytest
from console_house import Running, Tab

CHROMIUM = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    made = Running(tmp_path_factory.mktemp("console"))
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture(scope="module")
def chromium():
    """One browser for the tests of a file. Its event loop runs in this thread while it lives: not for longer."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    assert path, "Chromium is missing: apt-get install chromium"
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=path, args=CHROMIUM)
        yield made
        made.close()


@pytest.fixture
def open_tab(chromium):
    """open_tab(url, **context): a Tab at this address."""
    tabs = []

    def opened(url, **options):
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 860}, "locale": "en-US", **options})
        context.set_default_timeout(30_000)
        tab = Tab(context.new_page())
        tabs.append((tab, context))
        tab.page.goto(url)
        return tab

    yield opened
    for tab, _ in tabs:
        tab.check()
    for _, context in tabs:
        context.close()


@pytest.fixture(scope="session")
def shots():
    """Where screenshots are kept."""
    folder = Path(os.environ.get("MILLSTREAM_SHOTS") or Path(__file__).parents[2] / ".artefacts" / "console")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
