"""A real service, a real version that answers nothing but infinity: the role finds it and takes it back, unasked."""

import time

import numpy as np
import pytest

import onnx_models
from millstream.client import Client
from millstream.models import Manifest, Repository, traffic
from service import Served, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
RULE = """
[watch]
every_s = 2

[watch.rules.empty-answers]
quantity = "empty"
of = "answers"
above = 0.1
least = 20
over_s = 20
for_s = 4
by = ["model", "version"]
severity = "page"
action = "roll_back"
dry_run = false
runbook = "docs/runbooks.md#empty-answers"
"""


def put(repository, bias):
    file = onnx_models.linear(repository.root.parent / f"{bias}.onnx", np.ones((2, 1)), bias)
    return repository.put("m", Manifest(format="onnx", file="model.onnx"), {"model.onnx": file})


def test_a_version_that_answers_nothing_is_rolled_back_by_itself(tmp_path):
    repository = Repository(tmp_path / "models")
    repository.root.mkdir()
    good = put(repository, 0.5)
    repository.change_policy("m", traffic.promote(good), who="test", why="first")
    config = tmp_path / "millstream.toml"
    config.write_text(f"http_port = {free_port()}\ngrpc_port = 0\n{RULE}")
    with (
        Served(None, tmp_path / "up.log", verb=("up", "-c", str(config))) as up,
        Client(f"http://127.0.0.1:{up.http}") as client,
    ):

        def ask(seconds, until=lambda: False):
            """Somebody asks all the time; the last answer."""
            end = time.monotonic() + seconds
            while time.monotonic() < end and not until():
                answer = client.predict("m", {"x": np.random.rand(1, 2).astype(np.float32)})["y"]
                time.sleep(0.02)
            return answer

        assert np.isfinite(ask(6)).all()
        bad = put(repository, np.inf)
        repository.change_policy("m", traffic.promote(bad), who="test", why="newer")
        began = time.monotonic()
        ask(100, lambda: repository.policy("m").live == good)
        assert repository.policy("m").live == good and time.monotonic() - began < 100
        time.sleep(1.0)  # processes follow it
        assert np.isfinite(ask(1)).all()
    policy = repository.policy("m")
    assert policy.who == "watch: empty-answers" and "empty / answers" in policy.why
    assert f"rolled m back from {bad} to {good}" in (tmp_path / "up.log").read_text()
