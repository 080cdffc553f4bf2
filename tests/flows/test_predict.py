"""Plain inference: the engine's own answer, and with a log one served event a request before it leaves."""

import asyncio

import numpy as np
import pytest
from flow_house import NOW, bytes_of, full_disk, house

from millstream.errors import BadInput, NotFound
from millstream.flows.predict import Predict
from millstream.guard.pii import pseudonym
from millstream.types import Request


def request(**fields) -> Request:
    tokens = np.ones((2, 3), np.uint32)
    return Request(**{"model": "ranker", "inputs": {"tokens": tokens}, "rows": 2, "id": "q1"} | fields)


def play(folder, scene):
    async def run():
        async with house(folder) as made:
            await scene(made)

    asyncio.run(run())


def test_an_answer_is_logged_with_who_gave_it_and_without_the_arrays(tmp_path):
    async def scene(made):
        output = await made.predict.call(request(key="u1"))
        (event,) = made.served()
        assert (event.request, event.user, event.model, event.version) == ("q1", "u1", "ranker", output.version)
        assert (event.candidates, event.tokens, event.scores, event.event_time) == ([], b"", b"", NOW)

    play(tmp_path, scene)


def test_without_a_log_nothing_stands_between_the_engine_and_the_border(tmp_path):
    async def scene(made):
        alone = Predict(made.engine.submit, made.clock)
        answered = alone.call(request())
        assert type(answered) is type(made.engine.submit(request()))
        assert np.array_equal(
            (await answered).outputs["probability"], (await made.predict.call(request())).outputs["probability"]
        )
        assert len(made.served()) == 1

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("bad", "error"), [({"model": "none"}, NotFound), ({"inputs": {"tokens": np.ones((2, 9), np.uint32)}}, BadInput)]
)
def test_a_refused_request_is_not_logged(tmp_path, bad, error):
    async def scene(made):
        with pytest.raises(error):
            await made.predict.call(request(**bad))
        assert made.served() == []

    play(tmp_path, scene)


def test_a_full_disk_does_not_stop_answers(tmp_path, monkeypatch):
    async def scene(made):
        with full_disk(monkeypatch, made.log.root / "served"):
            assert len((await made.predict.call(request())).outputs["probability"]) == 2
        assert made.meter.sum("millstream_served_missing_total") == 1

    play(tmp_path, scene)


def test_an_address_as_a_key_reaches_no_file(tmp_path):
    async def scene(made):
        await made.predict.call(request(key="jane.doe@example.org"))
        assert made.served()[0].user == pseudonym("jane.doe@example.org")

    play(tmp_path, scene)
    assert b"jane.doe" not in bytes_of(tmp_path)
