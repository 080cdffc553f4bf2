"""schemathesis against the OpenAPI document: whatever it makes up, the answer is one that the document names."""

from __future__ import annotations

import re
from typing import Any

import pytest
import schemathesis
from front_house import served_beside
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from millstream.front import HttpLimits, openapi

pytestmark = pytest.mark.slow
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
NOT_HERE = re.compile("trace/setting|logging|/register")  # 501 by intent
VALID = {
    "inputs": [{"name": "v", "datatype": "FP32", "shape": [2], "data": [1, 2]}],
    "outputs": [{"name": "v", "parameters": {"top_k": 1}}, {"name": "w", "parameters": {"classification": 1}}],
    "parameters": {"sequence_start": True, "explain": True},
}
# "#" is left out: the client takes it for the beginning of a fragment and sends the path before it.
NAMES = st.text(st.characters(exclude_characters="#", exclude_categories=["Cs"]), min_size=1, max_size=4)
PLACES = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["affine", "score", "echo-BYTES", "count", "broken"]) | NAMES,
        "version": st.sampled_from(["1", "2", "9", "é/?"]),
        "token": st.sampled_from(["token-anyone-5", "x"]),
        "region": st.just("r"),
    }
)


def test_no_request_that_fits_the_document_or_nearly_gets_an_answer_that_does_not() -> None:
    with served_beside(HttpLimits(outcomes_max=3)) as served:
        schema: Any = schemathesis.openapi.from_dict(openapi.document())
        schema.config.update(base_url=f"http://127.0.0.1:{served.port}")
        tried = 0
        for found in schema.get_all_operations():
            operation = found.ok()
            heavy = "infer" in operation.path or operation.path.startswith("/v1")
            tried += attack(operation, 60 if heavy else 10)
        assert tried > 500


def attack(operation: Any, examples: int) -> int:
    """Call it with so many made up requests, fitting and not fitting; how many there were."""
    checks = CHECKS if NOT_HERE.search(operation.path) else [not_a_server_error, *CHECKS]
    kinds = [operation.as_strategy(generation_mode=mode) for mode in modes(operation)]
    count = 0

    @seed(1)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(kinds), PLACES, st.integers(0, 3))
    def one(case: Any, places: dict[str, str], die: int) -> None:
        nonlocal count
        count += 1
        if case.path.endswith("/infer") and die == 0:  # what is made up never names a tensor of the model
            case.body, case.media_type, case.headers = VALID, "application/json", {}
            places |= {"model": "score", "version": "1"}
        if case.path.endswith("/features/get") and die < 2:  # nor a set
            case.body = {"set": "ranker", "entities": {"item": ["a", "b"]}, "as": ("json", "binary")[die]}
            case.media_type, case.headers = "application/json", {}
        for name in case.path_parameters or ():
            case.path_parameters[name] = places[name]
        case.call_and_validate(checks=checks)

    one()
    return count


def modes(operation: Any) -> list[Any]:
    mode = schemathesis.GenerationMode
    return [mode.POSITIVE, mode.NEGATIVE] if operation.body or operation.headers else [mode.POSITIVE]
