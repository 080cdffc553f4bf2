"""Files for schedulers that fill a feature set's rows, a window of time a run.

Rules of the room:
- A file only calls the command line, which is incremental, can be run again, and refuses gaps and a second run beside
  the first: a scheduler adds when, and how often it is tried again.
- One run at a time. What was missed is made up for in order, window after window.
"""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from millstream import errors

PRESETS: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
}
_CRON = re.compile(r"[\d*,/A-Za-z-]+( [\d*,/A-Za-z-]+){4}")


def dag(kind: str, name: str, schedule: str, config: Path, start: datetime) -> str:
    """The file of Python for `kind` ("airflow" or "dagster") that fills feature set `name` of the installation
    `config`. `schedule`: a preset or five fields of cron, in UTC; `start`: where the first window begins. Neither:
    BadInput."""
    cron = PRESETS.get(schedule, schedule)
    if not _CRON.fullmatch(cron):
        raise errors.BadInput(
            f'--schedule {schedule!r}: take {", ".join(PRESETS)} or five fields of cron, such as "30 2 * * *"'
        )
    if kind not in _TEXTS:
        raise errors.BadInput(f"no scheduler {kind!r} is known; there are: {', '.join(sorted(_TEXTS))}")
    begin = start.astimezone(UTC)
    fields = {
        "NAME": name,
        "CRON": repr(cron),
        "SCHEDULE": schedule,
        "CONFIG": repr(str(config.resolve())),
        "START": f"datetime({', '.join(map(str, begin.timetuple()[:5]))}, tzinfo=timezone.utc)",
        "BEGIN": repr(begin.strftime("%Y-%m-%dT%H:%M:%S%z")),
    }
    text = _TEXTS[kind]
    if kind == "airflow":
        command = (
            f"millstream features materialise {name} --from {{{{ data_interval_start | ts }}}} "
            f"--to {{{{ data_interval_end | ts }}}} -c {shlex.quote(str(config.resolve()))} --json"
        )
        fields["COMMAND"] = repr(command)
    return re.sub(r"<([A-Z]+)>", lambda found: fields[found[1]], text)


_AIRFLOW: Final = '''\
"""Fills the rows of feature set <NAME>, <SCHEDULE>. Its worker has `millstream`. Airflow 2.4 and later.

Written by `millstream features dag airflow`. Runs are in order and one at a time: a window that failed or was missed is
made up for before the next, and none counts twice however often it runs.
"""

from datetime import datetime, timedelta, timezone

from airflow.timetables.interval import CronDataIntervalTimetable

try:
    from airflow.providers.standard.operators.bash import BashOperator
    from airflow.sdk import DAG
except ImportError:  # Airflow 2
    from airflow import DAG
    from airflow.operators.bash import BashOperator

with DAG(
    dag_id="millstream_features_<NAME>",
    schedule=CronDataIntervalTimetable(<CRON>, timezone="UTC"),  # a run has a window, in Airflow 3 too
    start_date=<START>,
    catchup=True,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5), "depends_on_past": True},
    tags=["millstream"],
) as dag:
    BashOperator(
        task_id="materialise",
        bash_command=<COMMAND>,
    )
'''

_DAGSTER: Final = '''\
"""Fills the rows of feature set <NAME>, <SCHEDULE>. Its worker has `millstream`. Dagster 1.5 and later.

Written by `millstream features dag dagster`. A second run beside the first is refused by the command, and tried again.
"""

import subprocess

from dagster import (
    AssetExecutionContext,
    Backoff,
    Definitions,
    RetryPolicy,
    TimeWindowPartitionsDefinition,
    asset,
    build_schedule_from_partitioned_job,
    define_asset_job,
)

windows = TimeWindowPartitionsDefinition(
    cron_schedule=<CRON>,
    start=<BEGIN>,
    fmt="%Y-%m-%dT%H:%M:%S%z",
    timezone="UTC",
)


def command(begin: str, end: str) -> list[str]:
    """What one window runs."""
    return [
        "millstream", "features", "materialise", "<NAME>", "--from", begin, "--to", end, "-c", <CONFIG>, "--json",
    ]  # fmt: skip


@asset(
    name="millstream_features_<NAME>",
    partitions_def=windows,
    retry_policy=RetryPolicy(max_retries=3, delay=300, backoff=Backoff.EXPONENTIAL),
    op_tags={"dagster/concurrency_key": "millstream_features_<NAME>"},
)
def rows(context: AssetExecutionContext) -> None:
    window = context.partition_time_window
    done = subprocess.run(command(window.start.isoformat(), window.end.isoformat()), capture_output=True, text=True)
    context.log.info(done.stderr)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "millstream failed")
    context.log.info(done.stdout)


job = define_asset_job("materialise_<NAME>", selection=[rows], tags={"dagster/max_runtime": 24 * 3600})
defs = Definitions(
    assets=[rows],
    jobs=[job],
    schedules=[build_schedule_from_partitioned_job(job)],
)
'''
_TEXTS: Final = {"airflow": _AIRFLOW, "dagster": _DAGSTER}
