"""What a version needs from elsewhere is got before it is loaded, and holds up no other version meanwhile."""

import asyncio

import numpy as np
from rig import ask, one_weight, serving, until

from millstream import errors
from millstream.clock import SystemClock
from millstream.engine import Engine
from millstream.meter import Meter
from millstream.models import Repository


def test_a_version_that_waits_for_its_environment_holds_up_no_other(tmp_path):
    load, _ = one_weight(tmp_path, model="slow")
    one_weight(tmp_path, model="quick")

    async def scene():
        gate = asyncio.Event()

        async def furnish(model, version):
            if model == "slow":
                await gate.wait()

        engine = Engine(Repository(tmp_path), SystemClock(), Meter(), load=load, furnish=furnish)
        starting = asyncio.create_task(engine.start())
        await until(lambda: "quick" in engine.models(), seconds=30.0)
        answer = await engine.submit(ask("quick", np.zeros((1, 4), np.float32)))
        assert answer.outputs["y"].tolist() == [0.0] and "slow" not in engine.models()
        gate.set()
        await starting
        assert sorted(engine.models()) == ["quick", "slow"]
        await engine.stop()

    asyncio.run(scene())


def test_what_cannot_be_furnished_is_not_served_and_says_why(tmp_path):
    load, made = one_weight(tmp_path)

    async def scene():
        async def furnish(model, version):
            raise errors.Misconfigured("its environment cannot be built: no such package")

        async with serving(tmp_path, load=load, furnish=furnish) as engine:
            assert "no such package" in str(engine.views()[0].problems)

    asyncio.run(scene())
    assert not made
