"""Debian's Prometheus in a process of its own, with rules, scraping something or reading what was written before."""

from __future__ import annotations

import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from service import free_port


def program(name: str) -> str:
    """Where it is; who has none is told how to get it."""
    found = shutil.which(name)
    assert found, f"there is no {name}: install Debian's prometheus"
    return found


class Prometheus:
    """Ended at the end of a `with`. `scrape`: ports on this machine; `rules`: text of a rule file."""

    def __init__(self, folder: Path, scrape: Sequence[int] = (), rules: str = "", every: str = "1s") -> None:
        folder.mkdir(exist_ok=True)
        targets = [f"127.0.0.1:{port}" for port in scrape]
        config: dict[str, Any] = {"global": {"scrape_interval": every, "evaluation_interval": every}}
        config["scrape_configs"] = [{"job_name": "millstream", "static_configs": [{"targets": targets}]}]
        if rules:
            (folder / "rules.yml").write_text(rules)
            config["rule_files"] = ["rules.yml"]
        (folder / "prometheus.yml").write_bytes(orjson.dumps(config))  # JSON is YAML
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "said"
        command = [
            program("prometheus"), f"--config.file={folder / 'prometheus.yml'}",
            f"--web.listen-address=127.0.0.1:{port}", f"--storage.tsdb.path={folder / 'data'}",
            "--storage.tsdb.retention.time=30d",
        ]  # fmt: skip
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out)
        end = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/-/ready").read()
                return
            except OSError:
                assert time.monotonic() < end and self.process.poll() is None, self.log.read_text()
                time.sleep(0.05)

    def ask(self, path: str, **query: object) -> Any:
        """The data of an answer of its API; an error of it is an AssertionError that says it."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode({k: str(v) for k, v in query.items()})}"
        try:
            body = urllib.request.urlopen(url).read()
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{query}: {error.read().decode()}") from None
        answer = orjson.loads(body)
        assert answer["status"] == "success" and not answer.get("warnings"), (query, answer)
        return answer["data"]

    def query(self, expression: str, at: float = 0.0) -> dict[tuple[tuple[str, str], ...], float]:
        """A vector: labels, in order -> value."""
        data = self.ask("query", query=expression, **({"time": at} if at else {}))
        assert data["resultType"] == "vector", expression
        return {labels(one["metric"]): float(one["value"][1]) for one in data["result"]}

    def firing(self) -> dict[str, Mapping[str, str]]:
        """Alerts that fire: name -> annotations."""
        alerts = [one for one in self.ask("alerts")["alerts"] if one["state"] == "firing"]
        return {one["labels"]["alertname"]: one["annotations"] for one in alerts}

    def __enter__(self) -> Prometheus:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(30)


def labels(metric: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """In order, without the name."""
    return tuple(sorted((name, value) for name, value in metric.items() if name != "__name__"))


def promtool(*arguments: object) -> str:
    """What it said; it must have been content."""
    done = subprocess.run([program("promtool"), *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
