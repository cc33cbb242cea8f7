"""The OpenAPI document against the broker that serves it: with resources of every kind, and with all that schemathesis
makes up. No answer may be a 5xx or differ from the document."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from qtasks.broker.api import openapi
from qtasks.broker.api.routes import ROUTES
from qtasks.protocol.messages import State
from tests.support.running import Endpoint, RunningBroker

SCHEMA = schemathesis.openapi.from_dict(
    json.loads(json.dumps(openapi.document()).replace("http://localhost:3000", "http://127.0.0.1:9"))
)
"""The document, with examples whose address no server on this machine has."""
EXAMPLES = 8
"""Generated requests for each operation, in addition to its examples."""
CONFORMANCE: Any = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
CHECKS: Any = [not_a_server_error, *CONFORMANCE, unsupported_method, ignored_auth]


@pytest.fixture(scope="module")
def place() -> Iterator[Endpoint]:
    """Where everything is delivered: nothing leaves this machine."""
    made = Endpoint(answer=lambda received: (404, {"X-Why": "gone"}, b"404 Not Found"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def authorization(broker: RunningBroker) -> dict[str, str]:
    return {"Authorization": f"Bearer {broker.new_user().token}"}


@pytest.fixture(scope="module")
def api(broker: RunningBroker, authorization: dict[str, str]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=broker.url, headers=authorization) as client:
        yield client


def test_the_document_is_served_without_a_token(broker: RunningBroker) -> None:
    answered = httpx.get(f"{broker.url}/openapi.json")
    assert (answered.status_code, answered.headers["content-type"]) == (200, "application/json")
    assert answered.json() == openapi.document()
    refused = httpx.post(f"{broker.url}/openapi.json")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


def test_the_document_has_every_route_and_no_other() -> None:
    routes = {(openapi.path_of(route), route.method.lower()) for route in ROUTES}
    open_to_all = {("/healthz", "get"), ("/readyz", "get"), ("/openapi.json", "get")}
    paths = openapi.document()["paths"]
    assert {(path, method) for path, methods in paths.items() for method in methods} == routes | open_to_all
    ids = [operation["operationId"] for methods in paths.values() for operation in methods.values()]
    assert len(ids) == len(set(ids))


def test_the_document_is_a_valid_one() -> None:
    SCHEMA.validate()


def seeded(broker: RunningBroker, api: httpx.Client, place: Endpoint) -> dict[str, str]:
    """Make one of everything, under the names that the document's examples use; the values of path variables."""
    options = {
        "Upstash-Label": "red,blue",
        "Upstash-Flow-Control-Key": "my-key",
        "Upstash-Flow-Control-Value": "parallelism=5,rate=1000,period=1m",
        "Upstash-Callback": f"{place.url}/callback?x=1",
        "Upstash-Callback-Forward-X": "y",
        "Upstash-Failure-Callback": f"{place.url}/failure",
        "Upstash-Failure-Callback-Forward-X": "y",
        "Upstash-Forward-X": "y",
        "Upstash-Retries": "1",
        "Upstash-Retry-Delay": "10",
        "Upstash-Timeout": "30s",
        "Upstash-Redact-Fields": "header[X]",
        "Content-Type": "text/plain",
    }
    endpoints = [{"url": f"{place.url}/one", "name": "one"}, {"url": f"{place.url}/two"}]
    made = [
        api.post("/v2/queues", json={"queueName": "my-queue", "parallelism": 2}),
        api.post("/v2/topics/my-group/endpoints", json={"endpoints": endpoints}),
        api.patch("/v2/topics/my-group", json={"headers": {"Upstash-Forward-Y": ["z"]}}),
        api.post(
            f"/v2/schedules/{place.url}/tick",
            headers={
                **options,
                "Upstash-Cron": "* * * * *",
                "Upstash-Delay": "1m",
                "Upstash-Schedule-Id": "my-schedule",
            },
            content=b"\xff\x00",
        ),
        api.post("/v2/enqueue/my-queue/my-group", headers=options, content="queued"),
        api.post(f"/v2/publish/{place.url}/odd", headers=options, content=b"\xff\x00"),
        api.post(f"/v2/publish/{place.url}/again", headers=options, content="again"),
        api.post(f"/v2/publish/{place.url}/later", headers={**options, "Upstash-Delay": "1h"}, content="text"),
    ]
    for answered in made:
        assert answered.is_success, answered.text
    failed, also_failed, waiting = (answered.json()["messageId"] for answered in made[-3:])
    broker.wait_for(State.FAILED, failed)
    broker.wait_for(State.FAILED, also_failed)
    letters = api.get("/v2/dlq", params={"messageId": [failed, also_failed]}).json()["messages"]
    return {
        "destination": "my-group",
        "messageId": waiting,
        "dlqId": letters[0]["dlqId"],
        "dlqId to retry": letters[1]["dlqId"],
        "queueName": "my-queue",
        "urlGroup": "my-group",
        "schedule": "my-schedule",
        "flowControlKey": "my-key",
        "rest": "anything",
    }


NEEDED: dict[str, dict[str, Any]] = {
    "post_v2_schedules_schedule": {
        "path_parameters": {"schedule": "my-group"},
        "headers": {"Upstash-Cron": "0 9 * * *", "Upstash-Schedule-Id": "my-schedule"},
    },
    "delete_v2_topics_urlGroup_endpoints": {"body": {"endpoints": [{"name": "one"}]}},
    "delete_v2_messages": {"body": {"label": "no-such-label"}},
    "delete_v2_dlq": {"body": {"label": ["no-such-label"]}},
    "post_v2_dlq_retry": {"query": {"label": "no-such-label"}},
}
"""What a request needs for a good answer, in addition to path variables and the document's examples."""
RANK = {"GET": 0, "POST": 1, "PATCH": 1, "DELETE": 2}


def test_every_endpoint_answers_as_the_document_says(
    broker: RunningBroker, api: httpx.Client, place: Endpoint, authorization: dict[str, str]
) -> None:
    """With one of everything there: reads first, then what changes it, then what deletes."""
    variables = seeded(broker, api, place)
    found: Any = SCHEMA.get_all_operations()
    operations = [one.ok() for one in found]
    for operation in sorted(operations, key=lambda one: (RANK[one.method.upper()], -len(one.path))):
        definition = operation.definition.raw
        case = operation.Case(**request_of(operation.path, definition, variables))
        response = case.call(broker.url, headers=authorization)
        case.validate_response(response, checks=CONFORMANCE)
        good = [int(status) for status in definition["responses"] if status.isdigit() and status != "503"]
        assert response.status_code in good, f"{operation.label}: {response.status_code} {response.text}"


def request_of(path: str, definition: dict[str, Any], variables: dict[str, str]) -> dict[str, Any]:
    """What to send for a good answer."""
    names = re.findall(r"\{(\w+)\}", path)
    content = definition.get("requestBody", {}).get("content", {})
    request = {
        "path_parameters": {name: variables.get(f"{name} to {path.split('/')[3]}", variables[name]) for name in names},
        "body": content.get("application/json", {}).get("example"),
        "media_type": "application/json",
        **NEEDED.get(definition["operationId"], {}),
    }
    return {name: value for name, value in request.items() if value is not None}


@SCHEMA.exclude(tag="Workflows").parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_whatever_is_sent_the_answer_is_in_the_document(
    case: Case[Any], broker: RunningBroker, authorization: dict[str, str]
) -> None:
    case.call_and_validate(broker.url, headers=authorization, checks=CHECKS)
