"""The laws of every online learner: what lets one crash, resume, push, and be served while it learns."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_house import KINDS, SMALL, WIDTH, cut, new, stream

from millstream import errors
from millstream.models import online
from millstream.models.online import Change, Correction, FtrlTableSettings, begin

every = pytest.mark.parametrize("kind", KINDS)
cuts_of_200 = st.lists(st.integers(0, 200), max_size=6)


def same(one: Change, other: Change) -> bool:
    return all(a.tobytes() == b.tobytes() and a.shape == b.shape for a, b in zip(one, other, strict=True))


def answers(model: object, tokens: np.ndarray) -> bytes:
    return model.predict({"tokens": tokens})["probability"].tobytes()  # type: ignore[attr-defined,no-any-return]


@every
@settings(max_examples=20, deadline=None)
@given(cuts=cuts_of_200)
def test_folding_in_pieces_gives_the_bits_of_folding_at_once(kind: str, cuts: list[int]) -> None:
    rows = stream(200)
    whole, pieces = new(kind), new(kind)
    expected = whole.learn(*rows)
    got = [pieces.learn(*cut(rows, a, b)) for a, b in pairwise([0, *sorted(cuts), 200])]
    assert np.concatenate(got).tobytes() == expected.tobytes()
    assert pieces.dump() == whole.dump()
    assert np.isfinite(expected).all() and expected.std() > 0.03


@every
@settings(max_examples=20, deadline=None)
@given(cuts=cuts_of_200, twice=st.booleans())
def test_a_server_with_every_delta_answers_as_the_learner(kind: str, cuts: list[int], twice: bool) -> None:
    rows, unseen = stream(200), stream(100, seed=7)[0]
    learner = new(kind)
    served = learner.served()
    for a, b in pairwise([0, *sorted(cuts), 200]):
        learner.learn(*cut(rows, a, b))
        change = learner.delta()
        assert (np.diff(change.slots.astype(np.int64)) > 0).all()
        assert len(change.weights) == len(change.slots)
        for _ in range(1 + twice):
            served.apply(*change)
        for tokens in (rows[0], unseen):
            assert answers(served, tokens) == answers(learner, tokens) == answers(learner.served(), tokens)
    nothing = learner.delta()
    assert not len(nothing.slots) and not nothing.weights.size and not len(nothing.dense)


@every
@settings(max_examples=15, deadline=None)
@given(at=st.integers(0, 200), pushed=st.booleans())
def test_a_learner_that_was_saved_and_loaded_goes_on_as_if_nothing_happened(
    tmp_path_factory: pytest.TempPathFactory, kind: str, at: int, pushed: bool
) -> None:
    path = tmp_path_factory.mktemp("learner") / "snapshot"
    rows = stream(200)
    learner = new(kind)
    learner.learn(*cut(rows, 0, at))
    if pushed:
        learner.delta()
    learner.save(path, {"upto": at, "definition": "abc"})
    resumed, metadata = online.load(path)
    assert metadata == {"upto": at, "definition": "abc"}
    assert type(resumed) is type(learner) and resumed.settings == SMALL[kind] and resumed.width == WIDTH
    assert resumed.dump() == new_dump(learner)
    for one in (learner, resumed):
        one.learn(*cut(rows, at, 200))
    assert resumed.dump() == learner.dump()
    assert same(resumed.delta(), learner.delta())


def new_dump(learner: online.OnlineLearner) -> bytes:
    """A dump changes nothing, so the second is the first."""
    first = learner.dump()
    assert learner.dump() == first
    return first


@every
def test_a_snapshot_is_a_servable_model_with_its_correction(tmp_path: Path, kind: str) -> None:
    rows = stream(200)
    learner = new(kind)
    learner.learn(*rows)
    correction = Correction(slope=0.5, intercept=0.1, shift=-1.0)
    learner.save(tmp_path / "snapshot", correction.metadata())
    served = online.load_served(tmp_path / "snapshot")
    raw = learner.predict({"tokens": rows[0]})["probability"]
    assert answers(served, rows[0]) == correction.apply(raw).tobytes() == answers(learner.served(correction), rows[0])
    assert served.raw(rows[0]).tobytes() == raw.tobytes()
    learner.learn(*rows)
    assert served.raw(rows[0]).tobytes() == raw.tobytes(), "served weights are private"


@every
def test_the_progressive_prediction_is_what_was_served_just_before(kind: str) -> None:
    rows = stream(60)
    learner = new(kind)
    for i in range(60):
        before = learner.served().predict({"tokens": rows[0][i : i + 1]})["probability"]
        assert learner.learn(*cut(rows, i, i + 1)) == before


@every
def test_a_row_is_answered_alone_whatever_its_batch(kind: str) -> None:
    rows = stream(100)
    learner = new(kind)
    learner.learn(*rows)
    served = learner.served()
    together = served.predict({"tokens": rows[0]})["probability"]
    alone = [served.predict({"tokens": rows[0][i : i + 1]})["probability"][0] for i in range(100)]
    assert together.dtype == np.float32 and together.tolist() == [float(p) for p in alone]
    assert served.predict({"tokens": rows[0][:0]})["probability"].shape == (0,)


@every
@pytest.mark.parametrize(
    ("labels", "weights", "says"),
    [
        ([0, math.nan], [1, 1], "label of row 1 is nan"),
        ([0, 2], [1, 1], "label of row 1 is 2"),
        ([0, -0.5], [1, 1], "label of row 1 is -0.5"),
        ([0, 1], [math.inf, 1], "weight of row 0 is inf"),
        ([0, 1], [1, -1], "weight of row 1 is -1"),
        ([0, 1], [1, 1e7], r"weight of row 1 is 1\d+\.0; it must lie in \[0, 1e\+06\]"),
        ([0], [1, 1], r"expected one a row, \[2\], got \[1\]"),
    ],
)
def test_a_bad_batch_is_refused_whole(kind: str, labels: Sequence[float], weights: Sequence[float], says: str) -> None:
    learner = new(kind, 1)
    before = learner.dump()
    with pytest.raises(errors.BadInput, match=says):
        learner.learn(np.ones((2, 1), np.uint32), np.array(labels, np.float32), np.array(weights, np.float32))
    assert learner.dump() == before


@every
@pytest.mark.parametrize("tokens", [np.ones((1, 2), np.uint32), np.ones((1, 1), np.int64), np.ones(1, np.uint32)])
def test_tokens_of_another_shape_or_type_are_refused(kind: str, tokens: np.ndarray) -> None:
    learner = new(kind, 1)
    for call in (lambda: learner.predict({"tokens": tokens}), lambda: learner.learn(tokens, np.ones(1, np.float32))):
        with pytest.raises(errors.BadInput, match=r"expected uint32 \[rows, 1\]"):
            call()
    with pytest.raises(errors.BadInput, match="'rows'"):
        learner.predict({"rows": tokens})


@every
def test_a_bad_change_changes_nothing(kind: str) -> None:
    rows = stream(50)
    learner = new(kind)
    served = learner.served()
    learner.learn(*rows)
    good = learner.delta()
    before = answers(served, rows[0])
    broken = good.weights.copy()
    broken.flat[3] = math.nan
    wrong = [
        Change(good.slots, broken, good.dense),
        Change(good.slots, np.where(good.weights > 0, math.inf, good.weights), good.dense),
        Change(good.slots[1:], good.weights, good.dense),
        Change(good.slots, good.weights, np.append(good.dense, np.float32(1))),
        Change(good.slots, good.weights, np.append(good.dense[1:], np.float32(math.inf))),
    ]
    for change in wrong:
        with pytest.raises(errors.BadInput, match="delta"):
            served.apply(*change)
    with pytest.raises(errors.BadInput, match="calibration"):
        served.apply(*good, np.ones(3))
    assert answers(served, rows[0]) == before
    served.apply(*good)
    assert answers(served, rows[0]) == answers(learner, rows[0]) != before


@every
def test_the_heaviest_rows_leave_finite_weights(kind: str) -> None:
    learner = new(kind, 3)
    tokens = np.array([[1, 2, 1], [2, 3, 0]], np.uint32)
    for _ in range(300):
        learner.learn(tokens, np.array([1, 0], np.float32), np.full(2, 1e6, np.float32))
    assert np.isfinite(learner.delta().values()).all()
    assert np.isfinite(learner.predict({"tokens": tokens})["probability"]).all()


@every
@pytest.mark.parametrize("damage", ["flip", "cut", "other", "later"])
def test_a_damaged_snapshot_is_said_to_be_damaged(tmp_path: Path, kind: str, damage: str) -> None:
    learner = new(kind)
    learner.learn(*stream(50))
    data = bytearray(learner.dump())
    data[len(data) // 2] ^= damage == "flip"
    later = bytes(data).replace(b" 1\n", b" 2\n", 1)
    path = tmp_path / "snapshot"
    path.write_bytes({"flip": data, "cut": data[:-100], "other": b"onnx" * 20, "later": later}[damage])
    for load in (online.load, online.load_served):
        with pytest.raises(errors.Later if damage == "later" else errors.Corrupt, match="snapshot"):
            load(path)


@every
def test_received_bytes_are_taken_as_they_are(kind: str) -> None:
    tokens, labels, weights = stream(30)
    plain, received = new(kind), new(kind)
    plain.learn(tokens, labels, weights)
    raw = np.frombuffer(b"." + tokens.tobytes(), np.uint8)[1:].view("<u4").reshape(-1, WIDTH)
    assert not raw.flags.aligned and not raw.flags.writeable
    received.learn(raw, np.frombuffer(labels.tobytes(), "<f4"), np.frombuffer(weights.tobytes(), "<f4"))
    assert received.dump() == plain.dump()


@every
def test_it_learns(kind: str) -> None:
    tokens, _, _ = stream(4000)
    labels = ((tokens > 2**31).sum(axis=1) > 1).astype(np.float32)
    remembers = FtrlTableSettings(bits=10, keep=1000)
    learner = begin("ftrl_table", remembers, WIDTH) if kind == "ftrl_table" else new(kind)
    learner.learn(tokens[:3000], labels[:3000])
    p = learner.predict({"tokens": tokens[3000:]})["probability"]
    positive, negative = p[labels[3000:] == 1], p[labels[3000:] == 0]
    assert (positive[:, None] > negative).mean() > 0.9


def test_a_kind_is_compiled_when_it_is_asked_for(tmp_path: Path) -> None:
    """And every kernel compiles with an empty cache: a full one would hide that it no longer does."""
    code = """
import sys, time
from millstream.models import online
loaded = [name.removeprefix("millstream.models.online.") for name in sys.modules]
assert not {"fm", "deepfm", "factors", "table"} & set(loaded)
online.warm()
from millstream.models.online import factors, ftrl, table
kernels = [ftrl._learn, ftrl._predict, factors.learn, factors.predict, factors.begin_factors, factors.begin_layers]
kernels += [table._learn, table._predict, table._predict_learner, table._count, table._set]
for kernel in kernels:
    assert len(kernel.signatures) == 1 and kernel._can_compile is False
"""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
