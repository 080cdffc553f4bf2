"""Chains: a few lines of Python over models that are served beside them, as a version like any other."""

import asyncio
import importlib.util
import marshal
import py_compile
import struct
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from rig import THREADS, ask, rows, serving, until

import onnx_models
from millstream import errors
from millstream.engine import EngineLimits
from millstream.meter import Meter
from millstream.models import Batching, Manifest, Repository, chain
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
    if "slow" in code:  # it takes its time to warm up, too
        put(tmp_path, "import time\ndef call(models, x):\n    time.sleep(1)\n    return {'y': x}", name="slow")
    put(tmp_path, broken, process=Process(call_s_max=0.3), batching=Batching(instances=4))
    repository = Repository(tmp_path)
    repository.change_policy("chain", promote("1"), who="test", why="")

    async def main():
        async with serving(tmp_path, EngineLimits(poll_s=0.01), load=trusting) as engine:
            repository.change_policy("chain", promote("2"), who="test", why="")
            await engine.refresh()
            if any(word in code for word in ("gone", "exit", "models.chain")):  # it never replaces what works
                assert engine.describe("chain").versions == ("1",) and sentence in str(engine.views())
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


IN_PLACE = [
    "def call(models, x):\n    x += 1\n    return {'y': x}",
    "def call(models, x):\n    y = models.first(x=x)['y']\n    y[0] = 1\n    return {'y': y}",
]


@pytest.mark.parametrize("code", IN_PLACE)
@pytest.mark.parametrize("example", [{}, {"x": [[1.0, 2.0, 3.0, 4.0]]}])
def test_a_chain_that_changes_what_it_was_given_is_refused_when_it_is_tried(tmp_path, code, example):
    parts(tmp_path)
    put(tmp_path, code, example=example)

    async def main():
        async with serving(tmp_path, EngineLimits(poll_s=0.01), load=trusting) as engine:
            await until(lambda: "chain" in engine._served and not engine._served["chain"].loading)
            with pytest.raises(errors.Misconfigured, match="copy it first"):
                engine.submit(ask("chain", rows(1)))

    asyncio.run(main())


def test_a_chain_may_return_what_it_was_given(tmp_path):
    parts(tmp_path)
    put(tmp_path, "def call(models, x):\n    return {'y': x}", name="same")
    put(tmp_path, "def call(models, x):\n    return {'y': models.first(x=x)['y']}", name="its-part")

    async def main():
        async with serving(tmp_path, load=trusting) as engine:
            for name, times in (("same", 1), ("its-part", 2)):
                asked = [engine.submit(ask(name, rows(1, start=n))) for n in range(20)]
                for n, found in enumerate(await asyncio.gather(*asked)):
                    assert (found.outputs["y"] == rows(1, start=n) * times).all()

    asyncio.run(main())


def test_a_part_gets_what_the_chain_had_when_it_asked(tmp_path):
    parts(tmp_path)
    put(
        tmp_path,
        "def call(models, x):\n    own = x.copy()\n    first = models.first(x=own)\n    own[:] = 0\n"
        "    return {'y': first['y']}",
    )

    async def main():
        async with serving(tmp_path, load=trusting) as engine:
            for _ in range(20):
                assert ((await engine.submit(ask("chain", rows(2)))).outputs["y"] == rows(2) * 2).all()

    asyncio.run(main())


BESIDE = {"chain.py": b"from .scale import BY\ndef call(models, x):\n    return {'y': x * BY}", "scale.py": b"BY = 2"}


def put_beside(root):
    manifest = Manifest(format="chain", file="chain.py", inputs=(X,), outputs=(Y,), code=("scale.py",))
    repository = Repository(root)
    return repository, repository.folder("chain", repository.put("chain", manifest, BESIDE))


def test_a_chain_with_a_file_that_has_no_digest_is_refused(tmp_path):
    repository, folder = put_beside(tmp_path)
    (folder / "extra.py").write_text("BY = 666")
    with pytest.raises(errors.Misconfigured, match=r"extra\.py has no digest"):
        trusting(repository, "chain", "1")
    (folder / "extra.py").unlink()
    py_compile.compile(str(folder / "scale.py"))
    with pytest.raises(errors.Misconfigured, match=r"scale\..*\.pyc has no digest"):
        trusting(repository, "chain", "1")


def test_what_lies_beside_a_chain_is_read_as_its_digest_says_and_never_compiled(tmp_path):
    _, folder = put_beside(tmp_path)
    digests = Repository(tmp_path).manifest("chain", "1").digests
    scale = folder / "scale.py"
    stat = scale.stat()
    planted = compile("BY = 31337", str(scale), "exec")
    head = importlib.util.MAGIC_NUMBER + struct.pack("<III", 0, int(stat.st_mtime), stat.st_size)
    (folder / "__pycache__").mkdir()
    Path(importlib.util.cache_from_source(str(scale))).write_bytes(head + marshal.dumps(planted))
    made = chain.module(folder / "chain.py", digests)
    assert made.BY == 2
    chain.forget(made)
    assert not [name for name in sys.modules if name.startswith(made.__name__)]
    scale.chmod(0o644)
    scale.write_text("BY = 3")
    with pytest.raises(errors.Misconfigured, match="differs from what its digest"):
        chain.module(folder / "chain.py", digests)
    assert not [name for name in sys.modules if name.startswith("millstream_chain")]


HANGS = """
import threading
gate = threading.Event()

def call(models, x):
    if x[0, 0] == 7:
        gate.wait(60)
    return {"y": x}
"""


def gate_of(engine):
    return engine._served["chain"].route.live.lane.loaded._module.gate


