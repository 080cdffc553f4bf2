"""Factorisation machine and DeepFM against plain formulas, and every step of theirs against automatic differentiation.

The oracle is torch in float64 with the optimizers written out; it shares no line with the kernels. It needs torch, so
it is slow by name; the formulas of the forward pass are checked always.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learner_house import SMALL, WIDTH, new, stream

from millstream import errors
from millstream.models import online
from millstream.models.online import DeepFmSettings, FmSettings, Settings, begin, offline

S = 1 << 10
DEEP = SMALL["deepfm"]


def arrays(kind: str, seed: int = 3, width: int = WIDTH) -> offline.Arrays:
    """An offline model of this kind."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return (0.3 * random.standard_normal(shape)).astype(np.float32)

    found = {"linear": normal(S) * (random.random(S) < 0.7)}
    if kind != "ftrl":
        found |= {"factors": normal(S, 3), "bias": normal(1)}
    if kind == "deepfm":
        for layer, (inputs, units) in enumerate([(width * 3, 6), (6, 5), (5, 1)]):
            found |= {f"layer{layer}.weight": normal(units, inputs), f"layer{layer}.bias": normal(units)}
    return {name: array.astype(np.float32) for name, array in found.items()}


def saved(path: Path, kind: str, **more: np.ndarray) -> Path:
    np.savez(path / "start.npz", **arrays(kind) | more)
    return path / "start.npz"


def formula(model: offline.Arrays, tokens: np.ndarray) -> list[float]:
    """Probabilities of an offline model, each pair of factors multiplied by hand."""
    answers = []
    for row in tokens:
        slots = [int(token) % S for token in row if token]
        logit = float(model["bias"][0]) + sum(float(model["linear"][i]) for i in slots)
        vectors = [model["factors"][i].astype(np.float64) for i in slots]
        logit += sum(float(a @ b) for n, a in enumerate(vectors) for b in vectors[:n])
        if "layer0.weight" in model:
            x = np.concatenate([model["factors"][int(t) % S] if t else np.zeros(3) for t in row]).astype(np.float64)
            for layer in range(3):
                x = model[f"layer{layer}.weight"] @ x + model[f"layer{layer}.bias"]
                x = np.maximum(x, 0) if layer < 2 else x
            logit += float(x[0])
        answers.append(1 / (1 + math.exp(-logit)))
    return answers


@pytest.mark.parametrize("kind", ["fm", "deepfm"])
def test_answers_are_those_of_the_formula(tmp_path: Path, kind: str) -> None:
    tokens = stream(60)[0]
    learner = begin(kind, SMALL[kind], WIDTH, saved(tmp_path, kind))
    expected = formula(arrays(kind), tokens)
    np.testing.assert_allclose(learner.predict({"tokens": tokens})["probability"], expected, rtol=2e-5)
    assert np.std(expected) > 0.1


def test_what_is_not_learnt_yet_is_small_and_the_same_everywhere() -> None:
    one, other = new("deepfm").served(), new("deepfm").served()
    assert one.values.tobytes() == other.values.tobytes() and one.dense.tobytes() == other.dense.tobytes()
    factors = one.values[:, 1:]
    assert abs(factors.mean()) < 0.01 and 0.19 < np.abs(factors).max() <= 0.2
    assert len(np.unique(factors)) > 0.99 * factors.size and not one.values[:, 0].any()


