"""What a person says to learning: status, pause, resume, and weights as of an earlier time."""

import numpy as np
import pytest
from learn_house import FTRL, WIDTH, House
from test_learning import same

from millstream.app.installation import Installation, Settings
from millstream.app.training import change, roll_back, status
from millstream.cli import parser
from millstream.errors import BadInput, NotFound
from millstream.learn import LearnSettings, PushSettings
from millstream.models import traffic
from millstream.models.manifest import Manifest
from millstream.models.online import Ftrl
from millstream.stream import encode
from millstream.types import SetAside


@pytest.fixture
def house(tmp_path):
    made = House(tmp_path, base_examples=150)
    yield made
    made.log.close()


@pytest.fixture
def installation(house):
    learn = LearnSettings(model="ranker", push=PushSettings(bases_kept=2))
    with Installation(house.folder, Settings(learn=learn), house.clock) as made:
        yield made


def another():
    """A learner that knows something else."""
    learner = Ftrl(FTRL, WIDTH)
    learner.learn(np.full((20, WIDTH), 7, np.uint32), np.ones(20, np.float32))
    return learner


def candidate(house, upto, learner=None, made_by="millstream train"):
    """A version as `train offline` puts it, of examples up to there; nobody is served it."""
    manifest = Manifest(format="ftrl", file="model.ftrl", lineage={"made_by": made_by, "upto": upto})
    return house.repository.put("ranker", manifest, {"model.ftrl": (learner or Ftrl(FTRL, WIDTH)).dump()})


def told(house, count):
    """Examples, learnt; the time when the label of the last of them was known."""
    house.tell(count)
    house.turn()
    return 1000.0 + house.examples.end - 1


def test_status_says_where_learning_is(house, installation):
    told(house, 100)
    last = told(house, 60)
    house.clock.advance(10.0)
    told(house, 5)
    house.tell(7)
    found = status(installation)
    assert (found.learning, found.live, found.offset, found.end) == ("run", house.policy.live, 165, 172)
    assert found.watermark == last + 5 and found.figures[""]["learner"].examples == 165
    house.change(lambda policy: policy)
    change(installation, "paused", "a person", "lunch")
    found = status(installation)
    assert (found.learning, found.why, found.who) == ("paused", "lunch", "a person")
    assert house.turn() == 0
    change(installation, "run", "a person", "")
    assert house.turn() == 7
    assert house.policy.why == "let go on by `train resume`"
    change(installation, "paused", "a person", "")
    assert status(installation).why == "paused by `train pause`"


def test_the_last_label_is_that_of_the_last_example_whatever_came_after_it(house, installation):
    last = told(house, 100)
    for number in range(700):
        aside = SetAside(outcome=f"o{number}", cause="late", request="r", item="i", event_time=0.0)
        house.examples.append(b"", encode(aside))
    house.tell(20, model="another")
    told(house, 1)
    house.examples.append(b"", encode(aside))
    house.tell(20, model="another")
    house.turn()
    house.log.commit("learn.ranker", "examples", {0: house.examples.end})
    found = status(installation)
    assert (found.offset, found.end) == (house.examples.end, house.examples.end)
    assert found.watermark == last + 721


def test_what_had_been_learnt_by_a_time_comes_back_and_learning_goes_on_from_the_present(house, installation):
    told(house, 200)
    told(house, 37)
    then = told(house, 30)
    house.clock.advance(60.0)
    told(house, 200)
    made = roll_back(installation, then, "a person", "")
    assert made.upto == 267 and house.policy.live == made.version and not house.policy.pin
    assert same(house.served(made.version), house.folded(range(267)))
    house.turn()
    told(house, 10)
    assert house.policy.live != made.version
    assert same(house.served(), house.folded([*range(267), *range(467, 477)]))
    assert house.repository.manifest("ranker", house.policy.live).lineage["parent"] == made.version


def test_before_the_oldest_base_there_is_nothing_to_come_back_to(house, installation):
    before = 999.0
    told(house, 200)
    for version in house.repository.versions("ranker"):
        if house.repository.manifest("ranker", version).lineage.get("upto", 0) == 0:
            house.repository.remove("ranker", version)
    with pytest.raises(
        NotFound, match=r"kept and was live, version 3, ends at example 200, known 1970.*19:59Z, later than 0.*16:39Z"
    ):
        roll_back(installation, before, "a person", "")


