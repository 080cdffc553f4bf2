"""The pages Learning, Features, Recommend, Experiments and Review in a real Chromium, over an installation that runs:
its service, its learner and its console are processes of their own, its titles are hostile."""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from millstream import config
from millstream.app.installation import Installation, Settings
from millstream.clock import SystemClock
from millstream.demo.data import simulated
from millstream.demo.run import Demo
from millstream.models.repository import Repository
from millstream.stream import Log, decode
from millstream.types import Outcome, ReviewLabel
from service import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PAGES = {
    "learning": ("Learning", "学习"),
    "features": ("Features", "特征"),
    "recommend": ("Recommend", "推荐"),
    "experiments": ("Experiments", "实验"),
    "review": ("Review", "审阅"),
}
HOSTILE = "<img src=x onerror=window.robbed=1>"


class Running:
    """A demo's installation under replay, in a folder; `url` of its console, `api` of its service."""

    def __init__(self, folder):
        data = simulated(2500)
        for item in data.items:
            item["title"] = f"{HOSTILE}{item['title']}"
        self.folder = folder
        self.demo = Demo(folder, data, free_port(), rate=60.0, console=free_port())
        self.url, self.api = f"http://127.0.0.1:{self.demo.console}", f"http://127.0.0.1:{self.demo.port}"
        self.demo.prepare()
        file = folder / "millstream.toml"
        file.write_text(file.read_text().replace("[feature_store]\n", "[feature_store]\nlog_share = 0.05\n"))
        self.aside, self.loop = ThreadPoolExecutor(1), asyncio.new_event_loop()  # the browser has a loop in this one
        self.run(self.demo.start())
        self.replay(8.0)
        self.up()

    def run(self, something):
        return self.aside.submit(self.loop.run_until_complete, something).result()

    def replay(self, seconds):
        async def some():
            running = asyncio.create_task(self.demo.replay.run())
            await asyncio.wait({running}, timeout=seconds)
            self.demo.replay.stopping.set()
            await running

        self.run(some())

    def up(self):
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                return urllib.request.urlopen(self.url, timeout=20).read()
            time.sleep(0.2)
        raise AssertionError("the console did not come up")

    def events(self, topic):
        reader = Log(self.folder / "log", SystemClock()).reader(topic)
        return [decode(one.value) for partition in reader.partitions() for one in reader.records(partition)]

    def policy(self):
        return Repository(self.folder / "models").policy("ranker")

    def stop(self):
        self.run(self.demo.stop())
        self.loop.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    made = Running(tmp_path_factory.mktemp("console") / "shop")
    yield made
    made.stop()


@pytest.fixture
def visit(chromium):
    """Open a page of a console; what its browser complains of fails the test."""
    wrong, contexts = [], []

    def opened(url, name, language="en", width=1280, theme="light", cookies=()):
        context = chromium.new_context(viewport={"width": width, "height": 900}, locale=language)
        contexts.append(context)
        chosen = {"millstream-language": language, "millstream-theme": theme}
        context.add_cookies([{"name": key, "value": value, "url": url} for key, value in chosen.items()])
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"{url}/{name}")
        page.wait_for_selector("main h1")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not wrong


