"""The rules that ship. Limits are effects that matter, not what chance cannot explain; windows and `least` are such
that traffic without faults passes none of them (bench/watch.py counts false alarms of simulated weeks).

`[watch.rules.NAME]` of one's own takes the place of the rule of that name; `off = true` ends it.
"""

from __future__ import annotations

from millstream.watch.alarms.levels import RULES
from millstream.watch.alarms.rule import Rule

_OF_VERSION = ("model", "version")


def _book(name: str) -> str:
    return f"docs/runbooks.md#{name}"


DEFAULTS: dict[str, Rule] = {
    "failing": Rule(
        quantity="failures", of="requests", above=0.05, least=50, over_s=60, for_s=20, by=_OF_VERSION, severity="page",
        action="roll_back", says="requests fail", runbook=_book("failing"),
    ),
    "http-errors": Rule(
        quantity="http_errors", of="http_answers", above=0.02, least=100, over_s=120, for_s=30, severity="page",
        says="answers over HTTP are errors of ours", runbook=_book("http-errors"),
    ),
    "overloaded": Rule(
        quantity="busy", of="requests", above=0.02, least=100, over_s=120, for_s=60, by=("model",), severity="page",
        says="requests are refused, as the queue is full", runbook=_book("overloaded"),
    ),
    "empty-lists": Rule(
        quantity="empty_lists", of="lists", above=0.05, least=50, over_s=120, for_s=20, severity="page",
        says="lists have no item", runbook=_book("empty-lists"),
    ),
    "sick-server": Rule(
        quantity="failures", of="requests", above=5.0, against="peers", least=100, over_s=60, for_s=30,
        by=("server",), severity="page", says="one server fails where its peers do not", runbook=_book("sick-server"),
    ),
    "slow-server": Rule(
        quantity="answer_p99", above=4.0, against="peers", over_s=60, for_s=60, by=("server", "model", "version"),
        severity="ticket", says="one server is slower than its peers", runbook=_book("slow-server"),
    ),
    "not-logged": Rule(
        quantity="served_missing", above=0.0, over_s=300, severity="page",
        says="answers go out without a served event, and cannot be learnt from", runbook=_book("not-logged"),
    ),
    "log-unreadable": Rule(
        quantity="log_unreadable", above=0.0, over_s=300, severity="page", says="a topic cannot be read",
        runbook=_book("log-unreadable"),
    ),
    "version-refused": Rule(
        quantity="refused", above=0.0, over_s=300, severity="ticket",
        says="a policy or a version could not be used", runbook=_book("version-refused"),
    ),
    "push-refused": Rule(
        quantity="pushes_refused", above=0.0, over_s=300, severity="ticket",
        says="the gate refused to push what was learnt", runbook=_book("push-refused"),
    ),
    "stale-features": Rule(
        quantity="feature_age", above=120.0, over_s=60, for_s=60, by=("set",), severity="page",
        says="rows of features are old", runbook=_book("stale-features"),
    ),
    "stale-weights": Rule(
        quantity="staleness_p99", above=120.0, over_s=300, for_s=120, severity="ticket",
        says="what people did takes long to reach the weights that answer", runbook=_book("stale-weights"),
    ),
}  # fmt: skip
DEFAULTS |= RULES
