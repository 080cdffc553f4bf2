"""DeepFM and DIN: what they compute, what they can learn that a linear model cannot, and the file that is served."""

import asyncio
import math
import sys

import msgspec
import numpy as np
import pytest
from deep_house import DEEP, DEFINITION, House, settings
from sklearn.metrics import roc_auc_score

from millstream.app.deep import train
from millstream.app.training import train as train_online
from millstream.clock import FakeClock
from millstream.engine import Engine
from millstream.errors import BadInput, Misconfigured, Missing
from millstream.features import Column, Definition, Entities, Rows
from millstream.flows.recommend import RecommendLimits
from millstream.learn import LearnSettings
from millstream.learn.deep import DeepSettings, Head, Shown
from millstream.learn.deep.vocabulary import slots
from millstream.learn.offline import Plan
from millstream.meter import Meter
from millstream.models import Repository, load
from millstream.models.manifest import Manifest
from millstream.models.online import Ftrl
from millstream.models.online import Settings as FtrlSettings
from millstream.types import Request

pytestmark = pytest.mark.slow  # torch is among the frameworks

HEADS = (Head("click"), Head("buy"), Head("dwell", amount=True))
SMALL = DeepSettings(bits=11, factors=3, hidden=(5, 4), history=4, attention=6, batch=16, seen=2, dropout=0.3)


def shown(tokens, labels, histories=None, weights=None) -> Shown:
    """Rows as they are read, all of them to be learnt."""
    n, labels = len(tokens), np.asarray(labels, np.float32).reshape(len(tokens), -1)
    past = np.zeros((1, 0), np.uint32) if histories is None else histories
    of = np.zeros(n, np.int64) if histories is None else np.arange(n)
    weights = np.ones(labels.shape, np.float32) if weights is None else weights
    return Shown(tokens, np.arange(n), past, of, labels, weights, np.zeros(n, np.float32), np.arange(n), n)


def learnt(rows, heads, wanted, passes=1, end=None, item=0, seed=0):
    from millstream.learn.deep.fit import fit

    return fit(rows, len(rows) if end is None else end, heads, wanted, item, passes, seed, lambda line: None)


