"""Two towers in torch: what they compute, what they can learn, and from the log to a list."""

from __future__ import annotations

import asyncio
import re
import sys

import msgspec
import numpy as np
import pytest
import tomli_w

from millstream.app.installation import Installation, Settings
from millstream.app.roles import Learn, Serve
from millstream.app.towers import train
from millstream.cli import main
from millstream.clock import FakeClock
from millstream.errors import BadInput, Misconfigured, Missing
from millstream.features import Column, Definition, Entities
from millstream.learn.offline import Plan
from millstream.learn.towers.judge import judged, popularity
from millstream.learn.towers.rows import Known, Likes
from millstream.learn.towers.settings import TowerSettings
from millstream.models.runtimes.onnx import Onnx
from millstream.recall.cooccur import Positives
from millstream.recall.towers import ITEMS, USERS
from millstream.types import Ask, Outcome, Principal

pytestmark = pytest.mark.slow  # torch is among the frameworks

SMALL = TowerSettings(width=8, bits=12, hidden=6, seen=1, history=4, batch=64, rate=0.02, passes=6)
DEFINITION = Definition(user=(Column("id"), Column("taste")), item=(Column("id"), Column("genre")))
GENRES, ITEMS_, USERS_ = 4, 60, 80


def planted(likes_each=12, seed=0) -> Likes:
    """Who has taste t likes what has genre t, nine times in ten. Items from 50 on come late: in a like's last fifth."""
    random, entities = np.random.default_rng(seed), Entities(DEFINITION)
    for user in range(USERS_):
        entities.upsert("user", f"u{user}", {"taste": f"t{user % GENRES}"})
    for item in range(ITEMS_):
        entities.upsert("item", f"i{item}", {"genre": f"g{item % GENRES}"})
    rows = []
    for user in range(USERS_):
        for place in range(likes_each):
            least, most = (0, 50) if place < 0.8 * likes_each else (40, ITEMS_)
            own = random.random() < 0.9
            among = [one for one in range(least, most) if not own or one % GENRES == user % GENRES]
            rows.append((user, int(random.choice(among)), place + user / 100))
    columns = np.array(rows)
    items = [f"i{item}" for item in range(ITEMS_)]
    known = Known(
        entities.tokens("user", [f"u{user}" for user in range(USERS_)]), entities.tokens("item", items),
        entities.history(items, ITEMS_)[0],
    )  # fmt: skip
    return Likes(Positives(columns[:, 0].astype("i4"), columns[:, 1].astype("i4"), columns[:, 2]), known)


def learnt(likes, end=None, settings=SMALL, passes=6, seed=0):
    from millstream.learn.towers.fit import fit

    return fit(likes, len(likes) if end is None else end, settings, passes, seed, lambda line: None)


def by_hand(model, tokens, history=None):
    """A vector of one row, from the weights alone: of a user where there is a history, else of an item."""
    state = {name: value.numpy().astype(np.float64) for name, value in model.network.state_dict().items()}
    places = model.vocabulary.places

    def layers(name, seen):
        hidden = np.maximum(seen @ state[f"{name}.0.weight"].T + state[f"{name}.0.bias"], 0)
        return hidden @ state[f"{name}.2.weight"].T + state[f"{name}.2.bias"]

    own = [state["tokens.weight"][place] for place in places(tokens[None])[0]]
    if history is None:
        return sum(own) + layers("item_layers", np.concatenate(own))
    past = [(ago, place) for ago, place in enumerate(places(history[None])[0]) if place]
    interest = np.zeros(len(own[0]))
    weights = [
        np.exp(state["past.weight"][place] @ state["weigh.weight"][0] + state["ago"][ago]) for ago, place in past
    ]
    for weight, (_, place) in zip(weights, past, strict=True):
        interest += weight / sum(weights) * state["past.weight"][place]
    return sum(own) + interest + layers("user_layers", np.concatenate([*own, interest]))


