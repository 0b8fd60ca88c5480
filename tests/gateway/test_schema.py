"""The API and its description agree, whatever schemathesis sends."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from recording_upstream import upstream
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from servers import Serving, serving
from starlette.routing import Route

from outlay.gateway.app import build

CHECKS = [
    schemathesis.checks.not_a_server_error,
    content_type_conformance,
    ignored_auth,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with (
        upstream() as recorder,
        serving(tmp_path_factory.mktemp("schema"), recorder.url, more="max_output = 64\n") as made,
    ):
        yield made


def operations(gateway: Serving) -> Iterator[Any]:
    """What the served description has; bodies name a model that exists, to get somewhere."""
    document = httpx.get(f"{gateway.url}/openapi.json").json()
    for name, schema in document["components"]["schemas"].items():
        if name.endswith("Body"):
            schema["properties"]["model"] = {"enum": ["plain"]}
    described = schemathesis.openapi.from_dict(document)
    described.config.update(base_url=gateway.url)
    for found in described.get_all_operations():
        yield found.ok()


def send(gateway: Serving, operation: Any, mode: schemathesis.GenerationMode, examples: int) -> int:
    """Send examples of one operation; how many."""
    headers = {"Authorization": f"Bearer {gateway.token}"}
    sent = 0

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def run(case: schemathesis.Case) -> None:
        nonlocal sent
        sent += 1
        case.call_and_validate(headers=headers, checks=CHECKS, timeout=60)

    with contextlib.suppress(Unsatisfiable):  # an operation without parts that can be wrong
        run()
    return sent


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_every_answer_is_as_described_and_none_is_a_failure(
    gateway: Serving, mode: schemathesis.GenerationMode
) -> None:
    number = sent = 0
    for operation in operations(gateway):
        number += 1
        examples = 10 if operation.body else 4
        sent += send(gateway, operation, mode, examples)
    assert number == 22
    assert sent > 60


def test_every_route_of_the_api_is_described(gateway: Serving) -> None:
    document = httpx.get(f"{gateway.url}/openapi.json").json()
    described = {
        (path, method.upper())
        for path, operations in document["paths"].items()
        for method in operations
    }
    routed = {
        (route.path.replace(":path}", "}"), method)
        for route in build(gateway.gateway.config).routes
        if isinstance(route, Route)
        and route.path.startswith(("/v1", "/admin/v1", "/health", "/metrics"))
        for method in route.methods or ["GET"]
        if method != "HEAD"
    }
    assert described == routed


def test_without_a_key_every_guarded_operation_answers_401_in_openais_shape(
    gateway: Serving,
) -> None:
    document = httpx.get(f"{gateway.url}/openapi.json").json()
    for path, found in document["paths"].items():
        for method, operation in found.items():
            if operation.get("security") == []:
                continue
            url = gateway.url + re.sub(r"\{\w+\}", "x", path)
            for headers in (
                {},
                {"authorization": "Bearer olk_no"},
                {"authorization": "Basic eA=="},
            ):
                answer = httpx.request(method, url, headers=headers, json={})
                assert answer.status_code == 401, (method, path)
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.json()["error"]["code"] == "invalid_api_key"


def test_the_page_for_people_names_every_path_and_loads_nothing(gateway: Serving) -> None:
    document = httpx.get(f"{gateway.url}/openapi.json").json()
    page = httpx.get(f"{gateway.url}/docs")
    assert all(path in page.text for path in document["paths"])
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert re.findall(r"(?:src|href)=\"([^\"]*)", page.text) == ["/openapi.json"]
