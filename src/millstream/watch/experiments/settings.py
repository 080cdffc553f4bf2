"""What an experiment is."""

from __future__ import annotations

import datetime
from typing import Annotated

import msgspec

from millstream.errors import Misconfigured
from millstream.watch.experiments.metrics import KINDS_MAX, MEASURES, Per, kinds

Meta = msgspec.Meta


class ExperimentSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A question to a split: is one arm better? The split itself is made elsewhere: by `arms` of a placement, or by the
    policy of a model (canary, split)."""

    placement: Annotated[
        str, Meta(description="whose arms are compared; where a model is named: only its lists there")
    ] = ""
    model: Annotated[str, Meta(description="whose versions are compared, as its policy splits them")] = ""
    tenant: Annotated[str, Meta(description="whose lists, where there are tenants")] = ""
    metric: Annotated[
        str, Meta(min_length=1, description=f"what decides: a kind of outcome, or one of {', '.join(MEASURES)}")
    ] = "positives"
    per: Annotated[Per, Meta(description="of what the metric is: a list, an impression or a person")] = "list"
    guardrails: Annotated[
        dict[str, Annotated[float, Meta(gt=0.0, le=10.0)]],
        Meta(description="metrics that must not get worse, each by which share at most"),
    ] = {}
    least: Annotated[
        float, Meta(gt=0.0, le=10.0, description="smallest difference that matters, as a share: 0.05 is 5 %")
    ] = 0.05
    confidence: Annotated[
        float, Meta(ge=0.5, le=0.9999, description="how often the intervals of all looks together hold the truth")
    ] = 0.95
    control: Annotated[
        str, Meta(description="arm that the others are compared with; empty: the live version, or the first arm")
    ] = ""
    since: Annotated[
        datetime.datetime | None,
        Meta(description="when it began; not said: with the first list under the split as it is now"),
    ] = None

    def __post_init__(self) -> None:
        if not self.placement and not self.model:
            raise Misconfigured("an experiment needs a placement, whose arms it compares, or a model, whose versions")
        named = kinds((self.metric, *self.guardrails))
        if len(named) > KINDS_MAX:
            raise Misconfigured(
                f"an experiment tells {KINDS_MAX} kinds of outcomes apart, and these are {len(named)}: "
                f"{', '.join(named)}; beside kinds there are: {', '.join(MEASURES)}"
            )
        if self.metric in self.guardrails:
            raise Misconfigured(f"{self.metric} decides already: it is no guardrail too")
