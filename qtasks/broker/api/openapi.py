"""The OpenAPI document of the broker's API: paths from the route table, descriptions and schemas written by hand.

A route without a description here makes `document` raise KeyError, and the test that compares the two fail.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from qtasks.broker.api import (
    chat,
    dead_letters,
    flow_control,
    messages,
    publish,
    query_filters,
    queues,
    schedules,
    url_groups,
    workflows,
)
from qtasks.broker.api.api_request import ApiResponse
from qtasks.broker.api.routes import BY_QUERY, ROUTES, Handler, Route
from qtasks.broker.api.schemas import COUNT, FLAG, SCHEMAS, TEXT, Schema, array, closed, ref
from qtasks.protocol import wire
from qtasks.protocol.messages import State

PATH: Final = "/openapi.json"
WIRE_VERSION: Final = "2"
"""Version of the QStash API, with which the paths begin."""

_ABOUT: Final = """A durable message broker that speaks the QStash HTTP API, version 2.

The fixed parts of a path are not case-sensitive, and a trailing slash is ignored. A destination follows its prefix raw,
with its query: `POST /v2/publish/https://example.com/hook?a=1`. Every option header can also be sent as a query
parameter of the same name. `Upstash-Forward-<Name>` headers reach the destination as `<Name>`;
`Upstash-Callback-<Option>` and `Upstash-Failure-Callback-<Option>` are the options of the two callbacks."""

_SPELLED: Final = {
    "flowcontrol": "flowControl",
    "globalparallelism": "globalParallelism",
    "resetrate": "resetRate",
}
"""The spelling of clients for segments that the route table has in lower case."""

_NAME_AFTER: Final = {
    "publish": "destination",
    "enqueue": "queueName",
    "queues": "queueName",
    "messages": "messageId",
    "dlq": "dlqId",
    "retry": "dlqId",
    "topics": "urlGroup",
    "schedules": "schedule",
    "flowcontrol": "flowControlKey",
}
"""The name of a variable part of a path, by the segment in front of it."""

_VARIABLES: Final[dict[str, Schema]] = {
    "destination": {
        **TEXT,
        "minLength": 1,
        "description": "A raw URL with its query, the name of a URL group, or `api/llm`. Not percent-encoded.",
        "example": "my-group",
    },
    "queueName": {**TEXT, "minLength": 1, "example": "my-queue"},
    "messageId": {**TEXT, "minLength": 1, "description": "The id of a message, or of the call that a message carries."},
    "dlqId": {**TEXT, "minLength": 1},
    "urlGroup": {**TEXT, "minLength": 1, "example": "my-group"},
    "schedule": {
        **TEXT,
        "minLength": 1,
        "description": "The id of a schedule. For `POST /v2/schedules/...`: a destination, as for a publish.",
        "example": "my-schedule",
    },
    "flowControlKey": {**TEXT, "minLength": 1, "example": "my-key"},
    "rest": {**TEXT, "minLength": 1},
}

_EXAMPLES: Final[dict[str, str]] = {
    "method": "PUT",
    "forward_all": "false",
    "delay_ms": "30s",
    "not_before_s": "1700000000",
    "retries": "2",
    "retry_delay": "1000 * (1 + retried)",
    "timeout_ms": "30s",
    "deduplication_id": "order-42",
    "content_based_deduplication": "false",
    "callback": "http://localhost:3000/callback",
    "failure_callback": "http://localhost:3000/failure",
    "labels": "nightly,reports",
    "redact": "body,header[Authorization]",
    "cron": "0 9 * * *",
    "schedule_id": "my-schedule",
    "queue": "my-queue",
    "call_id": "call_42",
    "end_callback": "http://localhost:3000/end",
    "interrupted_for_ms": "24h",
}

_FLOW_HEADERS: Final = (
    ("Upstash-Flow-Control-Key", "the key whose messages share limits", "my-key"),
    (
        "Upstash-Flow-Control-Value",
        "parallelism=X, rate=X, period=DURATION: any of them",
        "parallelism=5,rate=100,period=1m",
    ),
)
_OF_SCHEDULES: Final = frozenset({"cron", "schedule_id", "queue"})
_TIMES: Final = frozenset({"delay_ms", "not_before_s"})
_NOT_A_PARAMETER: Final = frozenset({"content_type"})
"""OpenAPI describes the content type elsewhere."""


def _header(name: str, form: str, example: str) -> Schema:
    schema = {**TEXT, "example": example}
    return {"name": name, "in": "header", "description": form, "required": name == "Upstash-Cron", "schema": schema}


_OPTION_HEADERS: Final = {row.name: row.header for row in wire.FIELDS if row.name not in _NOT_A_PARAMETER}
_PARAMETERS: Final = {
    **{
        row.header: _header(row.header, row.form, _EXAMPLES[row.name])
        for row in wire.FIELDS
        if row.name in _OPTION_HEADERS
    },
    **{name: _header(name, form, example) for name, form, example in _FLOW_HEADERS},
}
"""The option headers of a publish, from the table in `protocol.wire`."""


def _options(*, without: frozenset[str]) -> tuple[Schema, ...]:
    excluded = {_OPTION_HEADERS[name] for name in without}
    return tuple({"$ref": f"#/components/parameters/{name}"} for name in _PARAMETERS if name not in excluded)


_PUBLISH_OPTIONS: Final = _options(without=_OF_SCHEDULES)
_QUEUE_OPTIONS: Final = _options(without=_OF_SCHEDULES | _TIMES)
_SCHEDULE_OPTIONS: Final = _options(without=frozenset({"not_before_s"}))

_OPAQUE: Final[Schema] = {
    "description": "Delivered byte for byte, with its Content-Type.",
    "content": {
        "application/json": {"schema": {}},
        "text/plain": {"schema": TEXT},
        "application/octet-stream": {"schema": {}},
    },
}


def _json(schema: Schema, *, required: bool = True, example: Any = None) -> Schema:
    media = {"schema": schema, **({} if example is None else {"example": example})}
    return {"required": required, "content": {"application/json": media}}


def _query(schemas: Mapping[str, Schema]) -> tuple[Schema, ...]:
    return tuple({"name": name, "in": "query", "schema": schema} for name, schema in schemas.items())


_TIME: Final[Schema] = {**COUNT, "maximum": 2**53, "description": "Unix milliseconds, inclusive"}
_PAGE: Final[Schema] = {"type": "integer", "minimum": 1}
_TEXTS: Final = array(TEXT)
_STATES: Final = array({"enum": [*State, "IN_PROGRESS"]})
_KINDS: Final[dict[str, Schema]] = {
    "fromDate": _TIME,
    "toDate": _TIME,
    "count": _PAGE,
    "cursor": TEXT,
    "responseStatus": array({"type": "integer", "minimum": 0, "maximum": 999}),
}


def _filters(names: Iterable[str]) -> dict[str, Schema]:
    """Schemas of filters by name. A record must match all filters, and one value of each."""
    return {name: _KINDS.get(name, _TEXTS) for name in sorted(set(names) - {"qstash_token", "callerIP"})}


_CANCEL: Final = {**_filters(query_filters.CANCEL_NAMES), "count": {**_PAGE, "maximum": messages.MAX_CANCEL}}
_DEAD: Final = _filters(query_filters.DEAD_LETTER_NAMES)
_LISTED_DEAD: Final = {**_DEAD, "order": {"enum": ["earliestFirst", "latestFirst"]}}
_LOG: Final = {
    **_filters(query_filters.CANCEL_NAMES | {"cursor"}),
    "state": _STATES,
    "order": {"enum": ["earliestFirst", "latestFirst"]},
}


def _filter_body(filters: Mapping[str, Schema]) -> Schema:
    """The same filters as a JSON body, the alternative to the query."""
    single: Schema = {"type": ["string", "integer"]}
    either: Schema = {"oneOf": [single, array(single)]}
    return _json(closed({}, dict.fromkeys(filters, either)), required=False)


_ENDPOINT: Final[Schema] = {
    "type": "object",
    "properties": {"url": TEXT, "name": TEXT},
    "anyOf": [{"required": ["url"]}, {"required": ["name"]}],
}
_ENDPOINTS: Final = closed({"endpoints": array(_ENDPOINT, minItems=1)})
_ENDPOINTS_EXAMPLE: Final = {"endpoints": [{"name": "first", "url": "http://localhost:3000/first"}]}
_BATCH: Final = array(
    {
        "type": "object",
        "properties": {
            "destination": TEXT,
            "headers": {"type": ["object", "null"], "additionalProperties": TEXT},
            "body": {"description": "a text as it is; any other JSON value as its JSON text; null for none"},
            "queue": {"type": ["string", "null"]},
        },
        "required": ["destination"],
    },
    maxItems=publish.MAX_ITEMS,
)
_BATCH_EXAMPLE: Final = [
    {"destination": "http://localhost:3000/one", "headers": {"Upstash-Retries": "1"}, "body": "one"},
    {"destination": "my-group", "body": "two", "queue": "my-queue"},
    {"destination": "neither a URL nor a group"},
]
_CHAT: Final[Schema] = {
    "type": "object",
    "description": "A chat request in OpenAI's form.",
    "properties": {
        "model": TEXT,
        "messages": array({"type": "object", "properties": {"role": TEXT, "content": TEXT}}, minItems=1),
        "stream": FLAG,
    },
    "required": ["messages"],
}
_CHAT_EXAMPLE: Final = {"model": "llama3.2", "messages": [{"role": "user", "content": "Hello"}]}


@dataclass(frozen=True, slots=True)
class OperationDoc:
    """The description of an endpoint, in addition to its route."""

    tag: str
    summary: str
    answers: Mapping[int, str]
    """Status code to the name of a schema."""
    parameters: tuple[Schema, ...] = ()
    body: Schema | None = None
    error: str = "Error"
    stream: bool = field(default=False)
    """True if the response may be a stream of server-sent events."""


_PUBLISHED: Final = {201: "PublishAnswer", 202: "PublishAnswer"}
_DONE: Final = {200: "Nothing"}
_NUMBER: Final = {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}
_QUEUE: Final = closed(
    {"queueName": TEXT},
    {
        "parallelism": {"type": ["integer", "null"], "minimum": 1, "maximum": queues.MAX_PARALLELISM},
        "paused": {"type": ["boolean", "null"]},
    },
)
_DEFAULTS: Final = closed({"headers": {"type": "object", "additionalProperties": {"oneOf": [TEXT, _TEXTS]}}})
_DEFAULTS_EXAMPLE: Final = {"headers": {"Upstash-Retries": "3", "Upstash-Header-Forward": ["true"]}}

_M, _D, _Q, _G, _S, _F = "Messages", "Dead letters", "Queues", "URL groups", "Schedules", "Flow control"
_DESCRIBED: Final[Mapping[Handler, OperationDoc]] = {
    publish.publish: OperationDoc(_M, "Publish a message", _PUBLISHED, _PUBLISH_OPTIONS, _OPAQUE),
    publish.enqueue: OperationDoc(_M, "Publish into a queue", _PUBLISHED, _QUEUE_OPTIONS, _OPAQUE),
    publish.batch: OperationDoc(
        _M,
        "Publish many messages, each with its own answer",
        {201: "BatchAnswer"},
        (),
        _json(_BATCH, example=_BATCH_EXAMPLE),
    ),
    messages.get_message: OperationDoc(_M, "One message, also for a while after it is finished", {200: "Message"}),
    messages.cancel_message: OperationDoc(_M, "Cancel one message", {200: "Cancelled"}),
    messages.cancel_messages: OperationDoc(
        _M,
        "Cancel by ids or by filter; without either, cancel all",
        {200: "Cancelled"},
        _query(_CANCEL),
        _filter_body(_CANCEL),
    ),
    messages.list_log: OperationDoc("Logs", "The log of messages, latest entry first", {200: "LogPage"}, _query(_LOG)),
    dead_letters.list_dead_letters: OperationDoc(
        _D, "Messages whose last attempt failed, oldest first", {200: "DeadLetterPage"}, _query(_LISTED_DEAD)
    ),
    dead_letters.get_dead_letter: OperationDoc(_D, "One dead letter", {200: "DeadLetter"}),
    dead_letters.delete_dead_letter: OperationDoc(_D, "Delete one dead letter", {200: "Deleted"}),
    dead_letters.delete_dead_letters: OperationDoc(
        _D, "Delete by ids or by filter, a page at a time", {200: "Deleted"}, _query(_DEAD), _filter_body(_DEAD)
    ),
    dead_letters.retry_dead_letter: OperationDoc(
        _D, "Publish one again; headers override its original options", {201: "Published"}, _PUBLISH_OPTIONS
    ),
    dead_letters.retry_dead_letters: OperationDoc(
        _D,
        "Publish again by ids or by filter, a page at a time",
        {201: "Retried"},
        (*_query(_DEAD), *_PUBLISH_OPTIONS),
        _filter_body(_DEAD),
    ),
    queues.upsert_queue: OperationDoc(
        _Q, "Create or change a queue", _DONE, (), _json(_QUEUE, example={"queueName": "my-queue", "parallelism": 2})
    ),
    queues.list_queues: OperationDoc(_Q, "All queues", {200: "Queues"}),
    queues.get_queue: OperationDoc(_Q, "One queue", {200: "Queue"}),
    queues.delete_queue: OperationDoc(_Q, "Delete a queue and cancel its waiting messages", _DONE),
    queues.pause_queue: OperationDoc(_Q, "Pause a queue: its messages wait", _DONE),
    queues.resume_queue: OperationDoc(_Q, "Resume a queue, oldest message first", _DONE),
    url_groups.list_groups: OperationDoc(_G, "All URL groups", {200: "UrlGroups"}),
    url_groups.get_group: OperationDoc(_G, "One URL group", {200: "UrlGroup"}),
    url_groups.delete_group: OperationDoc(_G, "Delete a URL group", _DONE),
    url_groups.set_headers: OperationDoc(
        _G,
        "Set the default headers of every publish to the group",
        _DONE,
        (),
        _json(_DEFAULTS, example=_DEFAULTS_EXAMPLE),
    ),
    url_groups.upsert_endpoints: OperationDoc(
        _G, "Add or change endpoints; creates a missing group", _DONE, (), _json(_ENDPOINTS, example=_ENDPOINTS_EXAMPLE)
    ),
    url_groups.remove_endpoints: OperationDoc(
        _G, "Remove endpoints by name or URL; removing the last one deletes the group", _DONE, (), _json(_ENDPOINTS)
    ),
    schedules.create_schedule: OperationDoc(
        _S, "Create or replace a schedule", {200: "ScheduleCreated"}, _SCHEDULE_OPTIONS, _OPAQUE
    ),
    schedules.list_schedules: OperationDoc(_S, "All schedules", {200: "Schedules"}),
    schedules.get_schedule: OperationDoc(_S, "One schedule", {200: "Schedule"}),
    schedules.delete_schedule: OperationDoc(_S, "Delete a schedule", _DONE),
    schedules.pause_schedule: OperationDoc(_S, "Pause a schedule", _DONE),
    schedules.resume_schedule: OperationDoc(
        _S, "Resume a schedule; runs missed during the pause are not repeated", _DONE
    ),
    flow_control.list_keys: OperationDoc(
        _F, "All flow-control keys", {200: "FlowControlKeys"}, _query({"search": TEXT})
    ),
    flow_control.get_key: OperationDoc(
        _F, "One flow-control key: its limits and current counts", {200: "FlowControlKey"}
    ),
    flow_control.pause_key: OperationDoc(_F, "Pause a key: its messages wait", _DONE),
    flow_control.resume_key: OperationDoc(_F, "Resume a key", _DONE),
    flow_control.pin_key: OperationDoc(
        _F,
        "Fix limits, so that messages no longer change them",
        _DONE,
        _query({"parallelism": _NUMBER, "rate": _NUMBER, "period": {**_NUMBER, "maximum": 7 * 86_400}}),
    ),
    flow_control.unpin_key: OperationDoc(
        _F, "Let messages set limits again", _DONE, _query({"parallelism": FLAG, "rate": FLAG})
    ),
    flow_control.reset_rate: OperationDoc(_F, "Start a new rate period", _DONE),
    flow_control.global_parallelism: OperationDoc(_F, "Attempts in flight and their limit", {200: "GlobalParallelism"}),
    messages.get_keys: OperationDoc("Signing keys", "The current and the next signing key", {200: "Keys"}),
    messages.rotate_keys: OperationDoc(
        "Signing keys", "Rotate: the next key becomes current, and a new next key is created", {200: "Keys"}
    ),
    chat.complete: OperationDoc(
        "Language models",
        "A chat completion, whole or as a stream",
        {200: "ChatCompletion"},
        (),
        _json(_CHAT, example=_CHAT_EXAMPLE),
        error="ChatError",
        stream=True,
    ),
    workflows.refuse: OperationDoc("Workflows", "Not served", {501: "Error"}),
}

PUBLIC: Final = {
    "/healthz": OperationDoc("Health", "The process is running", {200: "Health"}),
    "/readyz": OperationDoc("Health", "The broker stores and delivers messages", {200: "Health", 503: "Health"}),
    PATH: OperationDoc("Health", "This document", {200: "Document"}),
}
"""The paths that the ASGI application answers itself, without a token."""


@functools.cache
def document() -> dict[str, Any]:
    """The whole document, OpenAPI 3.1."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        path = path_of(route)
        operation = paths.setdefault(path, {})[route.method.lower()] = _operation(
            route.method, path, _DESCRIBED[route.handler]
        )
        if route.handler in BY_QUERY:
            operation["security"] = [{"token": []}, {"tokenInQuery": []}]
    for path, described in PUBLIC.items():
        paths[path] = {"get": {**_operation("GET", path, described), "security": []}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "QStash API, served by qtasks", "version": WIRE_VERSION, "description": _ABOUT},
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "parameters": _PARAMETERS,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "tokenInQuery": {"type": "apiKey", "in": "query", "name": "qstash_token"},
            },
        },
    }


