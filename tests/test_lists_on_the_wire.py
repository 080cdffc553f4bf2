"""Lists as a user meets them: `millstream up` with two processes, the client, and the command line."""

import asyncio
import json
import subprocess
import sys
from itertools import pairwise

import pytest

from millstream.client import Client
from millstream.errors import BadInput, NotFound
from service import Served, until

TOML = """
http_port = 0
grpc_port = 0
workers = 2
[recommend.placements.home]
n = 3
[recommend.placements.home.arms.calm]
share = 0.5
rerank = [{ step = "window", by = "category", most = 1, window = 2 }]
[recommend.placements.home.arms.plain]
share = 0.5
[features]
user = [{ name = "id" }]
item = [{ name = "id" }]
"""
ITEMS = [{"id": f"i{n}", "title": f"Item {n}", "category": f"c{n % 2}", "tags": ["a", f"t{n % 3}"]} for n in range(12)]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lists")
    file = folder / "millstream.toml"
    file.write_text(TOML)
    with Served(file, folder / "log.txt", verb=("up", "-c", str(file))) as made:
        yield made


@pytest.fixture(scope="module")
def client(served):
    with Client(f"http://127.0.0.1:{served.http}", connections=4) as made:
        assert made.items(ITEMS) == 12
        assert made.users([{"id": "u1", "age": 30}, {"id": "u2"}]) == 2
        asyncio.run(until(lambda: all(len(made.recommend(f"new-{n}", n=12).items) == 12 for n in range(8))))
        yield made


def names(listing):
    return [slot.item for slot in listing.items]


def test_pages_come_from_whichever_process_is_asked(client):
    for number in range(10):
        page = client.recommend(f"p{number}", n=3, placement="home")
        seen = names(page)
        while page.cursor:
            page = client.recommend(cursor=page.cursor, n=3)
            seen += names(page)
        assert sorted(seen) == sorted(item["id"] for item in ITEMS)


def test_arms_are_shared_out_and_a_user_stays_in_one(client):
    arms = {user: client.recommend(user, n=12) for user in (f"a{n}" for n in range(30))}
    assert {one.arm for one in arms.values()} == {"calm", "plain"}
    for user, first in arms.items():
        again = client.recommend(user, n=12, explain=True)
        assert again.arm == first.arm
        if first.arm == "calm":
            kinds = [int(item[1:]) % 2 for item in names(again)]
            assert all(a != b for a, b in pairwise(kinds)), "no two of a category side by side"


def test_a_like_changes_the_list_within_a_moment(client):
    page = client.recommend("changing", n=12)
    client.outcome(page.id, "i1", "impression")
    client.outcome(page.id, "i1", "like")
    assert client.flush()

    def found_by_tags():
        why = {slot.item: slot.why["recall"] for slot in client.recommend("changing", n=12, explain=True).items}
        return "tags" in why["i4"] and "popular" in why["i1"]

    asyncio.run(until(found_by_tags))
    assert "i1" not in names(client.similar("i1")) and len(client.similar("i1", n=2).items) == 2


def test_mistakes_are_answered_with_what_to_do(client):
    with pytest.raises(BadInput, match="not both"):
        client.recommend("u", visitor="v")
    with pytest.raises(NotFound, match="there are: home"):
        client.recommend("u", placement="nowhere")
    with pytest.raises(NotFound, match="not known here"):
        client.similar("nothing")
    with pytest.raises(BadInput, match=r"items\[0\].id"):
        client.items([{"title": "without an id"}])
    for odd in ({"a": {"b": 1}}, {"a": [[1]]}, {"a": [None]}, {"a": [True]}):
        with pytest.raises(BadInput, match="is no value"):
            client.items([{"id": "i1", **odd}])
    with pytest.raises(BadInput, match="candidates is empty"):
        client.recommend("u1", [])
    assert len(client.recommend("u1").items) == 3, "the plainest call"
    assert client.merge("v1", "u1") == 1


def test_the_command_line_shows_how_each_item_came_to_its_place(served, client):
    base = [sys.executable, "-m", "millstream", "recommend", "--url", f"http://127.0.0.1:{served.http}"]
    done = subprocess.run([*base, "--user", "u1", "-n", "4", "--explain"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.count("found by") == 4, done
    done = subprocess.run([*base, "--similar", "i1", "-n", "2", "--json"], capture_output=True, text=True, timeout=60)
    assert len(json.loads(done.stdout)["items"]) == 2
    done = subprocess.run([*base, "--similar", "no"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "POST /v1/items" in done.stderr
