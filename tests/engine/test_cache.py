"""A cached answer is the answer that the version would compute; nothing else is kept, and what is kept is bounded."""

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rig import Weight, ask, delta, one_weight, rows, serving

import onnx_models
from millstream.engine.cache import Cache, key_of
from millstream.meter import Meter
from millstream.models import Manifest, Repository
from millstream.models.manifest import Cache as Bounds
from millstream.models.traffic import promote
from millstream.types import Request

Y = {"y": np.arange(3, dtype=np.float32)}


def cached_model(root, scale, **bounds):
    file = onnx_models.scaled(root / "aside.onnx", scale)
    manifest = Manifest(format="onnx", file="model.onnx", cache=Bounds(**({"entries": 100} | bounds)))
    return Repository(root / "models").put("m", manifest, {"model.onnx": file})


def hits(meter):
    return sum(float(line.split()[-1]) for line in meter.render().splitlines() if "cache_hits_total{" in line)


def test_the_same_inputs_are_computed_once_and_others_always(tmp_path):
    cached_model(tmp_path, 2.0)

    async def main():
        meter = Meter()
        async with serving(tmp_path / "models", meter=meter) as engine:
            first = await engine.submit(ask("m", rows(2), id="a"))
            again = await engine.submit(ask("m", rows(2), id="b", key="somebody"))
            other = await engine.submit(ask("m", rows(2, start=1.0)))
            assert (first.cached, again.cached, other.cached) == (False, True, False)
            assert (again.outputs["y"] == rows(2) * 2).all() and (other.outputs["y"] == rows(2, start=1.0) * 2).all()
            assert again.version == first.version == "1@0"
            assert hits(meter) == 1
            with pytest.raises(ValueError, match="read-only"):
                again.outputs["y"][0] = 5

    asyncio.run(main())


def test_another_version_has_its_own_answers(tmp_path):
    cached_model(tmp_path, 2.0)
    cached_model(tmp_path, 3.0)
    repository = Repository(tmp_path / "models")
    repository.change_policy("m", promote("1"), who="test", why="")

    async def main():
        async with serving(tmp_path / "models") as engine:
            await engine.submit(ask("m", rows(1)))
            repository.change_policy("m", promote("2"), who="test", why="")
            await engine.refresh()
            after = await engine.submit(ask("m", rows(1)))
            assert not after.cached and after.version == "2@0" and (after.outputs["y"] == rows(1) * 3).all()

    asyncio.run(main())


def test_learning_empties_the_cache(tmp_path):
    _, made = one_weight(tmp_path)
    Repository(tmp_path).put("w", Manifest(format="weight", file="w", cache=Bounds(entries=9)), {"w": b"-"})

    def load(repository, model, version):
        made[version] = Weight()
        return made[version]

    async def main():
        async with serving(tmp_path, load=load) as engine:
            await engine.submit(ask("w", rows(1)))
            assert (await engine.submit(ask("w", rows(1)))).cached
            engine.apply(delta(1, 5.0, base="2"))
            moved = await engine.submit(ask("w", rows(1)))
            assert not moved.cached and moved.version == "2@1" and moved.outputs["y"].tolist() == [5.0]

    asyncio.run(main())


def test_the_least_recently_used_go_first():
    cache = Cache(Bounds(entries=2))
    for key in (b"a", b"b"):
        cache.put("1@0", key, Y, 0.0)
    assert cache.get("1@0", b"a", 0.0) is not None
    cache.put("1@0", b"c", Y, 0.0)
    assert cache.get("1@0", b"b", 0.0) is None and cache.get("1@0", b"a", 0.0) is not None


def test_bytes_and_age_are_bounds_too():
    cache = Cache(Bounds(entries=100, bytes_max=40, ttl_s=10))
    for key in (b"a", b"b", b"c"):
        cache.put("1@0", key, Y, 0.0)  # 12 bytes and the key: three fit
    assert len(cache) == 3
    cache.put("1@0", b"d", {"y": np.zeros(6, np.float32)}, 5.0)
    assert len(cache) == 2
    cache.put("1@0", b"e", {"y": np.zeros(60, np.float32)}, 5.0)
    assert cache.get("1@0", b"e", 5.0) is None
    assert cache.get("1@0", b"d", 15.0) is not None and cache.get("1@0", b"d", 15.1) is None


def test_a_copy_is_kept_not_a_view_of_the_batch():
    cache, batch = Cache(Bounds(entries=2)), np.zeros((1000, 4), np.float32)
    cache.put("1@0", b"a", {"y": batch[:1]}, 0.0)
    batch += 1
    found = cache.get("1@0", b"a", 0.0)["y"]
    assert found.base is None and not found.any()


arrays = st.sampled_from(
    [
        np.zeros((2, 3), np.float32),
        np.zeros((3, 2), np.float32),
        np.zeros((2, 3), np.int32),
        np.zeros((1, 3), np.float32),
        np.array(["a", "bc"], object),
        np.array(["ab", "c"], object),
        np.array(["a", "bc"], object).reshape(2, 1),
    ]
)
asked = st.tuples(st.sampled_from(["x", "y"]), arrays, st.sampled_from([(), ("p",), ("q",), ("p", "q")]))


@given(asked, asked)
def test_two_requests_share_a_key_only_if_they_ask_the_same(one, other):
    def same(a, b):
        return a.dtype == b.dtype and a.shape == b.shape and (a == b).all()

    keys = [key_of(Request("m", {name: array}, len(array), outputs=wanted)) for name, array, wanted in (one, other)]
    alike = one[0] == other[0] and same(one[1], other[1]) and one[2] == other[2]
    assert (keys[0] == keys[1]) == alike