def some(count=60, width=3, history=0, seed=0):
    """Rows of a few tokens, some empty, and labels of three heads, some unknown."""
    random = np.random.default_rng(seed)
    tokens = (random.integers(0, 12, (count, width)) * 2654435761).astype(np.uint32)
    past = (random.integers(0, 12, (count, history)) * 2654435761).astype(np.uint32) if history else None
    if past is not None:
        past[: count // 4] = 0
    labels = np.stack([random.random(count) < 0.4, random.random(count) < 0.2, random.gamma(2.0, 10.0, count)], axis=1)
    labels = labels.astype(np.float32)
    labels[::7, 1] = np.nan
    return shown(tokens, labels, past)


def shaken(model):
    """So that every weight says something; the place of none stays empty."""
    import torch

    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weights in model.network.named_parameters():
            weights += 0.4 * torch.randn(weights.shape, generator=random)
            if name in ("linear.weight", "factors.weight"):
                weights[0] = 0.0


# The oracle: the networks' formulas over plain numbers, a row and a head at a time.


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def dense(x, state, name):
    out = x @ state[f"{name}.weight"].T
    return out + state[f"{name}.bias"] if f"{name}.bias" in state else out


def attended(candidate, items, there, state):
    weights = []
    for ago, (one, is_there) in enumerate(zip(items, there, strict=True)):
        if not is_there:
            weights.append(0.0)
            continue
        hidden = dense(candidate, state, "attention.of_candidate")
        hidden = hidden + one @ state["attention.of_item"] + (candidate * one) @ state["attention.of_both"]
        alike = sum(candidate * one * state["attention.likeness"])
        word = float(np.maximum(hidden, 0) @ state["attention.weigh.weight"][0])
        weights.append(math.exp(word + alike + state["attention.ago"][ago]))
    total = 1.0 + sum(weights)
    return sum((weight / total * one for weight, one in zip(weights, items, strict=True)), np.zeros(len(candidate)))


def foretold(model, tokens, past, item):
    """Outputs [heads] of one row, from the weights alone."""
    state = {name: value.numpy().astype(np.float64) for name, value in model.network.state_dict().items()}
    places = {int(slot): place + 1 for place, slot in enumerate(model.vocabulary.known)}

    def place(token):
        slot = 0 if token == 0 else int(token) % ((1 << model.vocabulary.bits) - 1) + 1
        return places.get(slot, 0)

    rows = [place(token) for token in tokens.tolist()]
    factors = [state["factors.weight"][one] for one in rows]
    seen, liked = list(np.concatenate(factors)), 0.0
    if len(past):
        known = [place(token) for token in past.tolist()]
        interest = attended(factors[item], [state["factors.weight"][one] for one in known], known, state)
        seen += [*interest, *(interest * factors[item])]
        liked = (interest * factors[item]) @ state["liking"]
    layer = np.array(seen)
    for number in range(0, 3 * len(SMALL.hidden), 3):
        layer = np.maximum(dense(layer, state, f"layers.{number}"), 0)
    odds = state["bias"] + dense(layer, state, "last") + liked
    odds = odds + sum(state["linear.weight"][one] for one in rows)
    for i in range(len(rows)):
        for j in range(i + 1, len(rows)):
            odds = odds + (factors[i] * factors[j]) @ state["pairs"]
    return [
        math.exp(x) * model.scales[at] if model.heads[at].amount else sigmoid(x) for at, x in enumerate(odds.tolist())
    ]


@pytest.mark.parametrize("history", [0, 4])
def test_a_network_computes_what_its_formulas_say(history):
    rows = some(history=history)
    model = learnt(rows, HEADS, SMALL, passes=5, item=2)
    shaken(model)
    every = np.arange(len(rows))
    tokens, past = rows.tokens(every), rows.histories(every)
    tokens[0, 0] = 99  # nobody has seen it
    said = model.outputs(tokens, past)
    expected = [foretold(model, row, one, 2) for row, one in zip(tokens, past, strict=True)]
    np.testing.assert_allclose(said, expected, rtol=2e-5, atol=1e-6)
    assert said.std(axis=0).min() > 0.01, "it has learnt something to compare"


def test_the_same_seed_learns_the_same():
    rows = some(history=4)
    one, same, other = (learnt(rows, HEADS, SMALL, passes=3, seed=seed).said(rows, 0, 60) for seed in (1, 1, 2))
    assert one.tobytes() == same.tobytes() != other.tobytes()


def test_a_token_counts_once_it_was_seen_often_enough():
    tokens = np.array([[5, 7], [5, 8], [5, 9], [6, 7]], np.uint32)
    model = learnt(shown(tokens, [1, 0, 1, 0]), (Head("click"),), SMALL)
    assert sorted(model.vocabulary.known.tolist()) == sorted(slots(np.array([5, 7]), 11).tolist())
    assert model.vocabulary.places(np.array([[6, 8, 0, 5]], np.uint32))[0].astype(bool).tolist() == [0, 0, 0, 1]
    nothing, strange = (
        model.outputs(np.array([row], np.uint32), np.zeros((1, 0), np.uint32)) for row in ([0, 0], [6, 9])
    )
    assert nothing.tobytes() == strange.tobytes()


def test_no_token_shares_the_slot_of_none():
    size = (1 << 11) - 1
    tokens = np.array([0, 1, size, 2 * size, 2**32 - 1], np.int64)
    found = slots(tokens, 11)
    assert found[0] == 0 and (found[1:] > 0).all() and found.max() <= size


def test_an_amount_is_what_is_expected_and_weights_count():
    random = np.random.default_rng(0)
    group = random.integers(0, 2, 4000)
    dwell = np.where(random.random(4000) < 0.3, random.gamma(1.0, np.where(group, 100.0, 20.0)), 0.0)
    weights = np.ones((4000, 2), np.float32)
    click = (random.random(4000) < 0.5).astype(np.float32)
    weights[click == 0, 0] = 3.0  # negatives that stand for others
    rows = shown((group[:, None] + 1).astype(np.uint32), np.stack([click, dwell], axis=1), weights=weights)
    wanted = DeepSettings(bits=10, factors=2, hidden=(4,), batch=64)
    said = learnt(rows, (Head("click"), Head("dwell", amount=True)), wanted, passes=10).said(rows, 0, 4000)
    for at in range(2):
        assert said[group == at, 1].mean() == pytest.approx(dwell[group == at].mean(), rel=0.1)
    assert said[:, 0].mean() == pytest.approx(0.25, abs=0.02)


def test_a_label_that_is_not_known_moves_nothing():
    rows = some()
    unknown = shown(rows.tokens(np.arange(60)), np.where([True, False, True], rows.labels, np.nan))
    model = learnt(unknown, HEADS, SMALL, passes=3)
    assert not model.network.state_dict()["linear.weight"][:, 1].any() and not math.isnan(model.said(rows, 0, 60).sum())


def test_steps_that_are_too_large_are_said():
    rows = shown(np.ones((64, 2), np.uint32) * np.array([3e9, 4e9], np.uint32), np.full((64, 1), 0.5))
    rows.labels[:] = np.inf
    with pytest.raises(Misconfigured, match="take smaller steps"):
        learnt(rows, (Head("click"),), SMALL)


# What they are for.


def linear(tokens, labels, held, passes=10):
    """How well FTRL orders the held rows after the same rows."""
    learner = Ftrl(FtrlSettings(bits=16, l1=0.0), tokens.shape[1])
    for _ in range(passes):
        learner.learn(tokens[:held], labels[:held])
    return roc_auc_score(labels[held:], learner.predict({"tokens": tokens[held:]})["probability"])


def test_deepfm_finds_who_likes_what_where_nobody_crossed_it():
    definition = Definition(user=(Column("id"), Column("taste")), item=(Column("id"), Column("genre")))
    random, entities, count = np.random.default_rng(0), Entities(definition), 4000
    users, items = random.integers(0, 60, count), random.integers(0, 40, count)
    for user in range(60):
        entities.upsert("user", f"u{user}", {"taste": f"t{user % 4}"})
    for item in range(40):
        entities.upsert("item", f"i{item}", {"genre": f"g{item % 4}"})
    tokens = np.concatenate([entities.rows(f"u{u}", [f"i{i}"]) for u, i in zip(users, items, strict=True)])
    truth = np.where(users % 4 == items % 4, 0.8, 0.2)
    labels, held = (random.random(count) < truth).astype(np.float32), 3200
    rows = shown(tokens, labels)
    wanted = DeepSettings(bits=12, factors=8, hidden=(16,), batch=128)
    said = learnt(rows, (Head("click"),), wanted, passes=8, end=held).said(rows, held, count)[:, 0]
    assert linear(tokens, labels, held) < 0.56
    assert roc_auc_score(labels[held:], said) > roc_auc_score(labels[held:], truth[held:]) - 0.02


@pytest.fixture(scope="module")
def planted():
    """What is clicked is like something in the history, and nothing else tells: tokens, histories, labels, truth."""
    random, entities, count, length = np.random.default_rng(0), Entities(DEFINITION), 6000, 8
    items, lengths = random.integers(0, 40, count), random.integers(0, length + 1, count)
    past = random.integers(0, 40, (count, length))
    tokens = np.concatenate([entities.rows(f"u{n % 50}", [f"i{item}"]) for n, item in enumerate(items.tolist())])
    rows, each = Rows(DEFINITION), zip(past.tolist(), lengths.tolist(), strict=True)
    histories = np.concatenate([rows.history([f"i{one}" for one in had[:some]], length) for had, some in each])
    there = np.arange(length) < lengths[:, None]
    truth = np.where(((past % 8 == items[:, None] % 8) & there).any(axis=1), 0.85, 0.15)
    return tokens, histories, (random.random(count) < truth).astype(np.float32), truth


@pytest.fixture(scope="module")
def din(planted):
    tokens, histories, labels, _ = planted
    rows = shown(tokens, labels, histories)
    wanted = DeepSettings(bits=12, factors=8, hidden=(32,), batch=128, history=8)
    return learnt(rows, (Head("click"),), wanted, passes=10, end=4800, item=DEFINITION.id_place), wanted, rows


def test_din_finds_what_a_history_says_of_a_candidate(planted, din):
    tokens, _, labels, truth = planted
    model, wanted, rows = din
    held = slice(4800, None)
    best = roc_auc_score(labels[held], truth[held])
    blind = learnt(shown(tokens, labels), (Head("click"),), wanted, passes=3, end=4800)
    assert roc_auc_score(labels[held], model.said(rows, 4800, 6000)[:, 0]) > best - 0.04 > 0.75
    assert roc_auc_score(labels[held], blind.said(rows, 4800, 6000)[:, 0]) < 0.56
    assert linear(tokens, labels, 4800) < 0.56


# The file.


@pytest.mark.parametrize("history", [0, 4])
def test_the_file_answers_as_the_network(tmp_path, history):
    from millstream.learn.deep.export import to_onnx

    rows = some(history=history)
    model = learnt(rows, HEADS, SMALL, passes=10, item=2)
    model.slopes[:2], model.intercepts[:2] = [0.7, 1.4], [0.3, -0.2]
    file, apart = to_onnx(model, rows)
    repository = Repository(tmp_path)
    repository.put("ranker", Manifest(format="onnx", file="model.onnx"), {"model.onnx": file})
    served = load(repository, "ranker", "1")
    assert {spec.name: (spec.datatype, spec.shape) for spec in served.inputs} == {
        "tokens": ("UINT32", (-1, 3)), **({"history": ("UINT32", (-1, 4))} if history else {}),
    }  # fmt: skip
    random = np.random.default_rng(1)
    for count in (1, 37):
        tokens, past = (random.integers(0, 2**32, (count, n), dtype=np.uint32) for n in (3, history))
        tokens[::2] = rows.tokens(np.arange(60))[: len(tokens[::2])]
        got = served.predict({"tokens": tokens, **({"history": past} if history else {})})
        expected = model.outputs(tokens, past)
        assert list(got) == ["probability", "click", "buy", "dwell"] and apart <= 1e-5
        for at, name in enumerate(("probability", "click", "buy", "dwell")):
            assert got[name].shape == (count,) and got[name].dtype == np.float32
            np.testing.assert_allclose(got[name], expected[:, max(0, at - 1)], rtol=1e-5, atol=1e-5)
    assert expected[:, 0].std() > 0.005


def test_one_history_beside_many_candidates_answers_as_each_alone(tmp_path, planted, din):
    from millstream.learn.deep.export import to_onnx

    tokens, histories, _, _ = planted
    model, _, rows = din
    repository = Repository(tmp_path)
    files = {"model.onnx": to_onnx(model, rows)[0]}
    repository.put("ranker", Manifest(format="onnx", file="model.onnx"), files)
    repository.change_policy("ranker", lambda now: type(now)(live="1"), who="a person", why="a test")

    async def run():
        engine = Engine(repository, FakeClock(2e6), Meter())
        await engine.start()
        try:
            ask = lambda rows, past: engine.submit(  # noqa: E731
                Request(model="ranker", inputs={"tokens": rows, "history": past}, rows=len(rows))
            )
            lists = [ask(tokens[at : at + 40], histories[at : at + 1]) for at in (0, 100, 200)]
            whole = [(await one).outputs["probability"] for one in lists]
            alone = []
            for at in (0, 100, 200):
                each = [await ask(tokens[n : n + 1], histories[at : at + 1]) for n in range(at, at + 40)]
                alone.append(np.concatenate([one.outputs["probability"] for one in each]))
            return whole, alone
        finally:
            await engine.stop()

    whole, alone = asyncio.run(run())
    np.testing.assert_allclose(whole, alone, atol=1e-6)
    for at, answers in zip((0, 100, 200), whole, strict=True):
        expected = model.outputs(tokens[at : at + 40], np.repeat(histories[at : at + 1], 40, axis=0))[:, 0]
        np.testing.assert_allclose(answers, expected, atol=1e-5)
    assert np.std(whole) > 0.1


# `millstream train offline --model`.


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """Lists whose click goes to what is like the history's newest item, and is read for long where it is bought."""
    house, random = House(tmp_path_factory.mktemp("deep"), settings()), np.random.default_rng(2)
    for number in range(700):
        past = [f"i{one}" for one in random.integers(0, 12, 3)]
        items = [f"i{one}" for one in random.choice(12, 4, replace=False)]
        house.serve(f"r{number}", items, history=past, user=f"u{number % 20}", scores=random.random(4) + 0.01)
        for item in items:
            if random.random() < (0.8 if int(item[1:]) % 3 == int(past[-1][1:]) % 3 else 0.1):
                house.tell(f"r{number}", item, "click")
                house.tell(f"r{number}", item, "dwell", float(random.gamma(2.0, 15.0)))
                if random.random() < 0.3:
                    house.tell(f"r{number}", item, "order")
    house.end()
    yield house
    house.close()


def test_a_deep_ranker_is_trained_from_the_log_and_can_be_served(filled):
    at, said = filled.at, []
    made = train(at, "din", Plan(passes=15), say=said.append)
    manifest = at.repository.manifest("ranker", made.version)
    assert (made.role, made.examples, manifest.format, manifest.features) == ("live", 2800, "onnx", DEFINITION.hash)
    assert set(made.figures) == {"candidate", "candidate buy", "served"}
    assert made.figures["candidate"].auc > 0.7 > made.figures["served"].auc + 0.1
    assert made.figures["candidate"].examples == 560
    assert manifest.batching.once == ("history",)
    assert manifest.lineage["network"] == "din" and manifest.lineage["settings"]["factors"] == DEEP.factors
    assert any(line.startswith("dwell: ") for line in said) and "outputs: click, buy, dwell" in said[0]
    model = load(at.repository, "ranker", made.version)
    past = Rows(DEFINITION).history(["i1", "i0"], DEEP.history)
    rows = filled.entities.rows("u1", [f"i{n}" for n in range(12)])
    got = model.predict({"tokens": rows, "history": np.repeat(past, 12, axis=0)})
    like = np.arange(12) % 3 == 0
    assert got["probability"][like].min() > got["probability"][~like].max()
    assert (got["probability"] == got["click"]).all() and got["buy"].mean() < got["click"].mean()
    assert 1.0 < got["dwell"].mean() < 60.0
    second = train(at, "deepfm", Plan(passes=2, settings={"factors": 6}), role="shadow")
    assert second.role == "shadow" and second.settings["factors"] == 6 and "live" not in second.figures
    assert second.figures["candidate"].auc < made.figures["candidate"].auc - 0.1, "it sees no history"
    assert [spec.name for spec in load(at.repository, "ranker", second.version).inputs] == ["tokens"]


def test_a_span_is_judged_by_what_comes_after_it_beside_the_live_version(filled, tmp_path):
    at = filled.at
    repository, at.repository = at.repository, Repository(tmp_path)
    try:
        middle = filled.clock.now() - 30.0 - 350.0
        first = train(at, "din", Plan(until=middle, passes=10))
        made = train(at, "deepfm", Plan(until=middle, passes=1))
        live, then = made.figures["live"], first.figures["candidate"]
        assert live.auc == pytest.approx(then.auc, abs=5e-3) and live.auc > 0.6, "calibration leaves the order"
        assert live.examples == then.examples == made.figures["candidate"].examples > 1000
        assert abs(live.ratio - 1) < 0.02 and "live" not in first.figures
        said = []
        train(at, "deepfm", Plan(until=middle - 100.0), say=said.append)
        assert any("had learnt" in line for line in said), "nobody is judged by what he was told"
    finally:
        at.repository = repository


def test_beside_a_learner_it_is_a_version_of_the_ranker_and_both_learn_from_what_that_served(tmp_path):
    wanted = msgspec.structs.replace(
        settings(), learn=LearnSettings(model="online"), recommend=RecommendLimits(beside=("online",))
    )
    house = House(tmp_path, wanted)
    for number in range(40):
        house.serve(f"r{number}", ["i1", "i2", "i3"], history=["i4"])
        house.tell(f"r{number}", "i1", "click")
    house.end()
    made, online = train(house.at, "din", Plan(passes=1)), train_online(house.at)
    assert (made.model, made.version, made.role, made.examples) == ("ranker", "1", "live", 120)
    assert (online.model, online.version, online.role, online.examples) == ("online", "1", "live", 120)
    assert house.at.repository.manifest("ranker", "1").lineage["network"] == "din"
    house.close()


def test_what_cannot_be_is_said(filled, monkeypatch):
    with pytest.raises(BadInput, match="--search"):
        train(filled.at, "deepfm", Plan(trials=3))
    with pytest.raises(Misconfigured, match="nonsense"):
        train(filled.at, "deepfm", Plan(settings={"nonsense": 1}))
    with pytest.raises(Misconfigured, match="over 1 GiB"):
        train(filled.at, "deepfm", Plan(settings={"bits": 22, "factors": 128}))
    with pytest.raises(BadInput, match="nothing to learn"):
        train(filled.at, "deepfm", Plan(until=1.0))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(Missing, match=r"onnxscript.*millstream\[convert\]"):
        train(filled.at, "deepfm", Plan())
