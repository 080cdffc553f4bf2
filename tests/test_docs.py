"""The words are tested: what the documents name exists, what they tell to type is understood, and what they list is
complete."""

import argparse
import ast
import asyncio
import inspect
import json
import re
import shlex
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import msgspec
import pytest

import millstream
from millstream import config
from millstream.app.installation import Installation, Settings
from millstream.app.report.whatif import Candidate
from millstream.app.roles import Learn, Serve
from millstream.app.training import train
from millstream.cli import parser
from millstream.clock import SystemClock
from millstream.features import Column, Definition
from millstream.front import answer, routes
from millstream.guard import auth
from millstream.models import manifest, policy
from millstream.stream import JoinSettings, Task

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "millstream"
PAGES = sorted([ROOT / "README.md", ROOT / "README.zh.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
HTTP, OPERATIONS, SETTINGS, DESIGN = (ROOT / "docs" / f"{n}.md" for n in ("http", "operations", "settings", "design"))

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of every fenced block; an indented one has the language ""."""
    text = page.read_text()
    fenced = [(m[1], m[2]) for m in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)]
    rest = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    indented = [("", inspect.cleandoc(m[0])) for m in re.finditer(r"(?:^    .*\n(?:\n(?=    ))?)+", rest, re.M)]
    return fenced + indented


def commands(page: Path) -> list[str]:
    """The `millstream` command lines of a page's blocks."""
    lines = [line.strip() for _, text in blocks(page) for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("millstream ") and not line.startswith("millstream.toml")]


def spans(page: Path) -> list[str]:
    """Everything between single backticks, outside fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S))


def table(page: Path, after: str) -> list[str]:
    """The first cell, without its backticks, of each row of the first table after a line that begins with `after`."""
    rows = page.read_text().split(f"\n{after}", 1)[1].split("\n|", 3)[3].split("\n\n")[0].splitlines()
    return [re.match(r"\|?\s*`?(.*?)`? \|", row)[1] for row in rows]


@pytest.mark.parametrize("name", ["README", "docs/speech"])
def test_a_chinese_page_has_the_code_of_the_english_one(name):
    english, chinese = ([block for block in blocks(ROOT / f"{name}{of}.md") if block[0]] for of in ("", ".zh"))
    assert english == chinese and len(english) >= 5


@every_page
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    broken = [one for one in links if "://" not in one and not (page.parent / one.partition("#")[0]).exists()]
    assert not broken


@every_page
def test_files_and_tests_that_are_named_exist(page):
    for span in spans(page):
        found = re.fullmatch(r"([\w./-]+/[\w.-]*|[\w-]+\.py)(?:::(\w+))?", span)
        if found is None or span.startswith(("/", "application/", "http")):
            continue
        name, test = found[1], found[2]
        known = name.split("/")[0] in {p.name for p in (*ROOT.iterdir(), *SOURCE.iterdir())}
        if not known or name in ("log/", "models/", "state/") or name.startswith("models/ranker"):
            continue  # a folder of an installation
        path = next((base / name for base in (ROOT, SOURCE) if (base / name).exists()), None)
        assert path is not None, f"{span}: no such file"
        if test:
            assert re.search(rf"def {test}\(", path.read_text()), f"{span}: no such test"


@every_page
def test_commands_are_understood(page, capsys):
    for line in commands(page):
        try:
            parser().parse_args(shlex.split(line, comments=True)[1:])
        except SystemExit as end:
            assert end.code == 0, f"{line}\n{capsys.readouterr().err}"


@every_page
def test_verbs_and_options_named_in_the_text_exist(page):
    for span in spans(page):
        if not span.startswith("millstream "):
            continue
        at = parser()
        for word in shlex.split(span)[1:]:
            below = [a for a in at._actions if isinstance(a, argparse._SubParsersAction)]
            if word.startswith("-"):
                assert word in at._option_string_actions, f"`{span}` has no option {word}"
            elif below:
                assert word in below[0].choices, f"`{span}`: no verb {word}"
                at = below[0].choices[word]


@every_page
def test_make_verbs_exist(page):
    verbs = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    told = [text for _, text in blocks(page)] + spans(page)
    assert {verb for text in told for verb in re.findall(r"^make ([\w-]+)", text, re.M)} <= verbs


READERS = {
    "calmer.toml": lambda text: config.parse(text, Candidate, "the page"),
    "millstream.toml": lambda text: config.parse(text, Settings, "the page"),
    "keys.toml": lambda text: msgspec.convert(tomllib.loads(text), auth._File),
    "policy.toml": lambda text: policy.parse(text, "the page", ("12", "13", "14")),
    "model.toml": lambda text: manifest.parse(text, "the page"),
}


@every_page
def test_blocks_are_what_they_say(page):
    for language, text in blocks(page):
        if language == "toml":
            READERS[text.splitlines()[0].removeprefix("# ")](text)
        elif language == "json":
            json.loads(text)
        elif language == "python":
            imported = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
            exec("\n".join(map(ast.unparse, imported)), {})
        elif language == "sh":
            subprocess.run(["bash", "-n"], input=text, text=True, check=True)
            for body in re.findall(r"-d '(.*?)'", text, re.S):
                json.loads(body)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(path, tmp_path):
    done = subprocess.run([sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()


def test_every_example_is_pointed_at():
    text = "".join(page.read_text() for page in PAGES)
    assert [path.name for path in EXAMPLES if f"examples/{path.name}" not in text] == []


def literal(value: object) -> str:
    """A default as TOML writes it."""
    if value is None:
        return "none"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {literal(one)}" for key, one in value.items()) + " }"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(literal, value)) + "]"
    return json.dumps(value)


def settings_table() -> list[str]:
    rows = [f"| `{name}` | `{literal(value)}` | {help} |" for name, value, help in config.settings(Settings)]
    return ["| setting | default | meaning |", "|---|---|---|", *rows]


def test_every_setting_is_listed_with_its_default_and_its_help():
    text = SETTINGS.read_text()
    told = text.split("<!-- settings -->\n")[1].split("<!-- /settings -->")[0].splitlines()
    should = settings_table()
    missing, stale = [row for row in should if row not in told], [row for row in told if row not in should]
    assert told == should, "\n".join(["docs/settings.md: missing", *missing, "stale", *stale])


def test_settings_named_in_the_text_exist():
    names = {name for name, _, _ in config.settings(Settings)}
    tables = {name.split(".")[0] for name in names if "." in name}
    for page in PAGES:
        named = {s for s in spans(page) if re.fullmatch(r"[a-z]+(\.[a-z]\w*)+", s) and s.split(".")[0] in tables}
        named -= {s for s in named if s.endswith((".py", ".toml", ".sqlite", ".jsonl"))}
        assert named <= names, page


def test_every_route_is_listed():
    served = {"GET /"}
    for said in routes.ROUTES.values():
        method, _, paths = said.partition(" ")
        served |= {f"{method} {path}" for path in paths.split(", ")}
    assert set(table(HTTP, "## Routes")) == served


def test_only_statuses_that_are_given_are_explained():
    told = {int(code) for row in table(HTTP, "## Refusals") for code in re.findall(r"\d{3}", row)}
    assert told <= set(answer.STATUSES)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """What a started installation answers to every route of docs/http.md, and its metrics page."""
    settings = Settings(
        http_port=0,
        features=Definition(user=(Column("id"),), item=(Column("id"),)),
        join=JoinSettings(tasks={"like": Task(window_s=1.0)}),
    )
    settings = msgspec.convert(msgspec.to_builtins(settings) | {"learn": {"model": "ranker"}}, Settings)

    def ask(port: int, route: str) -> tuple[int, str]:
        method, path = route.split()
        path = path.replace("MODEL", "ranker").replace("VERSION", "1")
        data = b"{}" if method == "POST" else None
        try:
            with urllib.request.urlopen(
                urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, method=method)
            ) as found:
                return found.status, found.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    async def run(at: Installation) -> dict[str, tuple[int, str]]:
        serve, learn = Serve(at), Learn(at)
        port = await serve.start()
        listed = table(HTTP, "## Routes")
        found = {}
        for route in sorted({one for row in listed for one in every(row)}, key=lambda one: one.endswith("/unload")):
            found[route] = await asyncio.to_thread(ask, port, route)
        await serve.stop()
        learn.close()
        return found

    with Installation(tmp_path_factory.mktemp("installation"), settings, SystemClock()) as at:
        train(at)
        return asyncio.run(run(at))


def every(route: str) -> list[str]:
    """A route with each of its optional parts, and without."""
    start, bracket, rest = route.partition("[")
    if not bracket:
        return [route]
    part, _, rest = rest.partition("]")
    return [start + one for one in (*every(rest), *(part + tail for tail in every(rest)))]


def test_every_listed_route_is_served(service):
    assert len(service) >= 12
    for route, (status, said) in service.items():
        # `{}` asks for nothing where a body is needed; nobody has a session of token TOKEN.
        wanted = 400 if route.startswith("POST") and "/repository/" not in route else 404 if "TOKEN" in route else 200
        wanted = 404 if route.endswith("/rollback") else wanted  # nothing was live before
        wanted = {"GET /v1/speech": 426, "POST /v1/audio/transcriptions": 404}.get(route, wanted)  # nobody hears there
        assert status == wanted, f"{route}: {status} {said}"


def test_every_metric_is_listed_and_every_listed_one_is_there(service):
    listed = set(table(OPERATIONS, "## Metrics"))
    source = "".join(path.read_text() for path in SOURCE.rglob("*.py"))
    made = set(re.findall(r'"(millstream_\w+)"', source))
    assert listed == made
    rendered = set(re.findall(r"^# TYPE (\S+)", service["GET /metrics"][1], re.M))
    at_first_use = {  # their labels come with the data, or they come with a setting that is off by default
        "millstream_examples_total",
        "millstream_outcome_kinds_total",
        "millstream_set_aside_total",
        "millstream_process_restarts_total",
        "millstream_rate_limited_total",
        "millstream_worker_restarts_total",
    }
    with_a_setting = (
        "millstream_access",
        "millstream_alerts_",
        "millstream_beside_missed_total",
        "millstream_certificate",
        "millstream_fact",
        "millstream_feature",
        "millstream_empty_lists_total",
        "millstream_labels_",
        "millstream_learning_",
        "millstream_lists_total",
        "millstream_rank_instead_total",
        "millstream_recall_",
        "millstream_relaxed_total",
        "millstream_speech_",
        "millstream_tenant_asks_total",
        "millstream_traces",
        "millstream_watch_",
    )
    assert {one for one in listed - rendered if not one.startswith(with_a_setting)} == at_first_use
    named = {span for page in PAGES for span in spans(page) if re.fullmatch(r"millstream_\w+", span)}
    assert named <= listed


def test_the_layers_in_the_design_are_those_that_are_checked():
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    told = DESIGN.read_text().split("<!-- layers -->")[1].split("<!-- /layers -->")[0].split()
    assert told == " ".join(contract).replace("millstream.", "").split()


def test_the_map_names_every_room():
    chart = (ROOT / "README.md").read_text().split("## The map of rooms")[1].split("\n## ")[0]
    rooms = {path.name + "/" for path in SOURCE.iterdir() if (path / "__init__.py").exists()}
    rooms |= {path.name for path in SOURCE.glob("*.py") if not path.name.startswith("__")}
    assert {room for room in rooms if room not in chart} == set()


def test_core_dependencies_are_those_of_the_decision():
    page = next((ROOT / "docs" / "decisions").glob("0002-*.md"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = {re.match(r"[\w-]+", one)[0] for one in project["dependencies"]}
    assert set(table(page, "## Decision")) == core
    extras = set(re.findall(r"`(\w+)` \(", page.read_text()))
    assert extras == set(project["optional-dependencies"])


def test_the_changelog_begins_with_this_version():
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    assert newest == millstream.__version__
    assert f"Version {newest}" in (ROOT / "README.md").read_text()
