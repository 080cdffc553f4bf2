"""What schedulers are given is a file that calls the command line, and what it calls does the work."""

import ast
import json
import os
import re
import subprocess
import sys
import venv
from datetime import UTC, datetime
from pathlib import Path

import pytest

from millstream import errors
from millstream.cli import main
from millstream.clock import FakeClock
from millstream.ops.dags import PRESETS, dag
from millstream.stream import Log, encode
from millstream.types import Fact

DEFINITIONS = """
from millstream.features import Aggregate, FeatureSet, Source
pages = Source(name="pages", columns={"user": "text"}, table="events/pages")
seen = Aggregate(name="seen", source=pages, key="user", op="count", window="7d")
small = FeatureSet(name="small", features=(seen,))
"""
DAY_1, DAY_2, DAY_3 = (f"2023-11-{day}T00:00:00+00:00" for day in (15, 16, 17))
START = datetime(2023, 11, 15, tzinfo=UTC)


@pytest.fixture
def millstream(monkeypatch, capsys):
    """The command line, in this process."""

    def run(folder, *arguments):
        monkeypatch.chdir(folder)
        main(arguments)
        return capsys.readouterr().out

    return run


@pytest.fixture
def installation(tmp_path, millstream):
    """One with three days of events in its log and as files, in a folder whose name a shell would take apart."""
    folder = tmp_path / "an installation"
    folder.mkdir()
    (folder / "features.py").write_text(DEFINITIONS)
    (folder / "millstream.toml").write_text('[feature_store]\ndefinitions = "features.py"\n')
    clock = FakeClock(1_700_006_400.0)
    with Log(folder / "log", clock) as log:
        writer = log.writer("pages")
        for n in range(72):
            writer.append(b"k", encode(Fact(event_time=clock.now(), values={"user": f"u{n % 5}"})))
            clock.advance(3600.0)
    millstream(folder, "features", "export", "pages", "--to", "events/pages", "--until", "2023-11-18")
    return folder


def path():
    """Where a shell finds this `millstream`."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.fixture
def printed(installation, millstream):
    """A scheduler's file, for the installation."""

    def run(scheduler, *more):
        text = millstream(installation, "features", "dag", scheduler, "small", "--start", "2023-11-15", *more)
        ast.parse(text)
        return text

    return run


def bash_command(text):
    (call,) = [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.keyword) and node.arg == "bash_command"
    ]
    return ast.literal_eval(call.value)


def rendered(command, begin, end):
    return command.replace("{{ data_interval_start | ts }}", begin).replace("{{ data_interval_end | ts }}", end)


def test_what_airflow_runs_fills_the_rows_window_after_window(printed, tmp_path):
    command = bash_command(printed("airflow"))
    assert "{{" not in rendered(command, "", "")
    found = []
    for begin, end in ((DAY_1, DAY_2), (DAY_2, DAY_3)):
        done = subprocess.run(
            ["bash", "-c", rendered(command, begin, end)], cwd=tmp_path, env=path(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    assert [(one["events"], one["rows"]) for one in found] == [(24, 5), (24, 5)]
    assert found[-1]["since"] == "2023-11-17T00:00:00Z"
    gap = rendered(command, "2023-11-17T12:00:00+00:00", "2023-11-18T00:00:00+00:00")
    done = subprocess.run(["bash", "-c", gap], cwd=tmp_path, env=path(), capture_output=True, text=True)
    assert done.returncode == 1 and "would leave out what arrived in between" in done.stderr


def test_what_dagster_runs_fills_the_rows(printed):
    tree = ast.parse(printed("dagster", "--schedule", "@hourly"))
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "command"]
    scope = {}
    exec(compile(ast.Module([function], []), "dag", "exec"), scope)
    done = subprocess.run(scope["command"](DAY_1, DAY_2), env=path(), capture_output=True, text=True)
    assert json.loads(done.stdout)["rows"] == 5, done.stderr


@pytest.mark.parametrize("kind", ["airflow", "dagster"])
@pytest.mark.parametrize("schedule", [*PRESETS, "30 2 * * MON-FRI"])
def test_every_file_is_python_that_names_its_schedule_and_runs_one_at_a_time(kind, schedule):
    text = dag(kind, "small", schedule, Path('/a "b"/it\'s.toml'), START)
    constants = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    assert PRESETS.get(schedule, schedule) in constants and "<" not in re.sub(r"<=|->", "", text)
    assert ("max_active_runs=1" in text) == (kind == "airflow")


def test_a_schedule_that_is_none_and_a_set_that_is_none_are_told(installation, capsys):
    for schedule in ("daily", "@never", '"""', "* * * *", "0 0 * * *\n"):
        with pytest.raises(errors.BadInput, match="five fields of cron"):
            dag("airflow", "small", schedule, Path("m.toml"), START)
    with pytest.raises(SystemExit, match="no feature set 'other'; there are: small"):
        main(["features", "dag", "airflow", "other", "-c", str(installation / "millstream.toml")])
    with pytest.raises(SystemExit):
        main(["features", "materialise", "small", "--to", "2023-11-17T00:00:00", "-c", "millstream.toml"])
    assert "is no moment: write a date (UTC), a date with time and zone, or unix seconds" in capsys.readouterr().err


def other_python(folder, package):
    """A Python of its own with a scheduler in it."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", package], check=True, capture_output=True)
    return python


AIRFLOW = """
import runpy, sys
from airflow.models.dag import DAG
found = runpy.run_path(sys.argv[1])["dag"]
(task,) = found.tasks
print(found.dag_id, found.max_active_runs, found.catchup, task.retries, task.depends_on_past)
import pendulum
from airflow.timetables.base import TimeRestriction
window = found.timetable.next_dagrun_info(
    last_automated_data_interval=None, restriction=TimeRestriction(found.start_date, None, True)
).data_interval
context = {"data_interval_start": window.start, "data_interval_end": window.end}
task.render_template_fields(context)
print(task.bash_command)
"""
DAGSTER = """
import runpy, sys
from dagster import DagsterInstance, materialize
found = runpy.run_path(sys.argv[1])
(schedule,) = found["defs"].schedules
print(schedule.name)
with DagsterInstance.ephemeral() as instance:
    done = materialize([found["rows"]], partition_key=sys.argv[2], instance=instance)
print(done.success)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_airflow_itself_reads_the_file_and_renders_its_command(printed, tmp_path):
    (tmp_path / "dag.py").write_text(printed("airflow"))
    python = other_python(tmp_path / "airflow", "apache-airflow>=3.0")
    done = subprocess.run(
        [python, "-W", "ignore", "-c", AIRFLOW, tmp_path / "dag.py"],
        env={**os.environ, "AIRFLOW_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *_, said, command = done.stdout.splitlines()
    assert said == "millstream_features_small 1 True 3 True"
    assert f"--from {DAY_1} --to {DAY_2} " in command
    done = subprocess.run(["bash", "-c", command], env=path(), capture_output=True, text=True)
    assert json.loads(done.stdout)["events"] == 24, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_dagster_itself_runs_a_window_of_the_file(installation, millstream, printed, tmp_path):
    (tmp_path / "dag.py").write_text(printed("dagster"))
    python = other_python(tmp_path / "dagster", "dagster>=1.8")
    done = subprocess.run(
        [python, "-W", "ignore", "-c", DAGSTER, tmp_path / "dag.py", "2023-11-15T00:00:00+0000"],
        env=path() | {"DAGSTER_HOME": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "True"
    assert (installation / "state" / "features").is_dir()
    again = millstream(installation, "features", "materialise", "small", "--to", "2023-11-16", "--json")
    assert json.loads(again)["events"] == 0
