"""Tables in the formats of well-known public sets, made up here: people with one of a few tastes, and things that suit
one. Somebody sees things of any taste, and likes what suits."""

from __future__ import annotations

import csv
import datetime
import json
import random
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

TASTES = 4
BEGAN = 1_430_622_000  # of the history: years ago, as that of a public set is


def taste(name: str) -> int:
    """Of a user or an item."""
    return int("".join(one for one in name if one.isdigit())) % TASTES


class Moments:
    """(unix seconds, user, item, liked) in order of time."""

    def __init__(self, users: int, items: int, count: int, user: str = "{}", item: str = "{}", seed: int = 1) -> None:
        chance, time = random.Random(seed), float(BEGAN)
        self.users = [user.format(n) for n in range(users)]
        self.items = [item.format(n) for n in range(items)]
        self.rows = []
        for _ in range(count):
            time += chance.expovariate(1 / 600)
            who = chance.choice(self.users)
            what = self.items[int(items * chance.random() ** 1.5)]  # the first are shown most
            suits = taste(who) == taste(what)
            self.rows.append((int(time), who, what, chance.random() < (0.6 if suits else 0.05)))

    @property
    def liked(self) -> int:
        return sum(one[3] for one in self.rows)


def _delimited(path: Path, header: list[str], rows: list[list[object]], delimiter: str = ",") -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows([header, *rows])
    return path


def retailrocket(folder: Path, of: Moments) -> dict[str, list[Path]]:
    """RetailRocket: events by kind in milliseconds, and properties of items a row each, in two files."""
    events = []
    for time, user, item, liked in of.rows:
        events.append([time * 1000 + 7, user, "view", item, ""])
        if liked:
            events.append([(time + 40) * 1000, user, "addtocart", item, ""])
            if time % 3 == 0:
                events.append([(time + 90) * 1000, user, "transaction", item, str(time % 9999)])
    first = [[BEGAN * 1000, item, "categoryid", 700 + taste(item)] for item in of.items]
    first += [[BEGAN * 1000, item, "888", f"n{int(item) * 120}.000 {item}88 {item}99 1044"] for item in of.items]
    second = [[(BEGAN + 86400) * 1000, item, "available", 1] for item in of.items if int(item) % 20 == 9]
    second += [[BEGAN * 1000, item, "available", 0 if int(item) % 10 == 9 else 1] for item in of.items]
    header = ["timestamp", "itemid", "property", "value"]
    return {
        "interactions": [
            _delimited(folder / "events.csv", ["timestamp", "visitorid", "event", "itemid", "transactionid"], events)
        ],
        "items": [
            _delimited(folder / "item_properties_part1.csv", header, first),
            _delimited(folder / "item_properties_part2.csv", header, second),
        ],
    }


def amazon(folder: Path, of: Moments) -> dict[str, list[Path]]:
    """Amazon reviews: a line of JSON a review with 1 to 5 stars, and one a product with categories of categories."""
    with (folder / "reviews.jsonl").open("w") as file:
        for time, user, item, liked in of.rows:
            stars = 5.0 - time % 2 if liked else 1.0 + time % 3
            review = {"reviewerID": user, "asin": item, "overall": stars, "reviewText": "Well. " * 30}
            file.write(json.dumps(review | {"summary": "so", "unixReviewTime": time}) + "\n")
    with (folder / "meta.jsonl").open("w") as file:
        for n, item in enumerate(of.items):
            product = {
                "asin": item, "title": f"Thing, number {n}", "brand": f"brand {n % 3}", "price": 9.99 + n,
                "categories": [["All", f"Kind {taste(item)}"]], "description": f"It is thing {n}. " * 20,
            }  # fmt: skip
            file.write(json.dumps(product) + "\n")
    return {"interactions": [folder / "reviews.jsonl"], "items": [folder / "meta.jsonl"]}


def lastfm(folder: Path, of: Moments) -> dict[str, list[Path]]:
    """Last.fm-360K: how often a user played an artist, without times, and profiles."""
    plays = [
        [user, item, f"Band {item}", 40 + time % 900 if liked else 1 + time % 9] for time, user, item, liked in of.rows
    ]
    profiles = [
        [user, "mf"[n % 2], 18 + n % 40, ["Chile", "Norway", "Japan"][n % 3], "Dec 27, 2006"]
        for n, user in enumerate(of.users)
    ]
    names = ["user-mboxsha1", "musicbrainz-artist-id", "artist-name", "plays"]
    return {
        "interactions": [_delimited(folder / "plays.tsv", names, plays, "\t")],
        "users": [
            _delimited(folder / "profile.tsv", ["user-mboxsha1", "gender", "age", "country", "signup"], profiles, "\t")
        ],
    }


def movielens(folder: Path, of: Moments) -> dict[str, list[Path]]:
    """MovieLens 25M, its ratings as Parquet with dates."""
    at = [datetime.datetime.fromtimestamp(row[0], datetime.UTC) for row in of.rows]
    ratings = {
        "userId": [int(row[1]) for row in of.rows], "movieId": [int(row[2]) for row in of.rows],
        "rating": [4.5 - row[0] % 2 / 2 if row[3] else 2.0 + row[0] % 3 / 2 for row in of.rows], "timestamp": at,
    }  # fmt: skip
    parquet.write_table(pa.table(ratings), folder / "ratings.parquet")
    genres = ["Adventure|Animation", "Crime|Drama", "Comedy|Romance", "Horror|Sci-Fi"]
    movies = [[item, f"Film {item}, The ({1950 + n % 60})", genres[taste(item)]] for n, item in enumerate(of.items)]
    return {
        "interactions": [folder / "ratings.parquet"],
        "items": [_delimited(folder / "movies.csv", ["movieId", "title", "genres"], movies)],
    }
