"""A server with models that are programs, as an operator sees it: opt-in, a crash as a 503, the others unmoved."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import orjson

import onnx_models
from millstream.models import Manifest, Repository

sys.path.insert(0, str(Path(__file__).parent / "models"))
from apart_models import CRASH, put_unruly, until


@contextmanager
def serve(root, *options):
    """A server over `root`; gives its port and its process."""
    command = [sys.executable, "-m", "millstream", "serve", str(root), "--http-port", "0", "--grpc-port", "0", *options]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    said = []
    try:
        for line in server.stderr:
            said.append(line)
            if "serving at http" in line:
                break
        port = int(said[-1].rpartition(":")[2])
        yield port, server, said
    finally:
        with suppress(ProcessLookupError):
            server.terminate()
        said += server.stderr.readlines()
        server.wait()
        server.stderr.close()


def infer(port, model, value):
    """(status, headers, body) of one request of one row."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [value]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v2/models/{model}/infer", orjson.dumps({"inputs": [tensor]})
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers, orjson.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, orjson.loads(error.read())


def put_data(root):
    file = onnx_models.linear(root.parent / "made.onnx", np.ones((1, 1)))
    Repository(root).put("data", Manifest(format="onnx", file="f.onnx"), {"f.onnx": file})


def below(pid):
    """Processes that `pid` has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry.name))
    return found


def test_without_opt_in_a_program_is_refused_and_what_is_data_is_served(tmp_path):
    root = tmp_path / "models"
    put_unruly(root, model="program")
    put_data(root)
    with serve(root) as (port, server, said):
        assert infer(port, "data", 3)[0] == 200
        status, _, body = infer(port, "program", 1)
        assert status == 503 and "allow_code = true" in body["error"]
        assert not below(server.pid)
    assert any("program 1 is not served" in line and "--allow-code" in line for line in said)


def test_a_crash_is_a_503_that_may_be_tried_again_and_no_other_model_notices(tmp_path):
    root = tmp_path / "models"
    put_unruly(root, model="program")
    put_data(root)
    with serve(root, "--allow-code") as (port, server, said):
        status, _, body = infer(port, "program", 1)
        assert (status, body["outputs"][0]["data"]) == (200, [2.0])
        before = below(server.pid)
        status, headers, body = infer(port, "program", CRASH)
        assert status == 503 and headers["Retry-After"] and "try again" in body["error"]
        assert infer(port, "data", 3)[0] == 200
        assert until(lambda: infer(port, "program", 1)[0] == 200)
        assert len(below(server.pid)) == 1 and below(server.pid) != before
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
            metrics = page.read().decode()
        assert 'millstream_process_restarts_total{model="program",version="1",cause="died"} 1' in metrics
    assert sum("died (SIGKILL" in line for line in said) == 1
    assert not any("Traceback" in line for line in said)


def test_a_stop_and_a_kill_leave_no_process(tmp_path):
    root = tmp_path / "models"
    put_unruly(root, model="program")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        with serve(root, "--allow-code") as (port, server, _):
            assert infer(port, "program", 1)[0] == 200
            pids = below(server.pid)
            assert pids
            os.kill(server.pid, number)
            server.wait(60)
        end = time.monotonic() + 30
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            assert time.monotonic() < end, pids
            time.sleep(0.01)
