"""The rules that ship. Limits are effects that matter, not what chance cannot explain; windows and `least` are such
that traffic without faults passes none of them (bench/watch.py counts false alarms of simulated weeks).

`[watch.rules.NAME]` of one's own takes the place of the rule of that name; `off = true` ends it.
"""

from __future__ import annotations

from millstream.watch.alarms.levels import RULES
from millstream.watch.alarms.rule import Rule

_OF_VERSION = ("model", "version")
_OF_FEATURE = ("set", "feature", "against")


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
        quantity="failures", of="requests", above=5.0, matters=0.01, against="peers", least=100, over_s=60, for_s=30,
        by=("server",), severity="page", says="one server fails where its peers do not", runbook=_book("sick-server"),
    ),
    "slow-server": Rule(
        quantity="answer_p99", above=4.0, matters=0.005, against="peers", over_s=60, for_s=60,
        by=("server", "model", "version"), severity="ticket", says="one server is slower than its peers",
        runbook=_book("slow-server"),
    ),
    "empty-answers": Rule(
        quantity="empty", of="answers", above=0.1, least=50, over_s=60, for_s=20, by=_OF_VERSION, severity="page",
        action="roll_back", says="answers hold nothing", runbook=_book("empty-answers"),
    ),
    "constant-answers": Rule(
        quantity="repeats", of="answers", above=0.95, least=100, over_s=60, for_s=20, by=_OF_VERSION,
        severity="page", action="roll_back", says="different requests get the same answer",
        runbook=_book("constant-answers"),
    ),
    "empty-server": Rule(
        quantity="empty", of="answers", above=5.0, matters=0.02, against="peers", least=100, over_s=60, for_s=30,
        by=("server",), severity="page", says="answers of one server hold nothing where those of its peers do",
        runbook=_book("empty-server"),
    ),
    "scores-moved": Rule(
        quantity="score_shift", above=0.1, where={"against": "hour"}, over_s=60, for_s=120, by=_OF_VERSION,
        says="scores are not where they were an hour before", runbook=_book("scores-moved"),
    ),
    "scores-of-a-day": Rule(
        quantity="score_shift", above=0.2, where={"against": "day"}, over_s=600, for_s=600, by=_OF_VERSION,
        says="scores are not where they were a day before", runbook=_book("scores-moved"),
    ),
    "scores-lie-otherwise": Rule(
        quantity="score_psi", above=0.2, over_s=60, for_s=120, by=_OF_VERSION,
        says="scores are spread otherwise than an hour before", runbook=_book("scores-moved"),
    ),
    "confidence-moved": Rule(
        quantity="confidence_shift", above=0.2, where={"against": "hour"}, over_s=60, for_s=120, by=_OF_VERSION,
        says="the model is more or less sure than an hour before", runbook=_book("scores-moved"),
    ),
    "version-unlike": Rule(
        quantity="score_shift", above=1.0, where={"against": "others"}, over_s=60, for_s=60, by=_OF_VERSION,
        says="a version scores quite otherwise than the others of its model", runbook=_book("version-unlike"),
    ),
    "server-unlike": Rule(
        quantity="score_shift", above=0.3, where={"against": "peers"}, over_s=60, for_s=60,
        by=("server", "model", "version"), severity="page", says="one server scores otherwise than its peers",
        runbook=_book("server-unlike"),
    ),
    "traffic-gone": Rule(
        quantity="requests", below=0.3, against="past", least=300, over_s=300, for_s=120, by=("model",),
        says="much fewer requests come than a day before", runbook=_book("traffic-gone"),
    ),
    "failing-more": Rule(
        quantity="failures", of="requests", above=5.0, matters=0.01, against="past", least=500, over_s=600, for_s=300,
        by=("model",), says="more requests fail than a day before, of all servers", runbook=_book("failing"),
    ),
    "slower": Rule(
        quantity="answer_p50", above=4.0, matters=0.005, against="past", over_s=600, for_s=300, by=("model",),
        says="answers take longer than a day before", runbook=_book("slower"),
    ),
    "sizes-changed": Rule(
        quantity="output_size", of="input_size", above=3.0, against="past", least=1000, over_s=600, for_s=120,
        by=("model",), says="answers are longer, for what is asked, than a day before", runbook=_book("sizes-changed"),
    ),
    "changed-at-once": Rule(
        quantity="change", above=0.25, over_s=60, for_s=120, by=("of", "model", "version", "task", "set", "feature"),
        says="a mean changed at once", runbook=_book("changed-at-once"),
    ),
    "feature-dead": Rule(
        quantity="feature_dead", above=0.5, over_s=30, for_s=20, by=_OF_FEATURE, severity="page",
        says="a feature that varied has one value, or none", runbook=_book("feature-dead"),
    ),
    "feature-nulls": Rule(
        quantity="feature_nulls_more", above=0.1, over_s=60, for_s=30, by=_OF_FEATURE,
        says="more values of a feature are missing than before", runbook=_book("feature-dead"),
    ),
    "feature-drift": Rule(
        quantity="feature_shift", above=0.1, over_s=300, for_s=300, by=_OF_FEATURE,
        says="a feature lies otherwise than before, in standard deviations", runbook=_book("feature-drift"),
    ),
    "feature-spread": Rule(
        quantity="feature_psi", above=0.2, over_s=300, for_s=300, by=_OF_FEATURE,
        says="a feature is spread otherwise than before (PSI)", runbook=_book("feature-drift"),
    ),
    "feature-new-values": Rule(
        quantity="feature_new_values", above=0.2, over_s=300, for_s=300, by=_OF_FEATURE,
        says="a feature has texts that were not there before", runbook=_book("feature-drift"),
    ),
    "labels-gone": Rule(
        quantity="outcomes_missing", above=0.5, over_s=30, for_s=60, by=("kind",), severity="page",
        says="outcomes do not come that were to be expected", runbook=_book("labels-gone"),
    ),
    "labels-odd": Rule(
        quantity="labels_shift", above=0.2, where={"against": "hour"}, over_s=60, for_s=120, by=("model", "task"),
        severity="page", action="freeze", says="the rate of positives is not what it was an hour before",
        runbook=_book("labels-odd"),
    ),
    "losses-odd": Rule(
        quantity="loss_shift", above=0.2, where={"against": "hour"}, over_s=60, for_s=120, by=("model", "task"),
        severity="page", action="freeze", says="labels contradict scores more than an hour before",
        runbook=_book("labels-odd"),
    ),
    "auc-lost": Rule(
        quantity="auc_lost", above=0.02, over_s=600, for_s=600, by=("slice",),
        says="served scores order worse than those of the version that stands still", runbook=_book("auc-lost"),
    ),
    "calibration-off": Rule(
        quantity="calibration_off", above=0.25, over_s=600, for_s=600, by=("slice",),
        says="mean scores are not the rate of positives", runbook=_book("calibration-off"),
    ),
    "arm-worse": Rule(
        quantity="list_worse", above=0.3, over_s=1200, for_s=1200, by=("tenant", "placement", "arm", "measure"),
        severity="note", says="an arm of rules does worse than the other", runbook=_book("arm-worse"),
    ),
    "lists-fell": Rule(
        quantity="list_fell", above=0.3, over_s=1200, for_s=1200, by=("tenant", "placement", "arm", "measure"),
        says="lists do worse than a day before", runbook=_book("lists-fell"),
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
    "speech-late": Rule(
        quantity="speech_late", of="speech_segments", above=0.05, least=100, over_s=600, for_s=60,
        says="first words of speech come later than their profile promises", runbook=_book("speech-late"),
    ),
    "speech-failed": Rule(
        quantity="speech_failed", of="speech_segments", above=0.01, least=100, over_s=300, for_s=20, severity="page",
        says="final texts of speech cannot be had", runbook=_book("speech-failed"),
    ),
    "speech-empty": Rule(
        quantity="speech_empty", of="speech_segments", above=0.2, least=50, over_s=600, for_s=60,
        says="speech is heard and no word comes of it", runbook=_book("speech-empty"),
    ),
    "speech-thin": Rule(
        quantity="speech_characters", of="speech_spoken", below=1.0, least=120, over_s=600, for_s=60, by=("language",),
        says="far fewer characters come of a second of speech than people say", runbook=_book("speech-empty"),
    ),
    "speech-repeats": Rule(
        quantity="speech_repeated", of="speech_words", above=0.1, least=500, over_s=600, for_s=60,
        says="texts of speech say the same words again and again", runbook=_book("speech-repeats"),
    ),
    "speech-loops": Rule(
        quantity="speech_loops", of="speech_segments", above=0.02, least=100, over_s=600, for_s=60,
        says="the recogniser of speech loses its place", runbook=_book("speech-repeats"),
    ),
    "speech-on-silence": Rule(
        quantity="speech_suppressed", of="speech_words", above=0.1, least=500, over_s=600, for_s=60,
        says="words are heard where nobody speaks", runbook=_book("speech-on-silence"),
    ),
    "speech-server-unsure": Rule(
        quantity="speech_confidence", of="speech_words", below=0.85, against="peers", least=500, over_s=600, for_s=120,
        by=("server",), says="the recogniser of one server is less sure than those of its peers",
        runbook=_book("speech-server-unsure"),
    ),
    "stale-weights": Rule(
        quantity="staleness_p99", above=120.0, over_s=300, for_s=120, severity="ticket",
        says="what people did takes long to reach the weights that answer", runbook=_book("stale-weights"),
    ),
}  # fmt: skip
DEFAULTS |= RULES
