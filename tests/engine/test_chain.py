"""Chains: a few lines of Python over models that are served beside them, as a version like any other."""

import asyncio
import threading

import numpy as np
import pytest
from rig import THREADS, ask, rows, serving, until

import onnx_models
from millstream import errors
from millstream.engine import EngineLimits
from millstream.meter import Meter
from millstream.models import Batching, Manifest, Repository
from millstream.models.apart import Programs
from millstream.models.manifest import Process
from millstream.models.model import load
from millstream.models.traffic import promote
from millstream.types import Request, TensorSpec

X, Y = TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (-1, 4))
BOTH = """
def call(models, x):
    first, second = models.first(x=x), models["second"](x=x)
    return {"y": first["y"] + second["y"]}
"""


def put(root, code, name="chain", inputs=(X,), outputs=(Y,), **more):
    manifest = Manifest(format="chain", file="chain.py", inputs=inputs, outputs=outputs, **more)
    return Repository(root).put(name, manifest, {"chain.py": code.encode()})


def parts(root):
    onnx_models.scaled(root / "first" / "1" / "model.onnx", 2.0)
    onnx_models.scaled(root / "second" / "1" / "model.onnx", 3.0)


def trusting(repository, model, version):
    return load(repository, model, version, programs=Programs(Meter()))


def test_a_chain_is_answered_by_its_parts(tmp_path):
    parts(tmp_path)
    put(tmp_path, BOTH, example={"x": [[1.0, 2.0, 3.0, 4.0]]})

    async def main():
        async with serving(tmp_path, load=trusting) as engine:
            found = await engine.submit(ask("chain", rows(3)))
            assert (found.outputs["y"] == rows(3) * 5).all() and found.version == "1@0"
            assert engine.describe("chain").inputs == (X,)

    asyncio.run(main())


def test_many_callers_share_calls_of_the_chain_and_of_its_parts(tmp_path):
    parts(tmp_path)
    put(tmp_path, BOTH)

    async def main():
        async with serving(tmp_path, THREADS, load=trusting) as engine:
            asked = [engine.submit(ask("chain", rows(1, start=n))) for n in range(200)]
            for n, found in enumerate(await asyncio.gather(*asked)):
                assert (found.outputs["y"] == rows(1, start=n) * 5).all()
            calls = {one.model: one.batches for one in engine.statistics()}
            assert calls["chain"] < 100 and calls["first"] < 100

    asyncio.run(main())


def test_a_chain_waits_for_parts_that_load_after_it(tmp_path, caplog):
    put(tmp_path, BOTH, name="a-chain", example={"x": [[1.0, 2.0, 3.0, 4.0]]})

    async def main():
        async with serving(tmp_path, EngineLimits(poll_s=0.01), load=trusting) as engine:
            assert not engine.ready()
            with pytest.raises(errors.Misconfigured, match="waits for its part first"):
                engine.submit(ask("a-chain", rows(1)))
            await asyncio.sleep(0.1)
            parts(tmp_path)
            await until(lambda: "a-chain" in engine.models())
            assert ((await engine.submit(ask("a-chain", rows(1)))).outputs["y"] == rows(1) * 5).all()

    asyncio.run(main())
    assert len([line for line in caplog.messages if "waits for its part first" in line]) == 1


