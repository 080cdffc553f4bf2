"""An installation whose log is written by hand, so that what is worth a person's look is known."""

import itertools

import msgspec
import numpy as np

from millstream.app.installation import Installation, Settings
from millstream.clock import FakeClock
from millstream.learn.curate.scan import scan
from millstream.stream import decode, encode
from millstream.types import Entity, Example, Review, Served

NOW = 2_000_000.0
SETTINGS = {
    "http_port": 0,
    "learn": {"model": "ranker", "validate": {"slices": {"user.sex": ["F", "M"]}}},
    "ftrl": {"bits": 10},
    "features": {"user": [{"name": "id"}, {"name": "sex"}], "item": [{"name": "id"}, {"name": "kind"}]},
}


class Town:
    """An installation whose log is written here. Users are `u0` .. of sex F or M in turn, items `i0` .. of 3 kinds."""

    def __init__(self, folder, users=30, items=30, **curate):
        self.clock = FakeClock(NOW)
        self.at = Installation(folder, msgspec.convert({**SETTINGS, "curate": curate}, Settings), self.clock)
        self.number, self.writers = itertools.count(), {}
        for topic, rows in (
            ("users", [(f"u{n}", {"sex": "FM"[n % 2]}) for n in range(users)]),
            ("items", [(f"i{n}", {"kind": f"k{n % 3}", "title": f"Film {n}"}) for n in range(items)]),
        ):
            self.write(topic, *(Entity(id=id, attributes=attributes) for id, attributes in rows))
        self.entities = self.at.entities()

    def write(self, topic, *events):
        if topic not in self.writers:
            self.writers[topic] = self.at.log.writer(topic)
        for event in events:
            self.writers[topic].append(b"", encode(event))

    def served(self, user, scores, request="", at=None, **more):
        """An answer: item -> score; the request's id."""
        items = list(scores)
        made = Served(
            request=request or f"r{next(self.number)}", model="ranker", version="1@0", policy=1, arm="live", user=user,
            candidates=items, event_time=self.clock.now() if at is None else at,
            definition=self.at.definition.hash, tokens=self.entities.rows(user, items).tobytes(),
            scores=np.array([*scores.values()], "<f4").tobytes(), **more,
        )  # fmt: skip
        self.write("served", made)
        return made.request

    def example(self, request, item, said, user="u0"):
        """Its label came."""
        self.write(
            "examples",
            Example(
                request=request, item=item, model="ranker", version="1", score=0.5, label=float(said),
                tokens=self.entities.rows(user, [item]).tobytes(),
                weight=1.0, event_time=NOW, arrival=NOW, wait_s=0.0, outcomes=[], definition=self.at.definition.hash,
            ),
        )  # fmt: skip

    def reviews(self):
        reader = self.at.log.reader("reviews")
        events = [decode(one.value) for p in reader.partitions() for one in reader.records(p)]
        return [one for one in events if isinstance(one, Review)]

    def rows(self):
        at = self.at
        return scan(at.log, ("ranker",), at.definition.hash, at.definition.width, ("dislike",), 10_000)
