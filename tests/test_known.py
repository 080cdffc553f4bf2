"""What a role knows of users and items: the latest of an id by arrival, whichever process wrote it."""

import numpy as np
import pytest

from millstream.app import installation
from millstream.app.installation import Known
from millstream.clock import FakeClock
from millstream.features import Definition, Entities
from millstream.meter import Meter
from millstream.stream import Log, encode
from millstream.types import Entity

DEFINITION = Definition.read({"user": [{"name": "id"}], "item": [{"name": "id"}, {"name": "kind"}], "crosses": []})


@pytest.mark.parametrize("together", [1, 2, 1000])
def test_the_latest_of_an_id_counts_whichever_process_wrote_it(tmp_path, monkeypatch, together):
    monkeypatch.setattr(installation, "_TOGETHER", together)
    clock = FakeClock(1000.0)
    with Log(tmp_path / "log", clock) as log, log.writer("items", 0) as first, log.writer("items", 1) as second:

        def tell(writer, id: str, kind: object) -> None:
            clock.advance(1.0)
            writer.append(b"", encode(Entity(id=id, attributes={"kind": kind})))

        tell(second, "a", "older")
        tell(first, "a", "old")
        tell(first, "b", "old")
        tell(first, "a", "new")
        tell(second, "c", "new")
        tell(first, "c", ["a list", "has no place here"])  # refused: what was known stays
        tell(second, "b", "new")
        tell(second, "d", "new")
        tell(second, "d", ["a list", "has no place here"])
        known = Known(Entities(DEFINITION), log, Meter(), ("item",))
        known.poll()
        wanted = Entities(DEFINITION)
        for id in "abcd":
            wanted.upsert("item", id, {"kind": "new"})
        np.testing.assert_array_equal(known.entities.tokens("item", "abcde"), wanted.tokens("item", "abcde"))
        assert known.reached({"items": {0: 4, 1: 5}})
