"""The control API of traffic, behind a real engine and a real repository: what is asked for is done, in every process,
and of two people who decide at once the second is told."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import numpy as np
import orjson
import pytest
from front_house import Reply, Served, http

import onnx_models
from millstream import errors
from millstream.app.service import ServeSettings, Service
from millstream.cli import main
from millstream.client import Client
from millstream.clock import SystemClock
from millstream.guard.auth import new_key
from millstream.meter import Meter
from millstream.models import Repository
from millstream.models.recorded import RecordSettings, read
from millstream.models.traffic import Promote, promote


class Real:
    """A whole service over models m (versions 1 to 3: y = 1, 2, 3 times x) with live = 1."""

    def __init__(self, root: Any, **settings: Any) -> None:
        for version in (1, 2, 3):
            onnx_models.scaled(root / "models" / "m" / str(version) / "model.onnx", version)
        self.repository = Repository(root / "models")
        if not self.repository.history("m"):
            self.repository.change_policy("m", promote("1"), "test", "")
        made = ServeSettings(http_port=0, grpc_port=0, **settings)
        self.service = Service(self.repository, made, root, SystemClock(), Meter())

    async def __aenter__(self) -> Real:
        await self.service.load()
        self.service.furnish()
        self.port = await self.service.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.service.stop()

    async def ask(self, raw: bytes) -> Reply:
        reader = Served()
        reader.port = self.port
        return await reader.ask(raw)

    async def get(self, url: str, **headers: object) -> Reply:
        return await self.ask(http("GET", url, **headers))

    async def move(self, verb: str, model: str = "m", headers: dict[str, object] | None = None, **body: Any) -> Reply:
        return await self.ask(http("POST", f"/v1/traffic/{model}/{verb}", orjson.dumps(body), **(headers or {})))

    async def answered_by(self) -> str:
        x = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}
        reply = await self.ask(http("POST", "/v2/models/m/infer", orjson.dumps({"inputs": [x]})))
        return str(reply.json["model_version"])

    async def until(self, version: str) -> None:
        for _ in range(600):
            if await self.answered_by() == version:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{version} never answered")


def run(root: Any, test: Any, **settings: Any) -> None:
    async def main() -> None:
        async with Real(root, **settings) as real:
            await test(real)

    asyncio.run(main())


def test_every_move_is_made_and_told(tmp_path: Any) -> None:
    async def test(real: Real) -> None:
        reply = await real.move("canary", version=2, share=0.2, guard={"errors": 0.01}, why="try it")
        assert reply.status == 200 and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", reply.json["when"])
        guard = {"errors": 0.01, "p99": 1.5, "drift": 0.1, "requests_min": 200, "requests": 10000, "promote": True}
        assert reply.json == {
            "version": 2, "live": "1", "canary": {"version": "2", "share": 0.2, "guard": guard},
            "who": "control API", "why": "try it", "when": reply.json["when"],
        }  # fmt: skip
        assert (await real.move("shadow", versions=["3"], who="ann")).json["shadow"] == ["3"]
        assert (await real.move("split", shares={"1": 0.5, "3": 0.5})).json["split"] == {"1": 0.5, "3": 0.5}
        assert (await real.move("learning", state="paused")).json["learning"] == "paused"
        assert (await real.move("promote", version="2")).json["live"] == "2"
        await real.until("2@0")
        back = (await real.move("rollback")).json
        assert (back["live"], back["pin"], back["why"]) == ("1", "1", "traffic rollback")
        await real.until("1@0")
        again = await real.move("rollback")
        assert again.status == 409 and "already rolled back to 1 by control API" in again.error
        assert (await real.move("rollback", to="3")).json["live"] == "3"
        await real.until("3@0")
        told = (await real.get("/v1/traffic/m")).json
        assert (told["policy"]["live"], told["following"], told["policy"]["version"]) == ("3", 8, 8)
        assert [one["version"] for one in told["history"]] == [8, 7, 6, 5, 4, 3, 2, 1]
        assert told["history"][5]["who"] == "ann" and told["versions"]["3@0"] == "live" and told["guard"] is None
        assert real.repository.policy("m").live == "3"

    run(tmp_path, test)


def test_the_client_makes_every_move_too(tmp_path: Any) -> None:
    def moves(url: str) -> None:
        with Client(url) as client:
            assert client.canary("m", "2", 0.1, {"drift": 0}, who="ann")["canary"]["guard"]["drift"] == 0
            assert "guard" not in client.canary("m", "2")["canary"]
            assert client.split("m", {"1": 9, "2": 1}, "request")["sticky_by"] == "request"
            assert client.shadow("m", ["3"])["shadow"] == ["3"]
            assert client.learning("m", "paused")["learning"] == "paused"
            assert client.promote("m", "2", policy=6, why="better")["why"] == "better"
            with pytest.raises(errors.Conflict, match="is 7 by now, not 6: control API was faster"):
                client.promote("m", "3", policy=6)
            assert client.roll_back("m")["live"] == "1"
            with pytest.raises(errors.Conflict, match="already rolled back to 1"):
                client.roll_back("m")
            assert client.roll_back("m", to="3")["live"] == "3"
            with pytest.raises(errors.BadInput, match="does not exist"):
                client.promote("m", "99")
            assert client.traffic("m")["policy"]["live"] == "3"
            assert client.comparison("m")["shadows"][0]["version"] == "3"
            with pytest.raises(errors.NotFound):
                client.traffic("nobody")

    async def test(real: Real) -> None:
        await asyncio.to_thread(moves, f"http://127.0.0.1:{real.port}")

    run(tmp_path, test)


def test_of_two_people_who_promote_at_once_the_second_is_told_who_was_faster(tmp_path: Any) -> None:
    async def test(real: Real) -> None:
        replies = await asyncio.gather(
            real.move("promote", version="2", policy=1, who="ann", why="it is better"),
            real.move("promote", version="3", policy=1, who="bob"),
        )
        assert sorted(reply.status for reply in replies) == [200, 409]
        first = next(reply.json for reply in replies if reply.status == 200)
        said = next(reply.error for reply in replies if reply.status == 409)
        assert said.startswith(f"the policy of m is 2 by now, not 1: {first['who']} was faster") and "again" in said
        assert real.repository.policy("m").live == first["live"]

    run(tmp_path, test)


MISTAKES = {
    "another model": ("promote", "n", {"version": "1"}, 404, "no model 'n'"),
    "a version that is not there": ("promote", "m", {"version": "9"}, 400, "version 9, which does not exist"),
    "no version": ("promote", "m", {}, 400, "missing required field `version`"),
    "another field": ("promote", "m", {"version": "1", "verson": 1}, 400, "unknown field `verson`"),
    "no share": ("canary", "m", {"version": "2", "share": 7}, 400, "<= 1"),
    "a guard that cannot be": ("canary", "m", {"version": "2", "guard": {"p99": 0.5}}, 400, "wants `p99` from 1"),
    "a weight of nothing": ("split", "m", {"shares": {"1": 0}}, 400, "split"),
    "two lines of why": ("promote", "m", {"version": "2", "why": "a\nb"}, 400, "write plain text on one line"),
    "another state": ("learning", "m", {"state": "maybe"}, 400, "maybe"),
    "nothing before": ("rollback", "m", {}, 404, "no version of m was live before 1"),
    "a policy that is not there": ("promote", "m", {"version": "2", "policy": 7}, 409, "is 1 by now, not 7"),
}


def test_every_mistake_is_told_and_changes_nothing(tmp_path: Any) -> None:
    async def test(real: Real) -> None:
        for name, (verb, model, body, status, words) in MISTAKES.items():
            reply = await real.ask(http("POST", f"/v1/traffic/{model}/{verb}", orjson.dumps(body)))
            assert (reply.status, words in reply.error) == (status, True), f"{name}: {reply.status} {reply.error}"
        for raw in (b"{", b"[1]", b"\xff"):
            assert (await real.ask(http("POST", "/v1/traffic/m/promote", raw))).status == 400
        assert (await real.get("/v1/traffic/n")).status == 404
        assert (await real.get("/v1/traffic/m/nothing")).status == 404
        assert (await real.get("/v1/traffic/m/promote")).status == 405
        assert real.repository.policy("m").version == 1

    run(tmp_path, test)


def test_web_pages_and_strangers_control_nothing(tmp_path: Any) -> None:
    async def test(real: Real) -> None:
        page = await real.move("promote", version="2", headers={"Origin": "http://elsewhere.example"})
        assert page.status == 403 and "web pages" in page.error
        for url in ("/v1/traffic/m", "/v1/traffic/m/comparison"):
            page = await real.get(url, Origin="http://elsewhere.example")
            assert page.status == 403 and "web pages" in page.error
        door = real.service.door
        stranger = door.principal(None, "203.0.113.9")
        for call in (
            lambda: door.move("m", "promote", Promote(version="2"), stranger),
            lambda: door.traffic("m", stranger),
            lambda: door.comparison("m", stranger),
        ):
            with pytest.raises(errors.Forbidden, match="keys file or a call from this machine"):
                call()
        assert real.repository.policy("m").version == 1

    run(tmp_path, test)


def test_a_key_needs_the_verb_control_and_its_name_is_recorded(tmp_path: Any) -> None:
    entries, keys = [], {}
    for name, verbs in (("ops", ("m:control",)), ("shop", ("*:infer",))):
        keys[name], entry = new_key(name, verbs)
        entries.append(entry)
    (tmp_path / "keys.toml").write_text("\n".join(entries))

    async def test(real: Real) -> None:
        assert (await real.move("promote", version="2")).status == 401
        shop = {"Authorization": f"Bearer {keys['shop']}"}
        assert (await real.move("promote", version="2", headers=shop)).status == 403
        assert (await real.get("/v1/traffic/m/comparison", **shop)).status == 403
        ops = {"Authorization": f"Bearer {keys['ops']}"}
        assert (await real.move("promote", version="2", who="somebody else", headers=ops)).json["who"] == "ops"

    run(tmp_path, test, keys="keys.toml")


def test_a_policy_that_somebody_broke_is_told_beside_the_one_in_force(tmp_path: Any) -> None:
    async def test(real: Real) -> None:
        (tmp_path / "models" / "m" / "policy.toml").write_text("live = 9")
        told = (await real.get("/v1/traffic/m")).json
        assert told["policy"]["live"] == "1" and "does not exist" in told["problems"]["policy"]

    run(tmp_path, test)


def test_the_comparison_tells_what_shadows_say(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    onnx_models.scaled(tmp_path / "models" / "m" / "4" / "model.onnx", 1, width=9)

    async def test(real: Real) -> None:
        await real.move("shadow", versions=["2", "4"])
        for _ in range(600):
            await real.answered_by()
            told = (await real.get("/v1/traffic/m/comparison")).json
            by = {one["version"]: one for one in told["shadows"]}
            if by and by["2"]["compared"] and by["4"]["seen"]:
                break
            await asyncio.sleep(0.02)
        assert by["2"]["seen"]["outputs"]["y"]["kind"] == "numeric" and by["2"]["differing"] >= 1
        assert by["2"]["seen"]["samples"][0]["inputs"]["x"] == {"shape": [1, 4], "data": [1.0] * 4}
        assert by["4"]["compared"] == 0 and re.search(r"expected FP32 \[1, 9\]", by["4"]["problem"])
        assert told["live"] == "1" and by["2"]["memory_bytes"] > 0 < by["2"]["live_memory_bytes"]
        command = ["traffic", "comparison", "m", "--url", f"http://127.0.0.1:{real.port}"]
        await asyncio.to_thread(main, command)
        lines = capsys.readouterr().out.splitlines()
        first = r"m 2 beside live 1: \d+ copies, 0 lost, \d+ compared, \d+ differing \(100\.0%\); memory live \d+ MB.*"
        assert re.fullmatch(first, lines[0])
        assert re.search(r"0 failed; median time live \d+\.\d\d ms, shadow \d+\.\d\d ms$", lines[1])
        assert lines[2] == "  y: numeric, 100.0% of the elements differ, delta 1 on average, 1 at most"
        assert lines[3].startswith("m 4 beside live 1: ") and lines[4].startswith("  problem: ")
        await asyncio.to_thread(main, [*command, "--json"])
        assert orjson.loads(capsys.readouterr().out)["shadows"][0]["seen"]["outputs"]["y"]["kind"] == "numeric"

    run(tmp_path, test)


def test_a_canary_that_answers_nan_goes_by_itself_while_the_service_runs(tmp_path: Any) -> None:
    async def test(real: Real) -> None:
        await real.move("canary", version="2", share=0.5, guard={"requests_min": 20, "requests": 1000, "p99": 0})
        for number in range(3000):
            x = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1e38, 1, 1, number]}
            await real.ask(http("POST", "/v2/models/m/infer", orjson.dumps({"inputs": [x]})))
            told = (await real.get("/v1/traffic/m")).json
            if "canary" not in told["policy"] and told["guard"]["said"] != "watched from now on":
                break
        assert told["policy"]["who"] == "guard" and told["policy"]["live"] == "1"
        assert told["guard"]["said"].startswith("took it back in policy 3")

    onnx_models.graph(
        tmp_path / "models" / "m" / "2" / "model.onnx",
        [
            onnx_models.helper.make_node("Mul", ["x", "s"], ["big"]),
            onnx_models.helper.make_node("Sub", ["big", "big"], ["y"]),
        ],
        [("x", onnx_models.TensorProto.FLOAT, ["rows", 4])],
        [("y", onnx_models.TensorProto.FLOAT, ["rows", 4])],
        [("s", np.array(1e10, np.float32))],
    )
    nan = (tmp_path / "models" / "m" / "2" / "model.onnx").read_bytes()

    class Broken(Real):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            (tmp_path / "models" / "m" / "2" / "model.onnx").write_bytes(nan)

    async def main() -> None:
        async with Broken(tmp_path) as real:
            await test(real)

    asyncio.run(main())


def test_a_service_records_what_it_is_told_to(tmp_path: Any) -> None:
    async def test(real: Real) -> None:
        for _ in range(5):
            await real.answered_by()

    run(tmp_path, test, record=RecordSettings(share=1.0, requests_max=3))
    found = read(Repository(tmp_path / "models"), "m")
    assert [one["x"].tolist() for one in found] == [[[1, 1, 1, 1]]] * 3
