"""Versions of one model that take different inputs: each request that leaves the leeway reaches any of them, and each
gets what it declares."""

import asyncio
from collections import Counter

import msgspec
import numpy as np
import pytest
from rig import serving, until

import onnx_models
from millstream.errors import BadInput
from millstream.meter import Meter
from millstream.models import Canary, Guard, Repository
from millstream.models.runtimes.onnx import Onnx
from millstream.types import Leeway, Request

WIDTH, HISTORIES = 3, {"1": 0, "2": 6, "3": 4}
LEEWAY = Leeway(("history",), ("probability",))


def put(root):
    """Version 1 takes rows alone, 2 the last six of a history and gives a click, 3 the last four."""
    for version, history in HISTORIES.items():
        file = root / "m" / version / "model.onnx"
        onnx_models.attending(file, WIDTH, history, weight=int(version) / 4, click=version == "2")


def follow(root, **policy):
    Repository(root).change_policy("m", lambda before: msgspec.structs.replace(before, **policy), "test", "")


def asked(number, rows=5, leeway=LEEWAY, **more):
    random = np.random.default_rng(number)
    inputs = {
        name: random.integers(1, 2**32, shape, np.uint32)
        for name, shape in (("tokens", (rows, WIDTH)), ("history", (1, 6)))
    }
    return Request("m", inputs, rows, id=f"r{number}", key=f"u{number}", leeway=leeway, **more)


def alone(root, version, request):
    """What a version says of a request by itself: it is given what it declares."""
    model, history = Onnx(root / "m" / version / "model.onnx"), HISTORIES[version]
    given = {"tokens": request.inputs["tokens"]}
    if history:
        given["history"] = np.repeat(request.inputs["history"][:, -history:], request.rows, axis=0)
    return model.predict(given)["probability"]


POLICIES = [
    {"live": "1", "canary": Canary("2", 0.5), "shadow": ("3",)},
    {"live": "2", "canary": Canary("1", 0.5), "shadow": ("3", "1")},
    {"live": "3", "split": {"1": 1.0, "2": 1.0, "3": 1.0}, "shadow": ("2",)},
]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_version_answers_as_it_does_alone(tmp_path, policy):
    put(tmp_path)
    follow(tmp_path, **policy)
    requests, told = [asked(number) for number in range(60)], []

    async def main():
        async with serving(tmp_path, shadow=told.append) as engine:
            found = await asyncio.gather(*[engine.submit(request) for request in requests])
            found += [await engine.submit(asked(1, version=version)) for version in HISTORIES]
            assert engine.widest("m", "history") == 6 and engine.widest("m", "other") == 0
            assert engine.views()[0].problems == {}
            # the version that answered has no copy of its own
            copies = sum(one != output.version[0] for output in found[:60] for one in policy["shadow"])
            await until(lambda: len(told) == copies)
        return found

    found = asyncio.run(main())
    for request, output in zip([*requests, *[asked(1)] * 3], found, strict=True):
        np.testing.assert_array_equal(output.outputs["probability"], alone(tmp_path, output.version[0], request))
    arms = Counter(output.version[0] for output in found[:60])
    assert len(arms) == len(
        {policy["live"], *policy.get("split", ()), *([policy["canary"].version] if "canary" in policy else [])}
    )
    assert min(arms.values()) > 10
    by_id = {request.id: request for request in requests}
    for shadow in told:
        scores = np.frombuffer(shadow.scores, "<f4")
        np.testing.assert_array_equal(scores, alone(tmp_path, shadow.version[0], by_id[shadow.request]))


def test_who_leaves_no_leeway_gets_what_the_live_version_takes_and_is_told_of_what_it_does_not(tmp_path):
    put(tmp_path)
    follow(tmp_path, live="1", canary=Canary("2", 1.0))

    async def main():
        async with serving(tmp_path) as engine:
            problem = engine.views()[0].problems["2"]
            assert "takes or gives other tensors than the live version" in problem
            with pytest.raises(BadInput, match="input 'history' is not known"):
                await engine.submit(asked(1, leeway=None))
            plain = asked(1, leeway=None)
            del plain.inputs["history"]
            assert (await engine.submit(plain)).version == "1@0"
            with pytest.raises(BadInput, match="input 'history' is missing"):
                await engine.submit(msgspec.structs.replace(plain, version="2"))
            both = Leeway(("history",), ("click", "probability"))
            assert (await engine.submit(asked(1, leeway=both))).version == "2@0"
            other = Leeway(("history",), ("dwell",))
            assert (await engine.submit(asked(1, leeway=other))).version == "1@0", "the canary does not give it either"
            strange = asked(1)
            strange.inputs["mood"] = strange.inputs["history"]
            with pytest.raises(BadInput, match="input 'mood' is not known"):
                await engine.submit(strange)
            narrow = asked(1)
            narrow.inputs["history"] = narrow.inputs["history"][:, :5]
            with pytest.raises(BadInput, match=r"'history' expected UINT32 \[5, 6\], got UINT32 \[1, 5\]"):
                await engine.submit(narrow)
            assert engine.views()[0].problems == {}, "it has its share of what it can answer"

    asyncio.run(main())


def test_a_guard_counts_both_arms_of_what_leaves_the_leeway(tmp_path):
    put(tmp_path)
    follow(tmp_path, live="1", canary=Canary("2", 0.5, Guard()))
    meter = Meter()

    async def main():
        async with serving(tmp_path, meter=meter) as engine:
            await asyncio.gather(*[engine.submit(asked(number)) for number in range(40)])
            plain = [asked(number, leeway=None) for number in range(10)]
            for one in plain:
                del one.inputs["history"]
            await asyncio.gather(*[engine.submit(one) for one in plain])
            counts = [meter.values("_guard_seconds", {"model": "m", "arm": arm}) for arm in ("live", "canary")]
            return [sum(one[:-1]) for one in counts]

    live, canary = asyncio.run(main())
    assert live + canary == 40 and min(live, canary) > 8, "of what the canary cannot answer nothing is compared"