class Oracle:
    """The row's loss in torch, float64: gradients by automatic differentiation, one leaf a place; then the steps."""

    def __init__(self, model: offline.Arrays, s: Any, squares: float) -> None:
        import torch

        self.torch, self.s = torch, s
        self.linear = model["linear"].astype(np.float64)
        self.factors = model["factors"].astype(np.float64)
        self.n = np.where(self.linear != 0, squares, 0.0)
        d = (s.beta + np.sqrt(self.n)) / s.alpha + s.l2
        self.z = -(self.linear * d + np.sign(self.linear) * s.l1)
        self.factor_squares = np.full_like(self.factors, squares)
        self.dense = [model["bias"].astype(np.float64)]
        for layer in range(3 if "layer0.weight" in model else 0):
            self.dense += [model[f"layer{layer}.{part}"].astype(np.float64) for part in ("weight", "bias")]
        self.dense_squares = [np.full_like(one, squares) for one in self.dense]

    def learn(self, row: np.ndarray, label: float, weight: float) -> float:
        torch, s = self.torch, self.s
        slots = [int(token) % S for token in row if token]
        w = torch.tensor(self.linear[slots], requires_grad=True)
        v = torch.tensor(self.factors[slots].reshape(len(slots), 3), requires_grad=True)
        dense = [torch.tensor(one, requires_grad=True) for one in self.dense]
        logit = dense[0][0] + w.sum()
        logit = logit + ((v.sum(0) ** 2).sum() - (v**2).sum()) / 2
        if len(dense) > 1:
            places, empty = iter(v), torch.zeros(3, dtype=torch.float64)
            units = torch.cat([next(places) if token else empty for token in row])
            for layer in range(3):
                units = dense[1 + 2 * layer] @ units + dense[2 + 2 * layer]
                units = torch.relu(units) if layer < 2 else units
            logit = logit + units[0]
        p = torch.sigmoid(logit)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, torch.tensor(label, dtype=torch.float64))
        (weight * (loss + s.decay / 2 * (v**2).sum())).backward()
        for i, gradient in zip(slots, w.grad.numpy(), strict=True):
            self._ftrl(i, float(gradient))
        for i, gradient in zip(slots, v.grad.numpy(), strict=True):
            self.factor_squares[i] += gradient**2
            self.factors[i] -= s.rate * gradient / (s.ease + np.sqrt(self.factor_squares[i]))
        for at, one in enumerate(dense):
            gradient, squares = one.grad.numpy(), self.dense_squares[at]
            squares += gradient**2
            rate, ease = (s.alpha, s.beta) if at == 0 else (s.dense_rate, s.ease)
            self.dense[at] = self.dense[at] - rate * gradient / (ease + np.sqrt(squares))
        return float(p.detach())

    def _ftrl(self, i: int, gradient: float) -> None:
        s, n = self.s, self.n[i]
        self.n[i] += gradient**2
        self.z[i] += gradient - (math.sqrt(self.n[i]) - math.sqrt(n)) / s.alpha * self.linear[i]
        beyond = abs(self.z[i]) - s.l1
        d = (s.beta + math.sqrt(self.n[i])) / s.alpha + s.l2
        self.linear[i] = -math.copysign(beyond, self.z[i]) / d if beyond > 0 else 0.0


@pytest.mark.slow
@pytest.mark.parametrize("squares", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["fm", "deepfm"])
def test_every_step_is_that_of_automatic_differentiation(tmp_path: Path, kind: str, squares: float) -> None:
    rows = stream(250)
    s = SMALL[kind]
    learner = begin(kind, s, WIDTH, saved(tmp_path, kind), squares)
    oracle = Oracle(arrays(kind), s, squares)
    got = learner.learn(*rows)
    expected = [oracle.learn(row, float(y), float(weight)) for row, y, weight in zip(*rows, strict=True)]
    np.testing.assert_allclose(got, expected, atol=2e-5)
    served = learner.served()
    np.testing.assert_allclose(served.values[:, 0], oracle.linear, atol=2e-5)
    np.testing.assert_allclose(served.values[:, 1:], oracle.factors, atol=2e-5)
    dense = [oracle.dense[0], *(one.T.ravel() for one in oracle.dense[1:])]
    np.testing.assert_allclose(served.dense, np.concatenate(dense), atol=2e-5)
    begun = arrays(kind)
    assert np.abs(oracle.factors - begun["factors"]).max() > 0.01