def test_what_nobody_was_served_is_no_past(house, installation):
    told(house, 170)
    then = told(house, 30)
    told(house, 60)
    for upto in (190, 195, 200):
        candidate(house, upto)
    candidate(house, 198, made_by="millstream learn")  # somebody had put another version live meanwhile
    made = roll_back(installation, then, "a person", "")
    assert (made.base, made.upto) == ("3", 200)
    assert same(house.served(made.version), house.folded(range(200)))


def test_a_version_that_was_promoted_is_no_past_of_the_time_before(house, installation):
    told(house, 170)
    then = told(house, 30)
    other = another()
    house.promote(candidate(house, 190, other))
    house.turn()
    later = told(house, 40)
    house.clock.advance(10_000.0)
    made = roll_back(installation, later, "a person", "")
    assert same(house.served(made.version), house.folded(range(200, 240), learner=other))
    made = roll_back(installation, then, "a person", "")
    assert same(house.served(made.version), house.folded(range(200)))


def test_a_version_that_learning_has_not_followed_is_live_as_it_is(house, installation):
    told(house, 200)
    change(installation, "paused", "a person", "")
    other = another()
    house.clock.advance(1.0)
    promoted = traffic.promote(candidate(house, 100, other))
    installation.repository.change_policy("ranker", promoted, who="a person", why="a test")
    made = roll_back(installation, house.clock.now(), "a person", "")
    assert made.learnt == 0 and same(house.served(made.version), other.weights())


@pytest.mark.parametrize("to", [float("nan"), float("inf"), 1e5])
def test_the_future_is_no_time_to_go_back_to(house, installation, to):
    told(house, 100)
    with pytest.raises(BadInput, match="is no time that has been yet"):
        roll_back(installation, to, "a person", "")
    assert house.policy.live == "2"


def test_roll_backs_do_not_pile_up(house, installation):
    told(house, 200)
    promoted = candidate(house, 100)
    house.promote(promoted)
    house.turn()
    then = told(house, 30)
    change(installation, "paused", "a person", "")
    made = [roll_back(installation, then - number, "a person", "").version for number in range(5)]
    assert set(made) & set(house.repository.versions("ranker")) == set(made[-2:])
    assert {"1", "2", "3", promoted} <= set(house.repository.versions("ranker")), "what learning needs stays"


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e300", "yesterday", ""])
def test_what_is_no_time_is_refused(text, capsys):
    with pytest.raises(SystemExit, match="2"):
        parser().parse_args(["train", "rollback", "-c", "millstream.toml", f"--to={text}"])
    assert f"{text!r} is no time: write 2026-03-01T12:00:00Z, or unix seconds" in capsys.readouterr().err


def test_a_time_is_seconds_or_a_date():
    def to(text):
        return parser().parse_args(["train", "rollback", "-c", "millstream.toml", "--to", text]).to

    assert to("1600000000.5") == 1600000000.5
    assert to("2020-09-13T12:26:40Z") == to("2020-09-13T14:26:40+02:00") == to("2020-09-13 12:26:40") == 1600000000.0


def test_weights_of_a_refused_burst_never_come_back(house, installation):
    told(house, 400)
    house.tell(100, lambda number: 1.0 - number % 2)
    house.turn()
    assert house.policy.learning == "paused"
    change(installation, "run", "a person", "")
    house.turn()
    house.clock.advance(5.0)
    then = told(house, 50)
    house.clock.advance(5.0)
    told(house, 50)
    made = roll_back(installation, then, "a person", "")
    assert same(house.served(made.version), house.folded([*range(400), *range(500, 550)]))
    assert np.isfinite(house.served()).all()


def test_status_says_who_paused_learning_whatever_was_changed_since(house, installation):
    told(house, 20)
    change(installation, "paused", "ann", "labels look odd")
    house.change(traffic.shadow(("1",)))
    found = status(installation)
    assert (found.learning, found.who, found.why) == ("paused", "ann", "labels look odd")
