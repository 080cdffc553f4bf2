"""The quantities that can be watched: what each is, and the series of the meter that it comes from.

One table for the role that watches, for Prometheus and for who writes a rule. A count is of the time since the reading
before; a level is how it stands. Those without a metric are read by monitors of their own, and the role shows them in
/metrics as `millstream_watch_level` and `millstream_watch_count_total`, by label `quantity`.

Rules of the room:
- Labels are those of the series, and `server`, the process that counted (its page of counters).
- A level that has a test of chance (drift, say) is what it surely is at least: zero where chance explains it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, cast

import msgspec

Kind = Literal["count", "level"]
From = Literal["value", "sum", "quantile", "over"]


class Quantity(msgspec.Struct, frozen=True, kw_only=True):
    """What can be watched. `metric`: the series it comes from, "" where a monitor reads it; `where`: of these labels
    (each a pattern for the whole value) alone; `take`: the number, or of a histogram its sum, the quantile `q` of the
    last minute, or how many lay above `edge`."""

    name: str
    kind: Kind
    help: str
    unit: str = ""
    metric: str = ""
    where: Mapping[str, str] = {}
    take: From = "value"
    q: float = 0.0
    edge: float = 0.0


def _counts(*rows: tuple[str, str, str]) -> list[Quantity]:
    return [Quantity(name=name, kind="count", metric=metric, help=help) for name, metric, help in rows]


_SERVING: Final = [
    *_counts(
        ("requests", "millstream_requests_total", "requests that got an answer or an error"),
        ("failures", "millstream_failures_total", "requests that the model failed"),
        ("busy", "millstream_busy_total", "requests refused because the queue was full"),
        ("late", "millstream_late_total", "requests dropped because their time was over"),
        ("cancelled", "millstream_cancelled_total", "requests whose caller went away"),
        ("rows", "millstream_rows_total", "rows computed"),
        ("batches", "millstream_batches_total", "calls of the model"),
        ("padding_rows", "millstream_padding_rows_total", "rows' worth of computing spent on padding"),
        ("cache_hits", "millstream_cache_hits_total", "requests answered from a cache"),
        ("shadow_compared", "millstream_shadow_compared_total", "shadow requests compared with the live answer"),
        ("shadow_differs", "millstream_shadow_differs_total", "of these, those that differ"),
        ("http_answers", "millstream_http_answers_total", "answers over HTTP"),
    ),
    Quantity(
        name="http_errors", kind="count", metric="millstream_http_answers_total", where={"status": "5.."},
        help="answers over HTTP with a status of 500 and above",
    ),
    Quantity(
        name="compute_seconds", kind="count", unit="seconds", metric="millstream_compute_seconds", take="sum",
        help="seconds that batches took",
    ),
    Quantity(
        name="cpu_seconds", kind="count", unit="seconds", metric="process_cpu_seconds_total",
        help="CPU time of processes",
    ),
    *(
        Quantity(
            name=f"{phase}_p{q}", kind="level", unit="seconds", metric=f"millstream_{phase}_seconds", take="quantile",
            q=q / 100, help=f"the {q} % quantile, over the last minute, of the time {of}",
        )
        for phase, of in (
            ("answer", "from submit to the end of the batch"),
            ("queue", "from submit to the start of the batch"),
            ("compute", "of a batch"),
        )
        for q in (50, 99)
    ),
    Quantity(
        name="http_p99", kind="level", unit="seconds", metric="millstream_http_seconds", take="quantile", q=0.99,
        help="the 99 % quantile, over the last minute, from a request's first byte to its answer",
    ),
    Quantity(
        name="rows_waiting", kind="level", metric="millstream_rows_waiting", help="rows that wait for a version",
    ),
    Quantity(
        name="memory_bytes", kind="level", unit="bytes", metric="process_resident_memory_bytes",
        help="memory of processes",
    ),
]  # fmt: skip
_QUALITY: Final = [
    *_counts(
        ("arm_requests", "millstream_arm_requests_total", "requests that got an answer or an error, by arm"),
        ("answers", "millstream_quality_answers_total", "answers computed and given"),
        ("empty", "millstream_quality_empty_total", "answers that hold nothing"),
        ("repeats", "millstream_quality_repeats_total", "answers with the score of the one before, to another request"),
        ("scores", "millstream_quality_score", "answers with a score: the first number of the first output"),
        ("confident", "millstream_quality_confidence", "answers with a probability"),
    ),
    *(
        Quantity(name=name, kind="count", unit=unit, metric=metric, take=cast(From, take), help=help)
        for name, unit, metric, take, help in (
            ("score_above", "score", "millstream_quality_score_above_total", "value", "sum of scores above 0"),
            ("score_below", "score", "millstream_quality_score_below_total", "value", "sum of scores below 0, negated"),
            ("score_squares", "score", "millstream_quality_score_squares_total", "value", "sum of squares of scores"),
            ("confidence", "probability", "millstream_quality_confidence", "sum", "sum of the largest probabilities"),
            (
                "confidence_squares", "probability", "millstream_quality_confidence_squares_total", "value",
                "sum of their squares",
            ),
            ("output_size", "elements", "millstream_quality_output_size_total", "value", "elements of answers"),
            ("input_size", "elements", "millstream_quality_input_size_total", "value", "elements of requests"),
        )
    ),
    Quantity(
        name="score_shift", kind="level", unit="sd",
        help="how far the mean score surely moved from what it is `against`",
    ),
    Quantity(
        name="confidence_shift", kind="level", unit="sd",
        help="how far the mean of the largest probability surely moved from what it is `against`",
    ),
    Quantity(name="score_mean", kind="level", help="mean score of the last ten minutes"),
    Quantity(name="score_sd", kind="level", help="standard deviation of scores of the last ten minutes"),
    Quantity(
        name="score_psi", kind="level",
        help="how differently scores lie from the hour before (PSI, ten bins), surely at least",
    ),
]  # fmt: skip
_LISTS: Final = [
    *_counts(
        ("lists", "millstream_lists_total", "lists made"),
        ("empty_lists", "millstream_empty_lists_total", "lists without an item"),
        ("recall_late", "millstream_recall_late_total", "requests without a recall path that was late"),
        ("recall_failed", "millstream_recall_failed_total", "requests without a recall path that failed"),
        ("rank_instead", "millstream_rank_instead_total", "lists that the live ranker did not score"),
        ("relaxed", "millstream_relaxed_total", "positions at which a rule of order was given up"),
    ),
]
_LOOP: Final = [
    *_counts(
        ("served_missing", "millstream_served_missing_total", "answers given without a served event"),
        ("unlogged", "millstream_unlogged_total", "shadow scores and policy changes not logged"),
        ("log_unreadable", "millstream_log_unreadable_total", "places of a topic that could not be read"),
        ("refused", "millstream_refused_total", "policies and versions that could not be used"),
        ("outcomes", "millstream_outcomes_total", "outcomes made durable"),
        ("examples", "millstream_examples_total", "examples made by the join"),
        ("set_aside", "millstream_set_aside_total", "outcomes that will not be learnt"),
        ("learnt", "millstream_examples_learnt_total", "examples folded into the weights"),
        ("pushes", "millstream_pushes_total", "deltas and bases pushed"),
        ("pushes_refused", "millstream_pushes_refused_total", "pushes that the gate refused"),
        ("deltas_applied", "millstream_deltas_applied_total", "deltas applied to served versions"),
        ("deltas_refused", "millstream_deltas_refused_total", "deltas that could not be applied"),
    ),
    Quantity(
        name="positives", kind="count", metric="millstream_examples_total", where={"label": "1"},
        help="examples with the label 1",
    ),
    Quantity(
        name="staleness_p99", kind="level", unit="seconds", metric="millstream_staleness_seconds", take="quantile",
        q=0.99, help="the 99 % quantile, over the last minute, from an outcome to the first answer that contains it",
    ),
    *(
        Quantity(name=f"learning_{of}", kind="level", metric=f"millstream_learning_{of}", help=help)
        for of, help in (
            ("auc", "AUC of scores whose labels came since"),
            ("logloss", "their log loss"),
            ("ece", "their expected calibration error"),
            ("ratio", "their mean over the rate of positives"),
        )
    ),
]  # fmt: skip
_FEATURES: Final = [
    *_counts(
        ("feature_reads", "millstream_feature_reads_total", "reads of features"),
        ("feature_names_missing", "millstream_feature_missing_total", "names that were read and have no row"),
    ),
    Quantity(
        name="feature_age", kind="level", unit="seconds", metric="millstream_feature_age_seconds",
        help="how old the rows are that serving reads",
    ),
    Quantity(
        name="feature_nulls", kind="level", metric="millstream_feature_missing_share",
        help="share of rows whose value is missing",
    ),
]  # fmt: skip
_DRIFT: Final = [
    Quantity(name="feature_psi", kind="level", help="PSI of a feature beside its past, surely, by set and `against`"),
    Quantity(name="feature_shift", kind="level", unit="sd", help="Wasserstein distance of a feature from its past"),
    Quantity(name="feature_dead", kind="level", help="1: a feature that varied has one value, or none"),
    Quantity(name="feature_nulls_more", kind="level", help="by how much the share of missing values surely grew"),
    Quantity(name="feature_new_values", kind="level", help="share of texts that surely were not there before"),
    Quantity(
        name="change", kind="level", unit="sd",
        help="how much a mean changed at once in the last half hour, by what it is `of`",
    ),
]  # fmt: skip
_ARMS: Final = [
    Quantity(name="list_figure", kind="level", help="a measure of `millstream report` over the last hour, by arm"),
    Quantity(name="list_worse", kind="level", help="the share of a measure that an arm surely lacks beside another"),
    Quantity(name="list_fell", kind="level", help="the share of a measure that an arm surely lost since a day before"),
]
_LABELS: Final = [
    *_counts(
        ("outcomes_told", "millstream_outcome_kinds_total", "outcomes made durable, by kind"),
        ("labels", "millstream_labels_total", "labels of scores, by model, version and task"),
        ("labels_positive", "millstream_labels_positive_total", "of these, positives"),
        ("labels_scored", "millstream_labels_scored_total", "of these, those with a logged score"),
        ("labels_loss", "millstream_labels_loss_total", "sum of their log loss"),
        ("labels_loss_squares", "millstream_labels_loss_squares_total", "sum of its squares"),
    ),
    *(
        Quantity(name=f"learning_{of}", kind="level", metric=f"millstream_learning_{of}", help=help)
        for of, help in (("examples", "examples that AUC is of"), ("positives", "of these, positives"))
    ),
    Quantity(name="outcomes_missing", kind="level", help="share of expected outcomes that surely do not come, by kind"),
    Quantity(name="labels_shift", kind="level", unit="sd", help="how far the rate of positives surely moved"),
    Quantity(name="loss_shift", kind="level", unit="sd", help="how far the log loss of served scores surely moved"),
    Quantity(name="auc_lost", kind="level", help="AUC that served scores surely lack beside frozen ones, by slice"),
    Quantity(name="calibration_off", kind="level", help="how far mean score / rate of positives surely is from 1"),
]
_SPEECH: Final = [
    *_counts(
        ("speech_segments", "millstream_speech_segments_total", "final texts of speech"),
        ("speech_empty", "millstream_speech_empty_total", "segments with speech and without a word"),
        ("speech_failed", "millstream_speech_finals_failed_total", "final texts that are what was stable"),
        ("speech_late", "millstream_speech_first_token_late_total", "segments whose first words missed their budget"),
        ("speech_words", "millstream_speech_words_total", "words of final texts"),
        ("speech_suppressed", "millstream_speech_suppressed_total", "words on silence that were not told"),
        ("speech_repeated", "millstream_speech_words_repeated_total", "words that say again those before them"),
        ("speech_loops", "millstream_speech_loops_total", "final texts in which the recogniser lost its place"),
        ("speech_characters", "millstream_speech_characters_total", "letters and digits of final texts, by language"),
    ),
    Quantity(
        name="speech_spoken", kind="count", unit="seconds", metric="millstream_speech_spoken_seconds_total",
        help="seconds of speech, by language",
    ),
    Quantity(
        name="speech_confidence", kind="count", unit="probability", metric="millstream_speech_confidence_total",
        help="sum of the confidences of final words",
    ),
]  # fmt: skip
_ROLE: Final = [
    Quantity(
        name="clock_jump", kind="level", unit="seconds",
        help="how far the wall clock is from what it was when the role began",
    ),
]  # fmt: skip
_ALL: Final = (*_SERVING, *_QUALITY, *_LISTS, *_LOOP, *_FEATURES, *_DRIFT, *_LABELS, *_ARMS, *_SPEECH, *_ROLE)
QUANTITIES: dict[str, Quantity] = {one.name: one for one in _ALL}
"""By name. Monitors that read others add theirs where they are defined (`add`)."""


def add(*more: Quantity) -> None:
    """Let these be watched, too."""
    for one in more:
        QUANTITIES[one.name] = one
