"""Flink in a Java of its own, from jars alone and without Python's part: tests call it by pyspark's py4j."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

# Of the second wheel only what Flink 2.3 has not: it brings a whole Flink 2.0 beside the connector.
JARS = {
    "apache-flink-libraries": ("pyflink/lib/*.jar",),
    "shigawire-apache-flink-libraries": ("pyflink/lib/flink-connector-kafka.jar", "pyflink/lib/kafka-clients.jar"),
}


@contextmanager
def flink(folder: Path) -> Iterator[tuple[Any, subprocess.Popen[bytes]]]:
    """(the Java's classes, its process): every job is a mini-cluster of its own in it. `folder`: its scratch."""
    from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway

    jars = [
        str(one.locate())
        for name, patterns in JARS.items()
        for one in metadata.files(name) or ()
        if any(one.match(pattern) for pattern in patterns)
    ]
    home = os.environ.get("JAVA_HOME")
    java = f"{home}/bin/java" if home else "java"
    try:
        subprocess.run([java, "-version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.fail(f"Flink runs on Java 17 or newer, and {java} does not start ({error}): install one (Debian: "
                    "apt install openjdk-17-jre-headless), or set JAVA_HOME to where it is")  # fmt: skip
    packages = ("lang", "net", "io", "nio", "text", "time", "util", "util.concurrent", "util.concurrent.atomic")
    opened = [f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in packages]
    quick = ["-Xmx1g", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    port, token, process = launch_gateway(
        classpath=":".join(sorted(jars)), javaopts=[*opened, *quick, f"-Djava.io.tmpdir={folder}"],
        java_path=java, die_on_exit=True, enable_auth=True, return_proc=True,
    )  # fmt: skip
    gateway = JavaGateway(gateway_parameters=GatewayParameters(port=port, auth_token=token))
    try:
        yield gateway.jvm, process
    finally:
        gateway.shutdown()
        process.kill()  # clusters that have ended leave threads behind
        process.wait()


def environment(jvm: Any, settings: Mapping[str, str] = MappingProxyType({})) -> Any:
    """A new TableEnvironment that streams."""
    api = jvm.org.apache.flink.table.api
    made = api.TableEnvironment.create(api.EnvironmentSettings.inStreamingMode())
    defaults = {"parallelism.default": "2", "table.local-time-zone": "Asia/Kolkata"}  # the zone must not matter
    for name, value in (defaults | dict(settings)).items():
        made.getConfig().set(name, value)
    return made