@pytest.mark.slow
def test_a_torch_module_is_what_a_learner_starts_from(tmp_path: Path) -> None:
    import torch
    from torch import nn

    class Trained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.factors = nn.Embedding(S, 1), nn.Embedding(S, 3)
            self.bias = nn.Parameter(torch.tensor([0.3]))
            self.layers = nn.Sequential(nn.Linear(WIDTH * 3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            slots, there = tokens % S, (tokens != 0).float()
            v = self.factors(slots) * there[:, :, None]
            pairs = ((v.sum(1) ** 2) - (v**2).sum(1)).sum(1) / 2
            linear = (self.linear(slots)[:, :, 0] * there).sum(1)
            return torch.sigmoid(self.bias + linear + pairs + self.layers(v.flatten(1))[:, 0])

    torch.manual_seed(1)
    module, tokens = Trained(), stream(80)[0]
    np.savez(tmp_path / "start.npz", **offline.from_torch(module.state_dict()))
    learner = begin("deepfm", DEEP, WIDTH, tmp_path / "start.npz")
    expected = module(torch.tensor(tokens.astype(np.int64))).detach().numpy()
    np.testing.assert_allclose(learner.predict({"tokens": tokens})["probability"], expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(errors.BadInput, match=r"'towers\.weight'"):
        offline.from_torch({"towers.weight": torch.zeros(3)})


@pytest.mark.parametrize("kind", ["ftrl", "fm", "deepfm"])
def test_a_learner_that_starts_offline_is_whole(tmp_path: Path, kind: str) -> None:
    """What it started from survives a save, travels to servers, and goes on learning from there, not from nothing."""
    rows = stream(100)
    learner = begin(kind, SMALL[kind], WIDTH, saved(tmp_path, kind))
    learner.save(tmp_path / "snapshot")
    resumed, served = online.load(tmp_path / "snapshot")[0], online.load_served(tmp_path / "snapshot")
    before = learner.predict({"tokens": rows[0]})["probability"]
    assert served.raw(rows[0]).tobytes() == before.tobytes() and before.std() > 0.05
    for one in (learner, resumed):
        one.learn(*rows)
    assert resumed.dump() == learner.dump()
    served.apply(*resumed.delta())
    after = learner.predict({"tokens": rows[0]})["probability"]
    assert served.raw(rows[0]).tobytes() == after.tobytes()
    assert 0.01 < np.abs(after - before).mean() < 0.2


def test_a_factorisation_machine_starts_deepfm(tmp_path: Path) -> None:
    tokens = stream(60)[0]
    deep = begin("deepfm", DEEP, WIDTH, saved(tmp_path, "fm"))
    answers = deep.predict({"tokens": tokens})["probability"]
    np.testing.assert_allclose(answers, formula(arrays("fm"), tokens), rtol=2e-5)
    begun = deep.served().dense.copy()
    deep.learn(tokens, np.ones(60, np.float32))
    deep.learn(tokens, np.ones(60, np.float32))
    assert (deep.served().dense != begun)[1:].mean() > 0.3, "its layers learn, too"


@pytest.mark.parametrize(
    ("kind", "has", "more", "says"),
    [
        ("ftrl", "fm", {}, r"bias is \[1\]; settings and features ask for not there"),
        ("ftrl", "ftrl", {"linear": np.zeros(2048)}, r"linear is \[2048\]; settings and features ask for \[1024\]"),
        ("fm", "deepfm", {}, r"layer0.bias is \[6\]; settings and features ask for not there"),
        ("fm", "fm", {"factors": np.zeros((S, 4))}, r"factors is \[1024, 4\].* ask for \[1024, 3\]"),
        ("fm", "ftrl", {}, r"bias is not there; .* ask for \[1\]"),
        ("deepfm", "deepfm", {"layer0.weight": np.zeros((6, 12))}, r"layer0.weight is \[6, 12\].* ask for \[6, 15\]"),
        ("deepfm", "deepfm", {"layer1.bias": np.array([math.nan] * 5)}, r"layer1.bias has a number .* not finite"),
        ("fm", "fm", {"bias": np.array([1e7])}, r"bias has a number that is not finite, or beyond 1e\+06"),
    ],
)
def test_an_offline_model_that_does_not_fit_is_refused(
    tmp_path: Path, kind: str, has: str, more: dict[str, np.ndarray], says: str
) -> None:
    path = saved(tmp_path, has, **more)
    with pytest.raises(errors.Misconfigured, match=r"start\.npz: " + says):
        begin(kind, SMALL[kind], WIDTH, path)  # type: ignore[arg-type]


def test_a_file_that_holds_no_arrays_is_refused(tmp_path: Path) -> None:
    (tmp_path / "start.npz").write_bytes(b"PK" + b"x" * 50)
    with pytest.raises(errors.Misconfigured, match=r"no \.npz of arrays"):
        begin("ftrl", Settings(), 1, tmp_path / "start.npz")
    np.savez(tmp_path / "start.npz", linear=np.array([{}]))
    with pytest.raises(errors.Misconfigured, match=r"no \.npz of arrays"):
        begin("ftrl", Settings(), 1, tmp_path / "start.npz")


@pytest.mark.parametrize("kind", ["ftrl", "fm", "deepfm"])
def test_another_learners_state_goes_on_with_other_rates(tmp_path: Path, kind: str) -> None:
    import msgspec

    rows = stream(100)
    before = new(kind)
    before.learn(*rows)
    before.save(tmp_path / "model")
    slower = msgspec.structs.replace(SMALL[kind], alpha=1e-6, **({} if kind == "ftrl" else {"rate": 1e-6}))
    again = begin(kind, slower, WIDTH, tmp_path / "model")  # type: ignore[arg-type]
    assert again.settings == slower and not len(again.delta().slots)
    same = before.predict({"tokens": rows[0]})["probability"]
    assert again.predict({"tokens": rows[0]})["probability"].tobytes() == same.tobytes()


@pytest.mark.parametrize(
    ("kind", "other", "width", "says"),
    [
        ("ftrl", Settings(bits=11), WIDTH, "its bits is 10, and 11 is asked for: .* Train anew, or keep bits = 10"),
        ("ftrl", Settings(bits=10), WIDTH + 1, "its width is 5, and 6 is asked for"),
        ("fm", FmSettings(bits=10, factors=4, scale=0.2), WIDTH, "its factors is 3, and 4 is asked for"),
        ("deepfm", DeepFmSettings(bits=10, factors=3, scale=0.2), WIDTH, r"its hidden is \(6, 5\), and \(32, 16\)"),
        ("ftrl", FmSettings(), WIDTH, r"a learner of another kind; name its kind in learner\.kind"),
    ],
)
def test_another_learners_state_of_other_sizes_is_refused(
    tmp_path: Path, kind: str, other: Any, width: int, says: str
) -> None:
    new(kind).save(tmp_path / "model")
    asked: Any = {Settings: "ftrl", FmSettings: "fm", DeepFmSettings: "deepfm"}[type(other)]
    with pytest.raises(errors.Misconfigured, match=says):
        begin(asked, other, width, tmp_path / "model")


@pytest.mark.parametrize(
    "wrong",
    [
        {"bits": 9}, {"bits": 25}, {"factors": 0}, {"factors": 65}, {"rate": 0.0}, {"ease": math.nan}, {"decay": -1.0},
        {"scale": 0.0}, {"hidden": ()}, {"hidden": (4, 4, 4, 4)}, {"hidden": (513,)}, {"dense_rate": 0.0}, {"l1": -1},
    ],
)  # fmt: skip
def test_settings_have_bounds(wrong: dict[str, Any]) -> None:
    with pytest.raises(errors.Misconfigured, match="deepfm: " + next(iter(wrong))):
        DeepFmSettings(**wrong)


def test_a_delta_beyond_what_can_be_answered_is_refused() -> None:
    served = new("fm", 1).served()
    with pytest.raises(errors.BadInput, match="a weight of 1e"):
        served.apply(np.ones(1, np.uint32), np.full((1, 4), 1e30, np.float32))
    served.apply(np.ones(1, np.uint32), np.full((1, 4), 1e6, np.float32))
    assert np.isfinite(served.predict({"tokens": np.ones((1, 1), np.uint32)})["probability"]).all()
