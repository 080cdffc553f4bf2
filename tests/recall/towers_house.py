"""Two towers that a person could work out: each token has a row in a table, and a vector is the sum of its tokens'."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

import onnx_models
from millstream.models import Repository
from millstream.models.manifest import Manifest
from millstream.recall.towers import ITEMS, USERS, Telling

SLOTS, WIDTH, HISTORY = 997, 8, 4


def table(version: int) -> np.ndarray:
    """Each version's has nothing to do with another's."""
    rows = np.random.default_rng(version).normal(size=(SLOTS, WIDTH)).astype(np.float32)
    rows[0] = 0
    return rows


def vectors(version: int, *tokens: np.ndarray) -> np.ndarray:
    """What a tower says, in numpy."""
    rows = table(version)
    return sum(rows[block.astype(np.int64) % SLOTS].sum(axis=1) for block in tokens)


def _file(path, version: int, **widths: int) -> bytes:
    nodes, sums = [], []
    for name in widths:
        nodes += [
            helper.make_node("Cast", [name], [f"{name}_whole"], to=TensorProto.INT64),
            helper.make_node("Mod", [f"{name}_whole", "slots"], [f"{name}_at"]),
            helper.make_node("Gather", ["table", f"{name}_at"], [f"{name}_rows"]),
            helper.make_node("ReduceSum", [f"{name}_rows", "axis"], [f"{name}_sum"], keepdims=0),
        ]
        sums.append(f"{name}_sum")
    nodes.append(helper.make_node("Sum", sums, ["vector"]))
    file = onnx_models.graph(
        path,
        nodes,
        [(name, TensorProto.UINT32, ["n", width]) for name, width in widths.items()],
        [("vector", TensorProto.FLOAT, ["n", WIDTH])],
        [("table", table(version)), ("slots", np.array(SLOTS)), ("axis", np.array([1]))],
    )
    return file.read_bytes()


def put(repository: Repository, folder, version: int, definition: str, user: int, item: int) -> str:
    """The next version of model `towers`, by the table of `version`; live."""
    files = {
        USERS: _file(folder / USERS, version, tokens=user, history=HISTORY),
        ITEMS: _file(folder / ITEMS, version, tokens=item),
    }
    number = repository.put("towers", Manifest(format="onnx", file=USERS, features=definition), files)
    repository.change_policy("towers", lambda now: type(now)(live=number), who="a person", why="a test")
    return number


def telling(hash: str = "h") -> Telling:
    """A token is a number from the name: items have two, of themselves and of their first letter; a user one."""

    def token(text: str) -> int:
        return 1 + sum(ord(letter) * 31**at for at, letter in enumerate(text[:4])) % 100_000

    def history(names, h):
        out = np.zeros((1, h), np.uint32)
        if names:
            out[0, -len(names[-h:]) :] = [token(name) for name in names[-h:]]
        return out

    return Telling(
        items=lambda names: np.array([[token(one), token(one[:1])] for one in names], np.uint32).reshape(-1, 2),
        user=lambda user, attributes: np.array([[token(user) if user else 0]], np.uint32),
        history=history,
        hash=hash,
    )