def test_a_chain_that_hangs_keeps_neither_its_callers_nor_the_others(tmp_path, caplog):
    put(tmp_path, HANGS, process=Process(call_s_max=0.05), batching=Batching(instances=2, rows_max=1))
    seven = np.full((1, 4), 7, np.float32)

    async def main():
        async with serving(tmp_path, load=trusting) as engine:
            for _ in range(2):
                with pytest.raises(errors.Late, match=r"did not return within 0\.05 s \(process\.call_s_max\)"):
                    await engine.submit(ask("chain", seven))
                lines = [line for line in caplog.messages if line.startswith("chain 1 hangs")]
            assert len(lines) == 2
            with pytest.raises(errors.Busy, match="2 calls hang"):
                await engine.submit(ask("chain", rows(1)))
            gate_of(engine).set()
            await until(lambda: not engine._served["chain"].route.live.lane.loaded._threads._hung)
            before = threading.active_count()
            assert ((await engine.submit(ask("chain", rows(1)))).outputs["y"] == rows(1)).all()
            assert threading.active_count() == before  # a thread that came back is used again

    asyncio.run(main())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("millstream-chain")]


def test_a_joined_call_that_hangs_is_not_tried_again_for_each_of_its_callers(tmp_path):
    put(tmp_path, HANGS, process=Process(call_s_max=0.3), batching=Batching(instances=2))
    seven = np.full((1, 4), 7, np.float32)

    async def main():
        async with serving(tmp_path, THREADS, load=trusting) as engine:
            asked = [engine.submit(ask("chain", seven)) for _ in range(8)]
            found = await asyncio.gather(*asked, return_exceptions=True)
            assert all(isinstance(error, errors.Late) for error in found)
            assert engine._served["chain"].route.live.lane.loaded._threads._hung <= 2
            gate_of(engine).set()

    asyncio.run(main())


def test_all_parts_of_a_call_share_its_time(tmp_path):
    put(tmp_path, "import time\ndef call(models, x):\n    time.sleep(0.6)\n    return {'y': x}", name="slow")
    code = "def call(models, x):\n    for _ in range(5):\n        x = models.slow(x=x)['y']\n    return {'y': x}"
    put(tmp_path, code, process=Process(call_s_max=1.0))

    async def main():
        async with serving(tmp_path, EngineLimits(poll_s=0.01), load=trusting) as engine:
            await until(lambda: "chain" in engine.models(), 30)
            with pytest.raises(errors.Late, match="its part slow did not answer before"):
                await engine.submit(ask("chain", rows(1)))

    asyncio.run(main())


def test_a_chain_whose_import_hangs_is_refused(tmp_path):
    put(
        tmp_path,
        "import time\ntime.sleep(60)\ndef call(models, x):\n    return {'y': x}",
        process=Process(start_s_max=0.1),
    )
    with pytest.raises(errors.Late, match=r"within 0\.1 s \(process\.start_s_max\)"):
        trusting(Repository(tmp_path), "chain", "1")


def test_a_chain_is_no_error_while_its_parts_are_on_their_way(tmp_path, caplog):
    caplog.set_level("INFO")
    parts(tmp_path)
    put(tmp_path, BOTH, name="a-chain", example={"x": [[1.0, 2.0, 3.0, 4.0]]})
    meter = Meter()

    async def main():
        async with serving(tmp_path, load=trusting, meter=meter) as engine:
            assert "a-chain" in engine.models()

    asyncio.run(main())
    assert [one.levelname for one in caplog.records if one.message.startswith("a-chain 1 waits")] == ["INFO"]
    assert not [one for one in caplog.records if one.levelname == "ERROR"]
    assert meter.sum("millstream_refused_total") == 0


def test_chains_that_wait_for_what_never_comes_are_told_once_each(tmp_path, caplog):
    for name in ("a-chain", "b-chain"):
        put(tmp_path, BOTH, name=name)

    async def main():
        async with serving(tmp_path, EngineLimits(poll_s=0.01), load=trusting):
            told = [f"{name} 1 is not served" for name in ("a-chain", "b-chain")]
            await until(lambda: all(any(line.startswith(one) for line in caplog.messages) for one in told))
            await asyncio.sleep(0.1)

    asyncio.run(main())
    for name in ("a-chain", "b-chain"):
        assert len([line for line in caplog.messages if line.startswith(f"{name} 1 is not served")]) == 1


def test_chains_of_chains_are_served_whatever_the_order_in_which_they_load(tmp_path):
    example = {"x": [[1.0, 2.0, 3.0, 4.0]]}
    put(tmp_path, "def call(models, x):\n    return {'y': models.z(x=x)['y']}", name="inner", example=example)
    put(tmp_path, "def call(models, x):\n    return {'y': models.inner(x=x)['y']}", name="outer", example=example)
    onnx_models.scaled(tmp_path / "z" / "1" / "model.onnx", 2.0)

    async def main():
        async with serving(tmp_path, EngineLimits(poll_s=0.01), load=trusting) as engine:
            await until(lambda: "outer" in engine.models(), 30)
            assert ((await engine.submit(ask("outer", rows(1)))).outputs["y"] == rows(1) * 2).all()

    asyncio.run(main())


def test_chains_that_wait_for_each_other_say_so_once(tmp_path, caplog):
    example = {"x": [[1.0, 2.0, 3.0, 4.0]]}
    for name, other in (("a", "b"), ("b", "a")):
        put(tmp_path, f"def call(models, x):\n    return {{'y': models.{other}(x=x)['y']}}", name=name, example=example)

    async def main():
        async with serving(tmp_path, EngineLimits(poll_s=0.01), load=trusting) as engine:
            await asyncio.sleep(0.5)
            assert not engine.models()

    asyncio.run(main())
    for name in "ab":
        assert len([line for line in caplog.messages if line.startswith(f"{name} 1 is not served")]) == 1
