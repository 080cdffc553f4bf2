"""The same cases on Spark: a warehouse that runs the text of its own dialect, not what SQLGlot takes for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from sql_cases import CASES, Case, tables_of
from test_sql import approx, run

from millstream.features.sql import sql

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

TYPES = {"text": "string", "double": "double", "bigint": "bigint"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    from pyspark.sql import SparkSession  # the fast tests have none

    os.environ["PYSPARK_PYTHON"] = sys.executable
    session = (
        SparkSession.builder.master("local[2]")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.codegen.wholeStage", "false")  # compiling would take longer than these few rows
        .config("spark.sql.adaptive.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .getOrCreate()
    )
    yield session
    gateway = session.sparkContext._gateway
    session.stop()
    gateway.shutdown()
    gateway.proc.stdin.close()  # which is how the JVM learns that it should end; others count this process's children
    gateway.proc.wait(30)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_spark_answers_as_duckdb_does(case: Case, spark: SparkSession) -> None:
    tables = tables_of(case.features, case.tables, case.labels)
    for name, (columns, rows) in tables.items():
        schema = ", ".join(f"`{column}` {TYPES[kind]}" for column, kind in columns)
        values = [tuple(row[column] for column, _ in columns) for row in rows]
        spark.createDataFrame(values, schema).createOrReplaceTempView(name)
    answer = spark.sql(sql(case.features, "spark")).orderBy("row")
    found: dict[str, list[Any]] = {name: [] for name in answer.columns}
    for row in answer.collect():
        for name, value in row.asDict().items():
            found[name].append(value)
    wanted = run(case.features, tables)
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        by_hand = case.wanted.get(name, values)
        for said in (values, by_hand):
            assert found[name] == [one if isinstance(one, (str, type(None))) else approx(one) for one in said], name