@functools.cache
def served() -> ApiResponse:
    """`GET /openapi.json`."""
    return ApiResponse(200, orjson.dumps(document()))


def path_of(route: Route) -> str:
    """The path of a route in OpenAPI's form, with names for its variable parts and the spelling of clients."""
    parts: list[str] = []
    for index, part in enumerate(route.path):
        if part in ("{}", "*"):
            previous = route.path[index - 1]
            name = "destination" if previous == "{}" else _NAME_AFTER.get(previous, "rest")
            parts.append(f"{{{name}}}")
        else:
            parts.append(_SPELLED.get(part, part))
    return "/" + "/".join(parts)


def _operation(method: str, path: str, described: OperationDoc) -> dict[str, Any]:
    variables = [
        {"name": name, "in": "path", "required": True, "schema": _VARIABLES[name]}
        for name in re.findall(r"\{(\w+)\}", path)
    ]
    operation = {
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}{path}").strip("_"),
        "summary": described.summary,
        "tags": [described.tag],
        "parameters": [*variables, *described.parameters],
        "responses": {str(status): _answer(name, described) for status, name in described.answers.items()}
        | {"4XX": _answer(described.error, described), "5XX": _answer(described.error, described)},
    }
    return operation if described.body is None else {**operation, "requestBody": described.body}


def _answer(name: str, described: OperationDoc) -> Schema:
    content: Schema = {"application/json": {"schema": ref(name)}}
    if described.stream and name != described.error:
        content["text/event-stream"] = {}
    return {
        "description": described.summary if name != described.error else "Error: the text says why",
        "content": content,
    }
