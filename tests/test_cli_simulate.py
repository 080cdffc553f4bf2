"""`millstream simulate` as a person types it: what cannot be is refused, and a service that dies costs no result."""

import csv
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from millstream.app.installation import Installation
from millstream.app.training import train
from millstream.cli import main, parser
from millstream.errors import BadInput
from millstream.simulate import Simulator
from millstream.stream import decode
from service import Served, free_port

SMALL = ("--users", "30", "--items", "40", "--count", "200")


def simulated(*argv):
    """What the verb gives, or raises."""
    args = parser().parse_args(["simulate", *map(str, argv)])
    return args.run(args)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "argv",
    [
        ["--seed", "-1"], ["--seed", "1.5"], ["--drift", "nan"], ["--drift", "-1"], ["--drift", "inf"],
        ["--poison", "1+2*3"], ["--poison", "1+2*-0.1"], ["--poison", "1+2*nan"], ["--skew", "2*300"],
        ["--skew", "0.1"], ["--skew", "0.1*nan"], ["--skew", "0.1*"], ["--late", "5+10*0.5"], ["--late", "5+0"],
        ["--lost", "1.2.3+4"], ["--lost", "1+2*0.5"], ["--lost", "-1+2"], ["--lost", "9" * 400 + "+1"],
        ["--rename", "nan:age=x"], ["--rename", "0:age"], ["--rename", "0:=x"], ["--bots", "nan"], ["--bots", "1.1"],
        ["--rate", "nan"], ["--rate", "0"], ["--delay", "inf"], ["--users", "0"], ["--count", "0"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_is_no_number_of_its_kind_is_a_usage_error(argv, tmp_path, capsys):
    option, value = argv
    with pytest.raises(SystemExit) as end:
        main(["simulate", str(tmp_path / "world"), f"{option}={value}"])
    said = capsys.readouterr().err
    assert end.value.code == 2 and f"argument {option}: " in said and "Traceback" not in said
    assert not (tmp_path / "world").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "say where to"),
        (("{}", "--rename", "0:nothere=job"), "there is no column 'nothere'; there are: age, gender, genres, id"),
        (("{}", "--rename", "0:age=gender"), "there is a column 'gender' already"),
        (("{}", "--rename", "0:age=x", "--rename", "5:gender=x"), "there is a column 'x' already"),
        (("{}", "--items", "10"), "candidates must be 1 to half of the 10 items, got 10"),
        (("{}", "--url", "http://127.0.0.1:1"), "has no world.json"),
        (("--url", "http://127.0.0.1:1", "--bots", "0.1"), "disturbances are for files"),
        (("--url", "http://127.0.0.1:1", "--skew", "0.1*-5"), "disturbances are for files"),
    ],
)
def test_what_cannot_be_is_a_sentence(argv, words, tmp_path):
    with pytest.raises(BadInput, match=words):
        simulated(*(one.format(tmp_path / "world") for one in argv))
    assert not (tmp_path / "world").exists()


def test_files_hold_the_world_and_say_what_made_it(tmp_path):
    found = simulated(tmp_path, *SMALL, "--seed", "3", "--rename", "0:age=years", "--rename", "50:genres=kinds")
    assert found["moments"] == 200 == len(rows(tmp_path / "truth.csv"))
    world = Simulator(np.random.default_rng(3), users=30, items=40)
    assert [row["years"] for row in rows(tmp_path / "users.csv")] == [str(user["age"]) for user in world.users]
    assert "genres" in rows(tmp_path / "items.csv")[0] and "kinds" in rows(tmp_path / "items-50.csv")[0]
    assert json.loads((tmp_path / "world.json").read_text()) == {
        "seed": 3, "users": 30, "items": 40, "candidates": 10, "rate": 10.0, "delay": 30.0, "drift": 40000.0,
    }  # fmt: skip


@pytest.mark.parametrize(("option", "value"), [("--seed", "8"), ("--users", "31"), ("--items", "41")])
def test_another_world_than_the_files_hold_is_refused(tmp_path, option, value):
    simulated(tmp_path, *SMALL)
    with pytest.raises(BadInput, match=f"holds a world of {option} .*, and {option} {value} is another one"):
        simulated(tmp_path, "--url", "http://127.0.0.1:1", option, value)


def test_a_file_of_a_world_that_cannot_be_read_is_a_sentence(tmp_path):
    simulated(tmp_path, *SMALL)
    (tmp_path / "world.json").write_text('{"seed": "x"}')
    with pytest.raises(BadInput, match=r"world\.json: Expected `int`, got `str`"):
        simulated(tmp_path, "--url", "http://127.0.0.1:1")


TOML = """
http_port = {port}
grpc_port = 0
[learn]
model = "ranker"
[ftrl]
bits = 10
[features]
user = [{{ name = "id" }}]
item = [{{ name = "id" }}]
"""


@pytest.mark.slow
def test_a_service_that_is_killed_costs_requests_and_not_the_result(tmp_path):
    port = free_port()
    toml, world = tmp_path / "millstream.toml", tmp_path / "world"
    toml.write_text(TOML.format(port=port))
    simulated(world, *SMALL, "--seed", "11", "--delay", "1000000")
    up, url = ("up", "-c", str(toml), "--role", "serve"), f"http://127.0.0.1:{port}"
    with Installation.open(toml) as at:
        train(at)
    with pytest.raises(Exception, match="cannot reach"):  # of a service that never was nothing can be told
        simulated(world, "--url", url, "--seconds", "1")
    found, over = [], threading.Event()

    def drive() -> None:
        found.append(simulated(world, "--url", url, "--seconds", "15", "--rate", "40"))
        over.set()

    def served(more: int) -> int:
        """How many answers are in the log, once there are so many."""
        with Installation.open(toml) as at:
            reader = at.log.reader("served")
            while not over.is_set():
                if (count := sum(reader.end(one) for one in reader.partitions())) >= more:
                    return count
                time.sleep(0.02)
        raise AssertionError(f"it was over before {more} were served")

    with Served(None, tmp_path / "one.txt", verb=up) as first:
        asks = threading.Thread(target=drive)
        asks.start()
        before = served(30)
        os.kill(first.pid, 9)
        first.process.wait()
    with Served(None, tmp_path / "two.txt", verb=up):
        served(before + 30)
        asks.join()
        (result,) = found
        assert result.failed > 0 and result.requests > 60 and result.lost == 0
        assert 0 < result.early == result.clicks, "with such a delay all are on their way at the end"
    with Installation.open(toml) as at:
        reader, likes, users = at.log.reader("outcomes"), set(), set()
        for partition in reader.partitions():
            for event in (decode(record.value) for record in reader.records(partition)):
                likes |= {event.id} if event.kind == "like" else set()
        for partition in at.log.reader("served").partitions():
            users |= {decode(record.value).user for record in at.log.reader("served").records(partition)}
    assert len(likes) == result.clicks
    assert users <= {row["id"] for row in rows(world / "users.csv")} and len(users) > 20
