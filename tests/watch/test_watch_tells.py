"""The role `watch` with targets, service levels and costs: over a real log, real counters and real servers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_deliver import Hook, hanging, running, until

from millstream import config
from millstream.app.installation import Installation, Settings
from millstream.app.watching import Watch, last_alerts
from millstream.cli import main
from millstream.clock import FakeClock
from millstream.meter import Meter

TOML = """
[watch]
core_hour_price = 0.36
[watch.levels.m]
available = 0.9
[watch.rules.failing]
quantity = "failures"
of = "requests"
above = 0.1
over_s = 30
least = 50
by = ["model", "version"]
severity = "page"
[watch.deliver.chat]
kind = "webhook"
url = "CHAT"
severities = ["page"]
[watch.deliver.hangs]
kind = "webhook"
url = "HANGS"
timeout_s = 0.5
keep_s = 0
"""


def told(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, list[dict[str, object]]]:
    main([*map(str, argv), "--json"])
    found: dict[str, list[dict[str, object]]] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_an_alert_of_the_role_is_told_and_a_target_that_hangs_stops_no_look(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, clock = tmp_path / "millstream.toml", FakeClock(1_700_000_000.0)
    with running(Hook()) as hook, hanging() as urls:
        file.write_text(TOML.replace("CHAT", hook.url).replace("HANGS", urls["silent"]))
        with Installation(tmp_path, config.read(file, Settings), clock) as at:
            labels, server = {"model": "m", "version": "1"}, Meter(tmp_path / "state" / "meters", "serve")
            watch = Watch(at)
            for look in range(12):
                server.counter("millstream_requests_total", "", labels).add(100)
                server.counter("millstream_failures_total", "", labels).add(50 if 3 <= look < 6 else 0)
                server.histogram("millstream_compute_seconds", "", labels).observe(0.5)
                clock.advance(10)
                watch.step()
            states = [alert.state for alert in last_alerts(at, 10) if alert.rule == "failing"]
            assert states == ["firing", "resolved"]
            until(lambda: "failing resolved" in hook.alerts)
            assert [one for one in hook.alerts if one.startswith("failing")] == ["failing firing", "failing resolved"]
            undelivered = ("millstream_alerts_undelivered_total", {"target": "hangs"})
            until(lambda: clock.advance(1) or sum(watch.meter.values(*undelivered)) >= 2)
            watch.close()
    available = next(
        one for one in told(capsys, "watch", "levels", "-c", file)["budgets"] if one["objective"] == "available"
    )
    # The first look learns where counters are: what was counted before is nobody's
    assert available["goal"] == 0.9 and available["kept"] == pytest.approx(1 - 150 / 1100)
    (version,) = told(capsys, "watch", "triangle", "-c", file)["versions"]
    assert (version["answers"], version["core_s"]) == (1050, 6.0)
    assert version["cost_per_million"] == pytest.approx(6 / 1050 * 1e6 * 0.36 / 3600)
    main(["watch", "levels", "-c", str(file)])
    main(["watch", "triangle", "-c", str(file)])
    shown = capsys.readouterr().out
    assert "86.364%" in shown and "available" in shown and "1,050" in shown
