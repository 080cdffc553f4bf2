"""Tenants as callers meet them: `millstream up`, keys that are bound to tenants, the client and the command line."""

import asyncio
import json
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from millstream.cli import main
from millstream.client import Client
from millstream.errors import BadInput, Forbidden, NotFound
from service import Served, until

TOML = """
http_port = 0
grpc_port = 0
workers = 2
keys = "keys.toml"
[recommend.placements.home]
n = 3
[recommend.tenants.acme]
[recommend.tenants.zeta.placements.front]
n = 2
[[recommend.tenants.zeta.placements.front.rerank]]
step = "pins"
items = { z3 = 1 }
[features]
user = [{ name = "id" }]
item = [{ name = "id" }]
"""
BOUND = {"acme": ["acme"], "zeta": ["zeta"], "both": ["acme", "zeta"], "all": []}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A folder with the installation, and the key of each name."""
    folder, made = tmp_path_factory.mktemp("tenants"), {}
    (folder / "millstream.toml").write_text(TOML)
    for name, tenants in BOUND.items():
        bound = [part for tenant in tenants for part in ("--tenant", tenant)]
        line = ["keys", "new", name, "--may", "*:*", *bound, "--json", "-f", str(folder / "keys.toml")]
        said = subprocess.run([sys.executable, "-m", "millstream", *line], capture_output=True, text=True, check=True)
        made[name] = json.loads(said.stdout)["key"]
    return folder, made


@pytest.fixture(scope="module")
def served(keys):
    file = keys[0] / "millstream.toml"
    with Served(file, keys[0] / "log.txt", verb=("up", "-c", str(file))) as made:
        yield made


@pytest.fixture(scope="module")
def client(served, keys):
    """The client of a key's name, and of the tenant that it says."""
    made = []

    def of(name, tenant=""):
        made.append(Client(f"http://127.0.0.1:{served.http}", keys[1][name], tenant=tenant, connections=4))
        return made[-1]

    for tenant in ("acme", "zeta"):
        one = of(tenant)
        assert one.items([{"id": f"{tenant[0]}{n}", "tags": ["t"]} for n in range(4)] + [{"id": "same"}]) == 5
        assert one.users([{"id": "u"}]) == 1
        asyncio.run(until(lambda one=one: all(len(one.recommend(f"new-{n}", n=9).items) == 5 for n in range(8))))
    yield of
    for one in made:
        one.close()


def names(listing):
    return [slot.item for slot in listing.items]


def test_each_key_gets_its_tenants_lists_and_no_others(client):
    acme, zeta = client("acme"), client("zeta")
    assert {*names(acme.recommend("u", n=9))} == {"a0", "a1", "a2", "a3", "same"}
    assert names(zeta.recommend("u"))[0] == "z3" and len(names(zeta.recommend("u"))) == 2, "a placement of its own"
    page = zeta.recommend("u", placement="front", id="r1")
    seen = names(page)
    while page.cursor:
        page = zeta.recommend(cursor=page.cursor)
        seen += names(page)
    assert page.id == "r1" and sorted(seen) == ["same", "z0", "z1", "z2", "z3"]
    with pytest.raises(NotFound, match="not remembered"):
        acme.recommend(cursor=zeta.recommend("u", n=1).cursor)
    with pytest.raises(NotFound, match="there are: home"):
        acme.recommend("u", placement="front")
    with pytest.raises(NotFound, match="item 'z1' is not known"):
        acme.similar("z1")
    assert zeta.merge("v", "u") == 1


def test_what_one_likes_is_popular_with_it_alone(client):
    acme, zeta = client("both", "acme"), client("all", "zeta")
    page = acme.recommend("u", n=9, id="same-id")
    zeta.recommend("u", n=9, id="same-id")
    for item in ("same", "a1"):
        acme.outcome(page.id, item, "like")
    assert acme.flush()

    def liked(of):
        found = of.recommend("somebody", n=9, explain=True).items
        return {one.item for one in found if "popular" in one.why["recall"]}

    asyncio.run(until(lambda: liked(acme) == {"same", "a1"}))
    assert liked(zeta) == set()


def test_another_tenant_is_refused_and_none_is_asked_for(client):
    for tenant in ("zeta", "nobody"):
        other = client("acme", tenant)
        for call in (
            lambda other=other: other.recommend("u"), lambda other=other: other.recommend("u", ["a0"]),
            lambda other=other: other.similar("z1"), lambda other=other: other.items([{"id": "z1", "deleted": True}]),
            lambda other=other: other.users([{"id": "u"}]), lambda other=other: other.merge("v", "u"),
        ):  # fmt: skip
            with pytest.raises(Forbidden, match="may not speak for tenant"):
                call()
        lost = []
        other._outbox._on_drop = lambda outcomes, why, lost=lost: lost.append(why)
        other.outcome("r1", "z1", "like")
        assert other.flush() and "may not speak for tenant" in lost[0]
    for name in ("both", "all"):
        with pytest.raises(BadInput, match="tenant is missing"):
            client(name).recommend("u")
    with pytest.raises(NotFound, match="not configured"):
        client("all", "nobody").recommend("u")
    with pytest.raises(Forbidden, match="of the whole installation"):
        client("acme").traffic("ranker")


def status(served, path, key):
    asked = urllib.request.Request(f"http://127.0.0.1:{served.http}{path}", headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_metrics_are_for_who_is_of_no_tenant(served, keys, client):
    client("acme").recommend("u")
    assert status(served, "/metrics", keys[1]["acme"])[0] == 403
    code, text = status(served, "/metrics", keys[1]["all"])
    assert code == 200 and 'millstream_tenant_asks_total{tenant="acme"}' in text
    assert 'millstream_recall_items{tenant="zeta"} 5' in text


def test_the_command_line_says_whose_list(served, keys, client, capsys):
    file = keys[0] / "key.txt"
    file.write_text(keys[1]["all"])
    line = ["recommend", "--url", f"http://127.0.0.1:{served.http}", "--key-file", str(file), "--user", "u", "--json"]
    main([*line, "--tenant", "zeta"])
    assert json.loads(capsys.readouterr().out)["items"][0]["item"] == "z3"
    with pytest.raises(SystemExit, match="tenant is missing"):
        main(line)
    main(["keys", "list", "--json", "-f", str(keys[0] / "keys.toml")])
    assert {one["name"]: one.get("tenants", "").split() for one in json.loads(capsys.readouterr().out)} == BOUND
