"""Make the golden installation of a release, with the code of that release.

    git archive e964479 | tar -x -C OLD
    PYTHONPATH=OLD/src:OLD/tests python tests/golden/make.py tests/golden/0.2

It is made once, when the release is made, and never again: `tests/test_golden.py` opens it with today's code.
"""

import asyncio
import hashlib
import io
import json
import sys
import tarfile
import tempfile
from pathlib import Path

import msgspec
import numpy as np

import onnx_models
import test_loop
from millstream.clock import SystemClock
from millstream.engine import Engine
from millstream.meter import Meter
from millstream.models import Manifest, Repository
from millstream.models.manifest import Sessions, State
from millstream.testing import Fuse
from millstream.types import Request, Turn

MOMENTS = 30
SETTINGS = """http_port = 0
engine.poll_s = 0.01
ftrl.bits = 12

[learn]
model = "ranker"
push = {push_s = 1.0, base_examples = 25}

[join]
tasks.like.window_s = 10.0
idle_s = 1000.0

[features]
user = [{name = "id"}, {name = "age", bucket = 10}]
item = [{name = "id"}]
crosses = ["user.id*item.id"]
"""


class Loop(test_loop.Loop):
    """The loop, killed in the middle of its life: the join has steps to replay behind its snapshot."""

    async def live(self):
        for number in range(MOMENTS):
            await self.up()
            await self.moment(number)
            if number == MOMENTS // 2:
                self.learn.join.save()
        await self.crash()


def turn(number, **more):
    x = np.full((1, 3), number, np.float32)
    return Request("rnn", {"x": x}, 1, turn=Turn(id="a", **more))


async def session(folder):
    """A session of a recurrent model, handed over after two steps: its token."""
    model = onnx_models.recurrent(folder / "made.onnx").read_bytes()
    (folder / "made.onnx").unlink()
    states = (State("h", "h_out"), State("c", "c_out"))
    repository = Repository(folder / "models")
    repository.put(
        "rnn", Manifest(format="onnx", file="model.onnx", sessions=Sessions(states=states)), {"model.onnx": model}
    )
    engine = Engine(repository, SystemClock(), Meter())
    await engine.start()
    first = await engine.submit(turn(1, start=True))
    await engine.submit(turn(2, step=2))
    await engine.stop(folder / "state" / "sessions")
    return first.turn.token


def main(to):
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        loop = Loop(folder, Fuse())
        asyncio.run(loop.live())
        token = asyncio.run(session(folder))
        (folder / "millstream.toml").write_text(SETTINGS)
        weights, live = loop.weights_on_disk()
        log = test_loop.Log(folder / "log", loop.clock)
        told = {
            "live": live,
            "weights": hashlib.sha256(weights.tobytes()).hexdigest(),
            "records": {topic: log.verify(topic).records for topic in log.topics()},
            "versions": {m: Repository(folder / "models").versions(m) for m in Repository(folder / "models").models()},
            "policy": Repository(folder / "models").policy("ranker").version,
            "token": token,
            "clock": loop.clock.now(),
            "acknowledged": [msgspec.to_builtins(one) for one in loop.acknowledged.values()],
            "answers": loop.answers,
        }
        to.mkdir(parents=True, exist_ok=True)
        (to / "expected.json").write_text(json.dumps(told, indent=1) + "\n")
        with tarfile.open(to / "installation.tar.xz", "w:xz") as tar:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and path.name not in ("lock", "up.lock", ".policy.lock"):
                    info = tarfile.TarInfo(path.relative_to(folder).as_posix())
                    data = path.read_bytes()
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


main(Path(sys.argv[1]))
