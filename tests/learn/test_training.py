"""What a person says to learning: status, pause, resume, and weights as of an earlier time."""

import numpy as np
import pytest
from learn_house import House
from test_learning import same

from millstream.app.installation import Installation, Settings
from millstream.app.training import change, roll_back, status
from millstream.errors import NotFound
from millstream.learn import LearnSettings


@pytest.fixture
def house(tmp_path):
    made = House(tmp_path, base_examples=150)
    yield made
    made.log.close()


@pytest.fixture
def installation(house):
    with Installation(house.folder, Settings(learn=LearnSettings(model="ranker")), house.clock) as made:
        yield made


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
    assert (found.learning, found.live, found.pushed, found.examples) == ("run", house.policy.live, 165, 172)
    assert found.watermark == last + 5 and found.figures[""]["learner"].examples == 165
    house.change(lambda policy: policy)
    change(installation, "paused", "a person", "lunch")
    found = status(installation)
    assert (found.learning, found.why, found.who) == ("paused", "lunch", "a person")
    assert house.turn() == 0
    change(installation, "run", "a person", "")
    assert house.turn() == 7


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
    with pytest.raises(NotFound, match="the oldest base that is kept ends at example 200, later than 0"):
        roll_back(installation, before, "a person", "")


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
