"""The OpenAPI document: every route is in it, every answer is as it says; schemathesis tries to prove otherwise."""

from __future__ import annotations

import asyncio
import itertools
import re
from typing import Any

import jsonschema_rs
import pytest
from front_house import Served, affine, affine_binary, http, infer, tensor

from millstream.front import openapi, routes

DOCUMENT: Any = openapi.document()
REF = {"components": DOCUMENT["components"]}


def test_every_route_is_in_it() -> None:
    listed = {("get", "/")}
    for said in routes.ROUTES.values():
        method, _, paths = said.partition(" ")
        for path in paths.split(", "):
            for shown in itertools.product(("", r"\1"), repeat=path.count("[")):
                url = path
                for optional in shown:
                    url = re.sub(r"\[(.*?)\]", optional, url, count=1)
                listed.add((method.lower(), re.sub(r"[A-Z]{4,}", lambda m: f"{{{m[0].lower()}}}", url)))
    told = {(method, url) for url, item in DOCUMENT["paths"].items() for method in item}
    assert listed <= told
    assert [url for _, url in told - listed if not re.search("sharedmemory|trace|logging", url)] == []


def test_it_has_a_name_for_every_operation_and_every_reference_leads_somewhere() -> None:
    idents = [operation["operationId"] for item in DOCUMENT["paths"].values() for operation in item.values()]
    assert len(set(idents)) == len(idents)
    for kind, name in set(re.findall(r"'#/components/(\w+)/([\w-]+)'", str(DOCUMENT))):
        assert name in DOCUMENT["components"][kind], name
    assert not set(DOCUMENT["components"]["schemas"]) - set(re.findall(r"schemas/(\w+)'", str(DOCUMENT)))


def conforms(document: object, schema: str) -> None:
    jsonschema_rs.validate(REF | {"$ref": f"#/components/schemas/{schema}"}, document)


def test_what_is_sent_and_answered_is_as_the_schemas_say() -> None:
    sent = {"inputs": [tensor("x", "FP32", [1, 3], data=[1, 0, 0])], "parameters": {"sequence_id": 4, "timeout": 5}}
    conforms(sent, "InferRequest")
    for wrong in ({}, {"inputs": []}, sent | {"id": 5}, sent | {"parameters": {"timeout": 0}}):
        with pytest.raises(jsonschema_rs.ValidationError):
            conforms(wrong, "InferRequest")

    async def run() -> None:
        async with Served() as served:
            session = infer("count", [tensor("x", "FP32", [1, 1], data=[1])], parameters={"sequence_start": True})
            asks = {affine(): "InferAnswer", session: "InferAnswer"}
            for url, item in DOCUMENT["paths"].items():
                if "get" in item and not re.search("trace|logging|token|speech", url):
                    asks[http("GET", re.sub(r"{version}", "1", re.sub(r"{\w*?(model|region)}", "pair", url)))] = ""
            for raw, schema in asks.items():
                reply = await served.ask(raw)
                assert reply.status == 200, raw
                operation = DOCUMENT["paths"].get(raw.split()[1].decode(), {}).get("get", {})
                if operation and reply.headers["content-type"] == "application/json":
                    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].split("/")[
                        -1
                    ]
                if schema:
                    conforms(reply.json, schema)
            assert (await served.ask(http("GET", "/openapi.json"))).json == DOCUMENT
            assert (await served.ask(affine_binary())).headers["content-type"] in DOCUMENT["paths"][
                "/v2/models/{model}/infer"
            ]["post"]["responses"]["200"]["content"]

    asyncio.run(run())