def test_a_part_that_is_rolled_over_changes_the_answer_of_the_chain(tmp_path):
    parts(tmp_path)
    put(tmp_path, BOTH)
    onnx_models.scaled(tmp_path / "first" / "2" / "model.onnx", 10.0)
    repository = Repository(tmp_path)
    repository.change_policy("first", promote("1"), who="test", why="")

    async def main():
        async with serving(tmp_path, load=trusting) as engine:
            assert ((await engine.submit(ask("chain", rows(1)))).outputs["y"] == rows(1) * 5).all()
            repository.change_policy("first", promote("2"), who="test", why="")
            await engine.refresh()
            assert ((await engine.submit(ask("chain", rows(1)))).outputs["y"] == rows(1) * 13).all()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("code", "error", "sentence"),
    [
        ("def call(models, x):\n    return {'y': models.gone(x=x)['y']}", errors.Busy, "waits for its part gone"),
        ("def call(models, x):\n    return {'y': models.first(z=x)['y']}", errors.BadInput, "input 'x' is missing"),
        ("def call(models, x):\n    return {'y': models.first(x=x)['z']}", errors.Error, "has no output 'z'"),
        ("def call(models, x):\n    return {'y': models.chain(x=x)['y']}", errors.Misconfigured, "would never end"),
        (
            "import time\ndef call(models, x):\n    return {'y': models.slow(x=x)['y']}",
            errors.Late,
            "slow did not answer",
        ),
        ("def call(models, x):\n    return x", errors.Error, "return a dict"),
        ("def call(models, x):\n    return {}", errors.Error, "without output 'y'"),
        ("def call(models, x):\n    1 / 0", errors.Error, "ZeroDivisionError"),
        ("import sys\ndef call(models, x):\n    sys.exit(3)", errors.Error, "SystemExit"),
    ],
)
def test_what_goes_wrong_in_a_chain_is_told_to_its_callers_alone(tmp_path, code, error, sentence):
    parts(tmp_path)
    put(tmp_path, BOTH)
    # without an example nothing is concluded from a first call that fails
    broken = f"import threading\nstarted = threading.main_thread\n{code}"
    put(tmp_path, "import time\ndef call(models, x):\n    time.sleep(1)\n    return {'y': x}", name="slow")
    put(tmp_path, broken, process=Process(call_s_max=0.3), batching=Batching(instances=4))
    repository = Repository(tmp_path)
    repository.change_policy("chain", promote("1"), who="test", why="")

    async def main():
        async with serving(tmp_path, EngineLimits(poll_s=0.01), load=trusting) as engine:
            repository.change_policy("chain", promote("2"), who="test", why="")
            await engine.refresh()
            if "gone" in code or "exit" in code:  # it is not even put in the place of what works
                assert engine.describe("chain").versions == ("1",)
                return
            with pytest.raises(error, match=sentence):
                await engine.submit(ask("chain", rows(1)))
            assert ((await engine.submit(ask("first", rows(1)))).outputs["y"] == rows(1) * 2).all()

    asyncio.run(main())


def test_a_stop_answers_chains_that_are_under_way(tmp_path):
    parts(tmp_path)
    slow = "import time\n" + BOTH.replace("    first", "    time.sleep(0.2)\n    first", 1)
    put(tmp_path, slow)

    async def main():
        async with serving(tmp_path, load=trusting) as engine:
            answer = engine.submit(ask("chain", rows(1)))
            await asyncio.sleep(0.05)
        assert ((await answer).outputs["y"] == rows(1) * 5).all()

    asyncio.run(main())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("millstream-chain")]


def test_text_goes_through_a_chain(tmp_path):
    words = "def call(models, text):\n    return {'n': [len(one) for one in text], 'up': [t.upper() for t in text]}"
    put(
        tmp_path,
        words,
        inputs=(TensorSpec("text", "BYTES", (-1,)),),
        outputs=(TensorSpec("n", "INT64", (-1,)), TensorSpec("up", "BYTES", (-1,))),
    )

    async def main():
        async with serving(tmp_path, load=trusting) as engine:
            text = np.array(["a", "bcd"], object)
            found = await engine.submit(Request("chain", {"text": text}, 2))
            assert found.outputs["n"].tolist() == [1, 3] and found.outputs["up"].tolist() == ["A", "BCD"]

    asyncio.run(main())


def test_a_chain_may_import_the_files_beside_it_in_every_version(tmp_path):
    for number in (1, 2):
        files = {
            "chain.py": b"from .scale import BY\ndef call(models, x):\n    return {'y': x * BY}",
            "scale.py": f"BY = {number}".encode(),
        }
        manifest = Manifest(format="chain", file="chain.py", inputs=(X,), outputs=(Y,), code=("scale.py",))
        Repository(tmp_path).put("chain", manifest, files)
    Repository(tmp_path).change_policy("chain", promote("1"), who="test", why="")

    async def main():
        async with serving(tmp_path, load=trusting) as engine:
            assert ((await engine.submit(ask("chain", rows(1)))).outputs["y"] == rows(1)).all()
            Repository(tmp_path).change_policy("chain", promote("2"), who="test", why="")
            await engine.refresh()
            assert ((await engine.submit(ask("chain", rows(1)))).outputs["y"] == rows(1) * 2).all()

    asyncio.run(main())
