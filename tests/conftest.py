"""What all rooms' tests share. Its presence also puts this folder on their path."""

from contextlib import suppress
from functools import partial

import pytest

from flink_cluster import environment, flink
from millstream.stream import Log

SLOW_S_MAX = 600.0


def pytest_collection_modifyitems(items):
    """A slow test may take minutes, and a machine with other work several times as many: the bound of all others is for
    what hangs among tests of seconds."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_S_MAX))


@pytest.fixture(autouse=True)
def logs_end_with_their_test(monkeypatch):
    """Tests stop a process by forgetting its objects. What such a log holds open would in time be more files than one
    process may have."""
    opened, opening = [], Log.__init__

    def init(self, *args, **options):
        opened.append(self)
        opening(self, *args, **options)

    monkeypatch.setattr(Log, "__init__", init)
    yield
    for log in opened:
        with suppress(Exception):  # of a disk that is full, of a fuse that has blown
            log.close()


@pytest.fixture(scope="session")
def on_flink(tmp_path_factory):
    """Makes a table environment, under settings if need be, in one Java for all tests: it takes seconds to start."""
    with flink(tmp_path_factory.mktemp("flink")) as (jvm, _):
        yield partial(environment, jvm)
