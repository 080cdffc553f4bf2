"""FTRL-proximal against a slow reference, and the laws that let a learner crash, resume and push."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream import errors
from millstream.models import online
from millstream.models.online import Change, Correction, Ftrl, ServedFtrl, Settings, ftrl

WIDTH = 5
SMALL = Settings(bits=10)
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


def stream(rows: int, seed: int = 1, vocabulary: int = 300) -> Rows:
    """Rows with empty places, repeated tokens, soft labels and uneven weights; tokens use all 32 bits."""
    random = np.random.default_rng(seed)
    words = random.integers(1, 2**32, vocabulary, dtype=np.uint32)
    tokens = words[(vocabulary * random.random((rows, WIDTH)) ** 2).astype(int)]
    tokens[random.random((rows, WIDTH)) < 0.2] = 0
    labels = (random.random(rows) < 0.05 + 0.9 * (tokens > 2**31).mean(axis=1)).astype(np.float32)
    weights = random.choice([0.5, 1.0, 2.0], rows).astype(np.float32)
    return tokens, labels, weights


def reference(rows: Rows, s: Settings) -> Iterator[tuple[float, dict[int, float]]]:
    """McMahan et al. 2013, algorithm 1, word for word in float64: (prediction, weights after it) row by row.

    Two tokens of one row in one slot act in turn, the second seeing what the first did.
    """
    z: dict[int, float] = defaultdict(float)
    n: dict[int, float] = defaultdict(float)

    def weight(i: int) -> float:
        if abs(z[i]) <= s.l1:
            return 0.0
        return -(z[i] - math.copysign(s.l1, z[i])) / ((s.beta + math.sqrt(n[i])) / s.alpha + s.l2)

    for tokens, y, importance in zip(*rows, strict=True):
        active = [int(t) % 2**s.bits for t in tokens if t]
        p = 1 / (1 + math.exp(-sum(weight(i) for i in active)))
        g = (p - float(y)) * float(importance)
        for i in active:
            w = weight(i)
            sigma = (math.sqrt(n[i] + g * g) - math.sqrt(n[i])) / s.alpha
            z[i] += g - sigma * w
            n[i] += g * g
        yield p, {i: weight(i) for i in z}


@pytest.mark.parametrize("s", [SMALL, Settings(alpha=0.05, beta=0.5, l1=0.0, l2=0.0, bits=10), Settings(l1=2, bits=10)])
def test_predictions_and_weights_are_those_of_the_paper(s: Settings) -> None:
    rows = stream(600)
    learner = Ftrl(s, WIDTH)
    got = learner.learn(*rows)
    expected = list(reference(rows, s))
    np.testing.assert_allclose(got, [p for p, _ in expected], atol=2e-5)
    weights = np.zeros(2**s.bits)
    for slot, weight in expected[-1][1].items():
        weights[slot] = weight
    np.testing.assert_allclose(learner.weights(), weights, atol=5e-5)
    assert np.abs(weights).max() > 0.05


def test_l1_keeps_rare_slots_exactly_zero() -> None:
    rows = stream(400)
    dense, sparse = Ftrl(Settings(l1=0, bits=10), WIDTH), Ftrl(Settings(l1=3, bits=10), WIDTH)
    for learner in (dense, sparse):
        learner.learn(*rows)
    assert 0 < np.count_nonzero(sparse.weights()) < np.count_nonzero(dense.weights()) / 2


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 200), max_size=6))
def test_folding_in_pieces_gives_the_bits_of_folding_at_once(cuts: list[int]) -> None:
    rows = stream(200)
    whole, pieces = Ftrl(SMALL, WIDTH), Ftrl(SMALL, WIDTH)
    expected = whole.learn(*rows)
    edges = [0, *sorted(cuts), 200]
    got = [pieces.learn(*(part[a:b] for part in rows)) for a, b in pairwise(edges)]
    assert np.concatenate(got).tobytes() == expected.tobytes()
    assert pieces.dump() == whole.dump()


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 200), max_size=6))
def test_applying_every_delta_gives_the_full_weights(cuts: list[int]) -> None:
    rows = stream(200)
    learner = Ftrl(SMALL, WIDTH)
    served = learner.served()
    edges = [0, *sorted(cuts), 200]
    for a, b in pairwise(edges):
        learner.learn(*(part[a:b] for part in rows))
        slots, weights, _ = learner.delta()
        assert (np.diff(slots.astype(np.int64)) > 0).all()
        assert set(slots.tolist()) == set((rows[0][a:b][rows[0][a:b] != 0] & 1023).tolist())
        served.apply(slots, weights)
        served.apply(slots, weights)
        assert served.weights.tobytes() == learner.weights().tobytes()
    assert len(learner.delta().slots) == 0


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(0, 200), pushed=st.booleans())
def test_a_learner_that_was_saved_and_loaded_goes_on_as_if_nothing_happened(
    tmp_path_factory: pytest.TempPathFactory, cut: int, pushed: bool
) -> None:
    path = tmp_path_factory.mktemp("ftrl") / "snapshot"
    rows = stream(200)
    learner = Ftrl(SMALL, WIDTH)
    learner.learn(*(part[:cut] for part in rows))
    if pushed:
        learner.delta()
    learner.save(path, {"upto": cut, "definition": "abc"})
    resumed, metadata = Ftrl.load(path)
    assert metadata == {"upto": cut, "definition": "abc"}
    assert resumed.settings == SMALL and resumed.width == WIDTH
    for one in (learner, resumed):
        one.learn(*(part[cut:] for part in rows))
    assert resumed.dump() == learner.dump()
    for got, expected in zip(resumed.delta(), learner.delta(), strict=True):
        assert got.tobytes() == expected.tobytes()


def test_a_snapshot_is_a_servable_model(tmp_path: Path) -> None:
    tokens, labels, weights = stream(200)
    learner = Ftrl(SMALL, WIDTH)
    learner.learn(tokens, labels, weights)
    learner.save(tmp_path / "snapshot")
    served = ServedFtrl.load(tmp_path / "snapshot")
    expected = learner.predict({"tokens": tokens})["probability"]
    assert served.predict({"tokens": tokens})["probability"].tobytes() == expected.tobytes()
    assert served.inputs == ServedFtrl(learner.weights(), WIDTH).inputs


def test_any_kind_is_loaded_by_its_first_line(tmp_path: Path) -> None:
    rows = stream(100)
    learner = Ftrl(SMALL, WIDTH)
    learner.learn(*rows)
    correction = Correction(slope=0.5, intercept=1.0, shift=-2.0)
    learner.save(tmp_path / "snapshot", {"upto": 100, **correction.metadata()})
    loaded, metadata = online.load(tmp_path / "snapshot")
    assert isinstance(loaded, Ftrl) and loaded.dump() == learner.dump() and metadata["upto"] == 100
    served = online.load_served(tmp_path / "snapshot")
    raw, answered = (one.predict({"tokens": rows[0]})["probability"] for one in (learner, served))
    assert answered.tobytes() == correction.apply(raw).tobytes() != raw.tobytes()
    (tmp_path / "other").write_bytes(b"millstream gru 1\n" + b"x" * 40)
    with pytest.raises(errors.Corrupt, match="kind 'gru', which is not known here; there are: ftrl"):
        online.load(tmp_path / "other")


def test_a_delta_may_bring_another_calibration() -> None:
    tokens, labels, weights = stream(100)
    learner = Ftrl(SMALL, WIDTH)
    served = learner.served(Correction(shift=-1.0))
    learner.learn(tokens, labels, weights)
    served.apply(*learner.delta(), np.array([2.0, 0.25]))
    expected = Correction(slope=2.0, intercept=0.25, shift=-1.0)
    raw = learner.predict({"tokens": tokens})["probability"]
    assert served.correction == expected
    assert served.predict({"tokens": tokens})["probability"].tobytes() == expected.apply(raw).tobytes()
    before = served.weights.copy()
    for wrong in ([0.0, 1.0], [math.nan, 0.0], [1.0], [1.0, math.inf]):
        with pytest.raises(errors.BadInput, match=r"correction|calibration"):
            served.apply(np.array([1], np.uint32), np.ones(1, np.float32), calibration=np.array(wrong))
    assert served.correction == expected and served.weights.tobytes() == before.tobytes()


def test_served_weights_are_private() -> None:
    learner = Ftrl(SMALL, WIDTH)
    served = learner.served()
    learner.learn(*stream(50))
    assert not served.weights.any()


def test_a_row_is_answered_alone_whatever_its_batch() -> None:
    tokens, labels, _ = stream(100)
    learner = Ftrl(SMALL, WIDTH)
    learner.learn(tokens, labels)
    served = learner.served()
    together = served.predict({"tokens": tokens})["probability"]
    alone = [served.predict({"tokens": tokens[i : i + 1]})["probability"][0] for i in range(100)]
    assert together.dtype == np.float32 and together.tolist() == [float(p) for p in alone]
    assert served.predict({"tokens": tokens[:0]})["probability"].shape == (0,)


def test_the_progressive_prediction_is_what_was_served_just_before() -> None:
    tokens, labels, weights = stream(60)
    learner = Ftrl(SMALL, WIDTH)
    for i in range(60):
        before = learner.predict({"tokens": tokens[i : i + 1]})["probability"]
        assert learner.learn(tokens[i : i + 1], labels[i : i + 1], weights[i : i + 1]) == before


def test_an_empty_row_is_even_odds_and_teaches_nothing() -> None:
    learner = Ftrl(SMALL, WIDTH)
    empty = learner.dump()
    assert learner.learn(np.zeros((3, WIDTH), np.uint32), np.ones(3, np.float32)).tolist() == [0.5] * 3
    assert learner.dump() == empty


def test_extreme_logits_stay_finite() -> None:
    served = ServedFtrl(np.full(1024, 1e30, np.float32), 1)
    served.weights[7] = -1e30
    assert served.predict({"tokens": np.array([[1], [7]], np.uint32)})["probability"].tolist() == pytest.approx([1, 0])
    heavy = Ftrl(SMALL, 1)
    for _ in range(50):
        heavy.learn(np.ones((2, 1), np.uint32), np.array([1, 0], np.float32), np.full(2, 1e6, np.float32))
    assert np.isfinite(heavy.weights()).all()


def test_received_bytes_are_taken_as_they_are() -> None:
    tokens, labels, weights = stream(30)
    raw = np.frombuffer(tokens.tobytes(), "<u4").reshape(-1, WIDTH)
    assert not raw.flags.writeable
    plain, read_only = Ftrl(SMALL, WIDTH), Ftrl(SMALL, WIDTH)
    plain.learn(tokens, labels, weights)
    read_only.learn(raw, np.frombuffer(labels.tobytes(), "<f4"), np.frombuffer(weights.tobytes(), "<f4"))
    assert read_only.dump() == plain.dump()
    unaligned = np.frombuffer(b"." + tokens.tobytes(), np.uint8)[1:].view("<u4").reshape(-1, WIDTH)
    assert not unaligned.flags.aligned
    probability = plain.predict({"tokens": unaligned})["probability"]
    assert probability.tobytes() == plain.predict({"tokens": tokens})["probability"].tobytes()


@pytest.mark.parametrize(
    ("labels", "weights", "says"),
    [
        ([0, math.nan], [1, 1], "label of row 1 is nan"),
        ([0, 2], [1, 1], "label of row 1 is 2"),
        ([0, 1], [math.inf, 1], "weight of row 0 is inf"),
        ([0, 1], [1, -1], "weight of row 1 is -1"),
        ([0], [1, 1], r"expected one a row, \[2\], got \[1\]"),
    ],
)
def test_a_bad_batch_is_refused_whole(labels: Sequence[float], weights: Sequence[float], says: str) -> None:
    learner = Ftrl(SMALL, 1)
    before = learner.dump()
    with pytest.raises(errors.BadInput, match=says):
        learner.learn(np.ones((2, 1), np.uint32), np.array(labels, np.float32), np.array(weights, np.float32))
    assert learner.dump() == before


@pytest.mark.parametrize(
    "tokens",
    [np.ones((1, 2), np.uint32), np.ones((1, 1), np.int64), np.ones(1, np.uint32), np.ones((1, 1, 1), np.uint32)],
)
def test_tokens_of_another_shape_or_type_are_refused(tokens: np.ndarray) -> None:
    learner = Ftrl(SMALL, 1)
    with pytest.raises(errors.BadInput, match=r"expected uint32 \[rows, 1\]"):
        learner.predict({"tokens": tokens})
    with pytest.raises(errors.BadInput, match=r"expected uint32 \[rows, 1\]"):
        learner.learn(tokens, np.ones(1, np.float32))


def test_an_unknown_input_is_refused() -> None:
    with pytest.raises(errors.BadInput, match="the one input 'tokens', got \\['rows'\\]"):
        Ftrl(SMALL, 1).predict({"rows": np.ones((1, 1), np.uint32)})


@pytest.mark.parametrize(
    ("slots", "weights"), [([1, 1024], [1, 1]), ([1, 2], [1, math.nan]), ([1, 2], [math.inf, 1]), ([1, 2], [1])]
)
def test_a_bad_delta_changes_nothing(slots: list[int], weights: list[float]) -> None:
    served = Ftrl(SMALL, 1).served()
    with pytest.raises(errors.BadInput, match="delta"):
        served.apply(np.array(slots, np.uint32), np.array(weights, np.float32))
    with pytest.raises(errors.BadInput, match="1 dense"):
        served.apply(*Change(np.ones(1, np.uint32), np.ones(1, np.float32), np.ones(1, np.float32)))
    assert not served.weights.any()


@pytest.mark.parametrize("damage", ["flip", "cut", "other"])
def test_a_damaged_snapshot_is_said_to_be_damaged(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "snapshot"
    learner = Ftrl(SMALL, WIDTH)
    learner.learn(*stream(50))
    data = bytearray(learner.dump())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes({"flip": data, "cut": data[:-100], "other": b"onnx" * 20}[damage])
    for load in (Ftrl.load, ServedFtrl.load):
        with pytest.raises(errors.Corrupt, match="snapshot"):
            load(path)


@pytest.mark.parametrize(
    "wrong",
    [{"alpha": 0.0}, {"alpha": math.nan}, {"beta": 0.0}, {"l1": -1.0}, {"l2": math.inf}, {"bits": 9}, {"bits": 25}],
)
def test_settings_have_bounds(wrong: dict[str, float]) -> None:
    with pytest.raises(errors.Misconfigured, match=next(iter(wrong))):
        Settings(**wrong)  # type: ignore[arg-type]


def test_weights_come_in_a_power_of_two() -> None:
    with pytest.raises(errors.Misconfigured, match="got 1000"):
        ServedFtrl(np.zeros(1000, np.float32), 1)


def test_it_learns() -> None:
    tokens, _, _ = stream(4000)
    labels = ((tokens > 2**31).sum(axis=1) > 1).astype(np.float32)
    learner = Ftrl(SMALL, WIDTH)
    learner.learn(tokens[:3000], labels[:3000])
    p = learner.predict({"tokens": tokens[3000:]})["probability"]
    positive, negative = p[labels[3000:] == 1], p[labels[3000:] == 0]
    assert (positive[:, None] > negative).mean() > 0.9


def test_every_kernel_is_compiled_once_for_good() -> None:
    online.warm()
    for kernel in (ftrl._learn, ftrl._predict):
        assert len(kernel.signatures) == 1  # type: ignore[attr-defined]
        assert kernel._can_compile is False  # type: ignore[attr-defined]


def test_without_numba_the_message_carries_the_install_line() -> None:
    code = "import sys; sys.modules['numba'] = None; import millstream.models.online"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "millstream.errors.Missing" in done.stderr
    assert "pip install 'millstream[learn]'" in done.stderr
