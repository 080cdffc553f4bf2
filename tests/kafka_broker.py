"""A broker that speaks the Kafka protocol, for the time of some tests: the one of the wheel noida-db, or the cluster
that KAFKA_BOOTSTRAP names."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

from millstream.stream import LogLimits
from service import free_port


class Broker:
    """`pause` makes it answer nobody, as a machine that hangs; `stop` ends it, `start` brings it back."""

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="kafka-"))
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        spec = importlib.util.find_spec("noida_db")
        assert spec and spec.origin, "no broker: pip install noida-db, or set KAFKA_BOOTSTRAP"
        program = Path(spec.origin).with_name("noida-db")
        program.chmod(0o755)
        options = ["start", "--data-dir", str(self.folder), "--only", "kafka", "--kafka-port", str(self.port)]
        with (self.folder / "said").open("ab") as out:
            self.process = subprocess.Popen([str(program), *options], stdout=out, stderr=out)
        until = time.monotonic() + 10.0
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
                return
            except OSError:
                assert time.monotonic() < until, (self.folder / "said").read_text()

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self, how: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.send_signal(signal.SIGCONT)
            self.process.wait(10.0)
            self.process = None

    def close(self) -> None:
        self.stop(signal.SIGKILL)
        shutil.rmtree(self.folder)


def limits(broker: "Broker | None" = None, **more: object) -> LogLimits:
    """Settings of a log of one's own: on `broker`, or on the cluster that the environment names."""
    address = broker.address if broker else os.environ["KAFKA_BOOTSTRAP"]
    return LogLimits(kafka=address, kafka_prefix=f"t{uuid.uuid4().hex[:8]}.", **more)