def shot(page, name):
    """A picture of the page, where CI keeps such."""
    if folder := os.environ.get("MILLSTREAM_SHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def rows_of(table):
    """The texts of a table's cells, row by row."""
    return [row.locator("td").all_inner_texts() for row in table.locator("tbody tr").all()]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
def test_each_page_opens_in_both_languages_at_both_widths_and_runs_no_title(running, visit, language, width, theme):
    for name, titles in PAGES.items():
        page = visit(running.url, name, language, width, theme)
        assert page.locator("h1").inner_text() == titles[language == "zh"]
        page.wait_for_timeout(700)
        assert page.locator(".notice.bad").count() == 0, page.locator(".notice.bad").all_inner_texts()
        assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0, f"{name} is too wide"
        assert page.evaluate("window.robbed") is None and page.locator("main img").count() == 0
        shot(page, f"{name}-{language}-{width}-{theme}")
        page.close()


def listed(running, visit):
    """The page Recommend with a list before its visitor. On a busy machine an answer may be refused as too late, which
    the page says; whoever sees that loads it again."""
    page = visit(running.url, "recommend")
    for _ in range(3):
        page.wait_for_selector(".film, .notice.bad", timeout=60_000)
        if page.locator(".film").count():
            break
        page.reload()
    return page


def test_a_like_by_key_is_in_the_log_and_the_next_list_goes_by_it(running, visit):
    page = listed(running, visit)
    third = page.locator(".film .title").nth(2)
    title = third.inner_text()
    assert title.startswith(HOSTILE), "titles stand there as they are"
    page.keyboard.press("3")
    page.wait_for_selector(".rated >> text=later")
    assert title in page.locator(".rated").first.inner_text()
    assert title not in page.locator(".film .title").all_inner_texts(), "what was liked does not come again"
    assert page.locator(".film.came").count() >= 1
    liked = [one for one in running.events("outcomes") if isinstance(one, Outcome) and one.request[:8] == "console-"]
    assert {one.kind for one in liked} == {"impression", "like"} and len({one.item for one in liked}) == 1
    item = next(item for item in running.demo.data.items if item["title"] == title)
    assert liked[0].item == item["id"] and all(one.value == 1.0 for one in liked)


def test_an_item_says_its_path_through_the_stages(running, visit):
    page = listed(running, visit)
    first = page.locator(".film").first
    first.locator("summary").click()
    stages = first.locator(".stages li").all_inner_texts()
    assert len(stages) == 3 and "ranker" in stages[1] and re.search(r"score \d\.\d{4}", stages[1])
    score = float(re.search(r"score (\d\.\d{4})", stages[1])[1])
    assert first.locator(".score").inner_text() == f"{score:.3f}" or abs(score) < 1


def test_a_user_by_name_gets_their_own_list(running, visit):
    page = listed(running, visit)
    user = str(running.demo.data.users[1]["id"])
    page.get_by_label("Or a user by name").fill(user)
    page.get_by_text("Be them").click()
    page.wait_for_selector(f"h2 >> text=The list of {user}")
    served = [one for one in running.events("served") if one.request.startswith("console-") and one.user == user]
    assert served and served[-1].placement == "home"


def test_learning_is_paused_with_a_reason_and_let_go_on_without_a_reload(running, visit):
    page = visit(running.url, "learning")
    page.get_by_role("button", name="Pause learning").click()
    page.get_by_role("button", name="Confirm").click()
    page.wait_for_selector("text=Say why")
    assert running.policy().learning == "run", "not without a reason"
    page.get_by_label("Reason").fill("trying the console")
    page.get_by_role("button", name="Confirm").click()
    page.wait_for_selector(".notice.bad >> text=trying the console")
    policy = running.policy()
    assert (policy.learning, policy.paused_by, policy.paused_why) == ("paused", "console", "trying the console")
    page.wait_for_selector("td >> text=trying the console")
    page.get_by_role("button", name="Let it learn on").click()
    page.get_by_label("Reason").fill("enough")
    page.get_by_role("button", name="Confirm").click()
    page.wait_for_selector(".notice.good")
    assert running.policy().learning == "run"


def test_the_learning_page_has_what_the_counters_say(running, visit):
    page = visit(running.url, "learning")
    page.wait_for_selector("text=Calibration")
    status = subprocess.run(
        [sys.executable, "-m", "millstream", "train", "status", "-c", running.folder / "millstream.toml", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    served = json.loads(status.stdout)["figures"][""]["served"]
    mine = next(row for row in rows_of(page.locator("table").last) if row[1] == "served")
    assert mine[3] == f"{served['auc']:.4f}" and mine[4] == f"{served['logloss']:.4f}"
    assert page.locator(".chart path.line").count() >= 2 and page.locator(".chart rect.bar").count() >= 1


def test_what_was_served_is_compared_with_the_log_on_demand(running, visit):
    page = visit(running.url, "features")
    page.wait_for_selector("td >> text=user_shown_7d")
    page.get_by_role("button", name="Compare now").click()
    page.wait_for_selector("text=Every value of", timeout=90_000)
    row = rows_of(page.locator("table").last)[0]
    assert row[0] == "ranker" and row[-1] == "0" and any(cell != "0" for cell in row[1:-1])


def test_an_experiment_is_looked_at_and_says_its_verdict(running, visit):
    page = visit(running.url, "experiments")
    page.wait_for_selector("h2 >> text=order")
    page.wait_for_selector("text=/to compare calm with plain|has no list/", timeout=120_000)
    shot(page, "experiments-looked")


def test_cases_are_chosen_labelled_by_keys_and_exported(running, visit):
    page = visit(running.url, "review")
    page.get_by_role("button", name="Choose from the log").click()
    page.wait_for_selector(".case-title", timeout=90_000)
    title = page.locator(".case-title").inner_text()
    assert title.startswith(HOSTILE)

    def press(key):
        """And wait for what it shows."""
        before = page.locator(".desk").inner_text()
        page.keyboard.press(key)
        page.wait_for_function("before => document.querySelector('.desk').innerText !== before", arg=before)

    for key in "123":
        press(key)
    said = [one for one in running.events("reviews") if isinstance(one, ReviewLabel)]
    assert [one.label for one in said] == ["positive", "negative", "skip"] and {one.who for one in said} == {"console"}
    press("b")
    page.keyboard.press("1")
    page.wait_for_function("() => document.querySelector('.story').innerText.includes('4 said')")
    assert [one.id for one in running.events("reviews") if isinstance(one, ReviewLabel)][-1] == said[-1].id
    shot(page, "review-asked")
    page.get_by_role("button", name="Export").click()
    page.get_by_label("Reason").fill("a first set")
    page.get_by_role("button", name="Confirm").click()
    page.wait_for_selector("td >> text=reviewed 1")
    assert (running.folder / "datasets" / "reviewed" / "1" / "dataset.toml").exists()


def test_a_viewers_key_sees_and_is_refused(running, visit, chromium):
    keys = {"viewer": '["*:view", "*:recommend"]', "owner": '["*:*"]'}
    text = "".join(
        f'[[key]]\nname = "{name}"\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\nverbs = {verbs}\n'
        for name, verbs in keys.items()
    )
    (running.folder / "keys.toml").write_text(text)
    file = running.folder / "locked.toml"
    file.write_text('keys = "keys.toml"\n' + (running.folder / "millstream.toml").read_text())
    port = free_port()
    command = [sys.executable, "-m", "millstream", "console", "-c", str(file), "--port", str(port)]
    with (running.folder / "locked.log").open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url, timeout=20)
                break
            time.sleep(0.2)
        context = chromium.new_context(locale="en")
        page = context.new_page()
        page.goto(f"{url}/review")
        page.get_by_label("Key").fill("viewer")
        page.get_by_role("button", name="Enter").click()
        page.wait_for_url(f"{url}/")
        page.goto(f"{url}/review")
        labels = len(running.events("reviews"))
        page.get_by_role("button", name="Choose from the log").click()
        page.wait_for_selector(".notice.bad >> text=control")
        if page.locator(".case-title").count():
            page.keyboard.press("1")
            page.wait_for_timeout(500)
        assert len(running.events("reviews")) == labels
        page.goto(f"{url}/learning")
        page.get_by_role("button", name="Pause learning").click()
        page.wait_for_selector(".toast.bad >> text=control")
        assert running.policy().learning == "run"
        page.goto(f"{url}/recommend")
        page.wait_for_selector(".film")
        context.close()
    finally:
        process.terminate()
        process.wait(30)


def test_the_demo_has_its_console_in_its_settings(running):
    settings = config.read(running.folder / "millstream.toml", Settings)
    assert settings.console.on and settings.console.port == running.demo.console
    with contextlib.closing(Installation(running.folder, settings, SystemClock())) as at:
        assert "order" in at.settings.experiments
    assert msgspec.to_builtins(settings.experiments["order"])["metric"] == "like"