def test_towers_compute_what_their_formulas_say_and_so_do_their_files(tmp_path):
    from millstream.learn.towers.export import to_onnx

    likes = planted()
    model = learnt(likes)
    rows = np.arange(0, len(likes), 7)
    people, history = likes.known.people[likes.whose[rows]], likes.histories(rows, SMALL.history)
    people[0], history[0], history[1] = 99, 98, 0  # nobody has seen these
    users, items = model.users(people, history), model.items(likes.known.items)
    expected = [by_hand(model, one, past) for one, past in zip(people, history, strict=True)]
    np.testing.assert_allclose(users, expected, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(items, [by_hand(model, one) for one in likes.known.items], rtol=2e-4, atol=1e-5)
    assert np.abs(users).mean() > 0.05, "it has learnt something to compare"
    files, apart = to_onnx(model, likes)
    assert set(files) == {USERS, ITEMS} and apart < 1e-5
    for name, given, want in (
        (USERS, {"tokens": people, "history": history}, users), (ITEMS, {"tokens": likes.known.items}, items),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(files[name])
        np.testing.assert_allclose(Onnx(tmp_path / name).predict(given)["vector"], want, rtol=1e-4, atol=1e-5)


def test_the_same_seed_learns_the_same():
    likes = planted()
    one, same, other = (learnt(likes, passes=2, seed=seed).items(likes.known.items) for seed in (1, 1, 2))
    assert one.tobytes() == same.tobytes() != other.tobytes()


def test_they_find_what_is_new_by_its_attributes_and_more_than_is_popular():
    likes = planted()
    end = int(0.8 * len(likes))
    model = learnt(likes, end, passes=15)
    items = model.items(likes.known.items)
    scores = lambda people: model.users(likes.known.people[people], likes.pasts(people, end, 4)) @ items.T  # noqa: E731
    found, plain = judged(likes, end, scores), judged(likes, end, popularity(likes, end))
    assert found.people > 70 and found.recall > plain.recall + 0.2
    new = np.arange(50, ITEMS_)
    assert not np.isin(likes.what[:end], new).any()
    lifted = scores(np.arange(USERS_))[:, new]
    own = np.arange(USERS_)[:, None] % GENRES == new[None] % GENRES
    assert lifted[own].mean() > lifted[~own].mean() + 0.5 * lifted.std()


def test_what_was_liked_is_no_negative_and_some_items_lose_their_own_token():
    from millstream.learn.towers.fit import _Fit, _vocabulary
    from millstream.learn.towers.network import Shape, Towers

    likes = planted()
    known, end = likes.known, len(likes)
    vocabulary = _vocabulary(likes, end, SMALL)
    network = Towers(Shape(vocabulary.size, 2, 2, SMALL.history), SMALL)
    made = _Fit(network, vocabulary, likes, end, SMALL, np.random.default_rng(0))
    whose, among = np.array([0, 5, 0]), np.unique(likes.what[:40])
    others = made._others(whose, among)
    for row, user in enumerate(whose.tolist()):
        mine = {item for who, item in zip(likes.whose, likes.what, strict=True) if who == user}
        assert others[row].tolist() == [item in mine for item in among.tolist()]
    masked = made._shown(np.arange(len(known.items)))
    gone = masked[:, 0] == 0
    assert 0 < gone.sum() < 20 and (masked[:, 1] == known.items[:, 1]).all(), "of some the own token alone"


def test_the_chance_of_being_in_a_batch_is_taken_out():
    """Strangers who like every other item thrice as often as its neighbours: it stands higher by log 3, although a
    batch of six shows it as a negative more than twice as often."""
    random = np.random.default_rng(1)
    popular = np.repeat(np.arange(8), [90, 30, 90, 30, 90, 30, 90, 30])
    random.shuffle(popular)
    strangers = np.arange(len(popular), dtype="i4")
    nobody = Known(
        np.ones((len(popular), 1), np.uint32), planted().known.items[:8], planted().known.marks[:8],
    )  # fmt: skip
    alike = Likes(Positives(strangers, popular.astype("i4"), strangers.astype(float)), nobody)
    plain = TowerSettings(**{**msgspec.structs.asdict(SMALL), "temperature": 1.0, "decay": 0.0, "dropout": 0.0,
                             "masked": 0.0, "batch": 6})  # fmt: skip
    model = learnt(alike, settings=plain, passes=12)
    scores = model.users(nobody.people[:1], np.zeros((1, SMALL.history), np.uint32)) @ model.items(nobody.items).T
    lift = scores[0, ::2].mean() - scores[0, 1::2].mean()
    assert lift == pytest.approx(np.log(3), abs=0.35), "without the correction of what a batch shows it would be less"


def test_steps_that_are_too_large_are_said():
    wild = TowerSettings(**{**msgspec.structs.asdict(SMALL), "rate": 1.0, "temperature": 1e-38})
    with pytest.raises(Misconfigured, match="take smaller steps"):
        learnt(planted(), settings=wild)


# From the log to a list.

ANYBODY = Principal("test")
SETTINGS = {
    "http_port": 0,
    "recommend": {"placements": {"home": {"n": 5, "paths": {"towers": {"deadline_ms": 5000.0, "quota": 5}}}}},
    "recall": {"every_s": 0.1, "least_events": 1, "factors": {"width": 2}},
    "towers": msgspec.to_builtins(SMALL),
    "features": {
        "user": [{"name": "id"}, {"name": "taste"}], "item": [{"name": "id"}, {"name": "genre"}],
    },
}  # fmt: skip


async def filled(at: Installation, serve: Serve, clock: FakeClock) -> None:
    """Who has a taste likes what is of that genre."""
    await serve.door.upsert("items", [{"id": f"i{n}", "genre": f"g{n % 4}"} for n in range(40)], ANYBODY)
    await serve.door.upsert("users", [{"id": f"u{n}", "taste": f"t{n % 4}"} for n in range(40)], ANYBODY)
    serve.poll()
    random = np.random.default_rng(0)
    for number in range(300):
        user = number % 40
        wish = Ask(id=f"r{number}", user=f"u{user}", candidates=("i0",))
        listing = await serve.door.call(wish, ANYBODY)
        item = f"i{4 * int(random.integers(0, 10)) + user % 4}"
        await serve.door.call([Outcome(request=listing.id, item=item, kind="like")], ANYBODY)
        clock.advance(10.0)
        serve.poll()


@pytest.mark.timeout(300)
def test_from_likes_in_the_log_to_a_list_that_towers_found(tmp_path, monkeypatch):
    async def scene() -> None:
        clock = FakeClock(2e6)
        with Installation(tmp_path, msgspec.convert(SETTINGS, Settings), clock) as at:
            serve = Serve(at)
            await serve.engine.start()
            serve.lister.start()
            with pytest.raises(BadInput, match="nothing to learn"):
                train(at, Plan())
            await filled(at, serve, clock)
            said: list[str] = []
            made = train(at, Plan(), say=said.append, passes=20)
            manifest = at.repository.verify("towers", made.version)
            assert (made.role, manifest.format, manifest.features) == ("live", "onnx", at.definition.hash)
            assert set(manifest.digests) == {USERS, ITEMS} and made.likes > 200 and made.people == 40
            assert set(made.figures) == {"candidate", "popular"} and made.settings["width"] == SMALL.width
            assert made.figures["candidate"].recall > made.figures["popular"].recall
            figures = {name: msgspec.to_builtins(one) for name, one in made.figures.items()}
            assert manifest.lineage["figures"] == figures
            for wrong in ({"plan": Plan(trials=2)}, {"plan": Plan(), "role": "shadow"}):
                with pytest.raises(BadInput, match="for rankers"):
                    train(at, **wrong)
            with pytest.raises(Misconfigured, match="nonsense"):
                train(at, Plan(settings={"nonsense": 1}))
            learn = Learn(at)
            for _ in range(4):
                clock.advance(3.0)
                while learn.step():
                    clock.advance(1.0)
                for builder in learn._builders:
                    builder.wait()
            learn.close()
            for _ in range(6):
                clock.advance(3.0)
                serve.poll()
                await serve.lister.following.looked()
            for user in range(4):
                listing = await serve.door.call(Ask(id=f"l{user}", user=f"u{user}", explain=True), ANYBODY)
                assert all(one.why["recall"] == ["towers"] for one in listing.items) and len(listing.items) == 5
                own = [int(one.item[1:]) % 4 == user for one in listing.items]
                assert sum(own) >= 4, "their genre"
            stranger = await serve.door.call(Ask(id="s", visitor="nobody"), ANYBODY)
            assert len(stranger.items) <= 5
            serve.lister.stop()
            await serve.engine.stop()
            monkeypatch.setitem(sys.modules, "onnxscript", None)
            with pytest.raises(Missing, match=r"onnxscript.*millstream\[convert\]"):
                train(at, Plan())

    asyncio.run(scene())


@pytest.mark.timeout(300)
def test_the_live_version_is_judged_beside_where_it_has_not_seen_the_likes(tmp_path, capsys):
    async def scene() -> None:
        clock = FakeClock(2e6)
        with Installation(tmp_path, msgspec.convert(SETTINGS, Settings), clock) as at:
            serve = Serve(at)
            await serve.engine.start()
            serve.lister.start()
            await filled(at, serve, clock)
            serve.lister.stop()
            await serve.engine.stop()
            middle = clock.now() - 700.0
            first = train(at, Plan(until=middle), passes=8)
            made = train(at, Plan(until=middle, settings={"width": 4}), passes=1)
            assert made.figures["live"] == first.figures["candidate"] and made.figures["live"].people > 10
            assert made.role == "" and at.repository.policy("towers").live == first.version
            assert made.settings["width"] == 4 and made.likes == first.likes < 300
            with pytest.raises(Misconfigured, match=r"recall\.towers is empty"):
                at.settings = msgspec.convert({**SETTINGS, "recall": {"towers": ""}}, Settings)
                train(at, Plan())

    asyncio.run(scene())
    config = tmp_path / "millstream.toml"
    config.write_text(tomli_w.dumps(SETTINGS))
    until = str(2e6 + 1000.0)
    main(["train", "offline", "-c", str(config), "--model", "towers", "--passes", "1", "--until", until])
    told = capsys.readouterr()
    assert re.search(r"^towers: version 3 from \d+ likes of 40 people$", told.out, re.M) and "Recall@20" in told.out
    assert "had learnt some" in told.err and not re.search("^ +live ", told.out, re.M)
