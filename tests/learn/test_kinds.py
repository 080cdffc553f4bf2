"""Every kind of learner in the loop: from settings to a base, through deltas to a server, across a restart."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from learn_house import House, example

from millstream.app.installation import Installation, Settings
from millstream.app.training import train, train_joined
from millstream.clock import FakeClock
from millstream.learn.offline import Plan
from millstream.models import Manifest, load, online
from millstream.models.online import KINDS
from millstream.stream import encode

SMALL = {"bits": 10}
TOKENS = np.array([np.frombuffer(example(number, 0.0).tokens, np.uint32) for number in range(40)])


def asked(**settings: object) -> Settings:
    features = {"user": [{"name": "id"}], "item": [{"name": "id"}]}
    tables = {"features": features, "learn": {"model": "ranker"}, **dict.fromkeys(KINDS, SMALL), **settings}
    return msgspec.convert(tables, Settings)


def begun(kind: str, width: int = 2) -> online.OnlineLearner:
    return online.begin(kind, getattr(asked(), kind), width)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_answers_as_the_fold_of_all_examples(tmp_path, kind):
    house = House.__new__(House)
    manifest = Manifest(format=kind, file="model.bin", lineage={"made_by": "a person"})
    house.put = lambda: house.repository.put("ranker", manifest, {"model.bin": begun(kind).dump()})
    house.__init__(tmp_path, base_examples=60)
    for count in (30, 45, 0, 50, 10):
        house.tell(count)
        house.turn()
        house.restart()
    live = house.policy.live
    assert int(live) > 2 and house.repository.manifest("ranker", live).format == kind
    served = load(house.repository, "ranker", live)
    for delta in house.deltas():
        if delta.base == live:
            weights = np.frombuffer(delta.weights, np.float32)
            served.apply(np.frombuffer(delta.slots, np.uint32), weights, np.frombuffer(delta.dense, np.float32))
    folded = begun(kind)
    rows = [example(number, float(number % 2)) for number in range(135)]
    folded.learn(np.array([np.frombuffer(row.tokens, np.uint32) for row in rows]), np.array([r.label for r in rows]))
    assert served.raw(TOKENS).tobytes() == folded.predict({"tokens": TOKENS})["probability"].tobytes()
    house.log.close()


@pytest.mark.parametrize("kind", KINDS)
def test_train_makes_the_kind_that_the_settings_name(tmp_path, kind):
    with Installation(tmp_path, asked(learner={"kind": kind}), FakeClock(5000.0)) as at:
        examples = at.log.writer("examples")
        for number in range(50):
            row = msgspec.structs.replace(example(number, float(number % 2)), definition=at.definition.hash)
            examples.append(b"", encode(row))
        examples.close()
        version = train_joined(at, Plan()).version
        manifest = at.repository.verify("ranker", version)
        assert (manifest.format, manifest.file, manifest.lineage["examples"]) == (kind, f"model.{kind}", 50)
        assert manifest.settings == json.loads(msgspec.json.encode(getattr(at.settings, kind)))
        learner, _ = online.load(at.repository.folder("ranker", version) / manifest.file)
        served = load(at.repository, "ranker", version)
    expected = learner.predict({"tokens": TOKENS})["probability"]
    assert served.predict({"tokens": TOKENS})["probability"].tobytes() == expected.tobytes()
    assert expected.std() > 0.01


def test_train_starts_from_an_offline_model(tmp_path):
    linear = np.linspace(-1, 1, 1024, dtype=np.float32)
    np.savez(tmp_path / "offline.npz", linear=linear)
    settings = asked(learner={"kind": "ftrl", "start": "offline.npz"})
    with Installation(tmp_path, settings, FakeClock(5000.0)) as at:
        version = train(at).version
        served = load(at.repository, "ranker", version)
    assert served.weights.tobytes() == linear.tobytes()
