"""Twenty hot swaps under 64 connections, over real sockets: no request fails, and every answer comes whole from exactly
one version@delta, which it names."""

import asyncio
import zlib

import numpy as np
import orjson

from millstream.app.house import House
from millstream.app.steering import Steering
from millstream.clock import SystemClock
from millstream.engine import Engine
from millstream.flows.predict import Predict
from millstream.front import Http
from millstream.meter import Meter
from millstream.models.manifest import Manifest
from millstream.models.online import Ftrl, Settings
from millstream.models.repository import Repository
from millstream.models.traffic import promote
from millstream.types import Delta
from millstream.watch.shadow import Comparisons

CONNECTIONS, SWAPS, ROWS, WIDTH = 64, 20, 5, 2
SETTINGS = Settings(bits=10)
BODY = orjson.dumps(
    {
        "inputs": [
            {"name": "tokens", "datatype": "UINT32", "shape": [ROWS, WIDTH], "data": [n % 900 + 1 for n in range(10)]}
        ]
    }
)


def put(repository: Repository) -> str:
    manifest = Manifest(format="ftrl", file="model.ftrl")
    return repository.put("ranker", manifest, {"model.ftrl": Ftrl(SETTINGS, WIDTH).dump()})


def weights(version: int, sequence: int) -> np.ndarray:
    """Every slot of version@sequence holds the same weight, so an answer betrays which weights computed each row."""
    return np.full(1 << SETTINGS.bits, (version * 100 + sequence) / 4000.0, np.float32)


def delta(version: int, sequence: int) -> Delta:
    slots, values = np.arange(1 << SETTINGS.bits, dtype=np.uint32).tobytes(), weights(version, sequence).tobytes()
    return Delta(
        model="ranker", base=str(version), sequence=sequence, upto=0, slots=slots, weights=values, arrivals=b"",
        checksum=zlib.crc32(values, zlib.crc32(slots)),
    )  # fmt: skip


def expected(name: str) -> float:
    version, sequence = map(int, name.split("@"))
    weight = float(weights(version, sequence)[0]) if sequence else 0.0
    return 1 / (1 + np.exp(-WIDTH * weight))


async def client(port: int, stopping: asyncio.Event, answers: list[tuple[int, bytes]]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"POST /v2/models/ranker/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    while not stopping.is_set():
        writer.write(head + BODY)
        lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        length = next(int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length"))
        answers.append((int(lines[0].split()[1]), await reader.readexactly(length)))
    writer.close()


async def swap(engine: Engine, repository: Repository, swaps: int) -> None:
    """Promote a new version, and push deltas to it, again and again."""
    for _ in range(swaps):
        version = put(repository)
        repository.change_policy("ranker", promote(version), who="test", why="swap")
        await engine.refresh()
        for sequence in range(1, 4):
            assert engine.apply(delta(int(version), sequence))
            await asyncio.sleep(0.01)


async def under_load(folder) -> list[tuple[int, bytes]]:
    repository, clock, meter = Repository(folder), SystemClock(), Meter()
    put(repository)
    repository.change_policy("ranker", promote("1"), who="test", why="first")
    engine = Engine(repository, clock, meter)
    await engine.start()
    steering = Steering(repository, engine, meter, Comparisons(clock))
    http = Http(House(engine, Predict(engine.submit, clock), meter, None, steering), meter, clock)
    port = await http.start(port=0)
    stopping, answers = asyncio.Event(), []
    clients = [asyncio.create_task(client(port, stopping, answers)) for _ in range(CONNECTIONS)]
    await swap(engine, repository, SWAPS)
    stopping.set()
    await asyncio.gather(*clients)
    await http.stop()
    await engine.stop()
    return answers


def test_no_request_fails_and_every_answer_is_of_one_version(tmp_path):
    answers = asyncio.run(under_load(tmp_path))
    assert {status for status, _ in answers} == {200}
    names = []
    for _, body in answers:
        answer = orjson.loads(body)
        names.append(answer["model_version"])
        assert np.allclose(answer["outputs"][0]["data"], expected(names[-1]), atol=1e-6), names[-1]
    assert len(set(names)) > SWAPS, "the load saw the swaps and the deltas"
