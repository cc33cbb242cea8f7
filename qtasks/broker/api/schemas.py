"""JSON Schemas of the API's bodies: the part of the OpenAPI document that is written by hand.

Responses have no fields other than those here. Times are Unix milliseconds and durations are seconds, unless the
description says otherwise (docs/protocol.md 1.6).
"""

from __future__ import annotations

from typing import Any, Final

from qtasks.protocol.messages import State

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
FLAG: Final[Schema] = {"type": "boolean"}
_TIME: Final[Schema] = {"type": "integer", "minimum": 0, "description": "Unix milliseconds"}
_SECONDS: Final[Schema] = {"type": "integer", "minimum": 0, "description": "seconds"}
_TEXTS: Final[Schema] = {"type": "array", "items": TEXT}
_HEADERS: Final[Schema] = {
    "type": "object",
    "additionalProperties": _TEXTS,
    "description": "canonical name to values",
}
_BASE64: Final[Schema] = {"type": "string", "contentEncoding": "base64"}


def ref(name: str) -> Schema:
    """A reference to a schema of `SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


def closed(required: Schema, optional: Schema | None = None) -> Schema:
    """An object with these members and no others."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def array(items: Schema, **limits: Any) -> Schema:
    """An array of `items`."""
    return {"type": "array", "items": items, **limits}


_PUBLISHED: Final = closed({"messageId": TEXT, "url": TEXT}, {"deduplicated": {"const": True}})

_FLOW: Final[Schema] = {"flowControlKey": TEXT, "parallelism": COUNT, "rate": COUNT, "period": _SECONDS}
_LABELS: Final[Schema] = {"label": TEXT, "labels": _TEXTS}
_CALLBACKS: Final[Schema] = {
    "callback": TEXT,
    "failureCallback": TEXT,
    "callbackHeader": _HEADERS,
    "failureCallbackHeader": _HEADERS,
}
_CALLER: Final[Schema] = {"callerIP": TEXT, "callerIp": TEXT}
_BODY: Final[Schema] = {"body": TEXT, "bodyBase64": _BASE64}
_ABOUT: Final[Schema] = {
    "callId": {**TEXT, "description": "this broker only: the call that the message carries"},
    "topicName": TEXT,
    "endpointName": TEXT,
    "queueName": TEXT,
    "scheduleId": TEXT,
    "header": _HEADERS,
    "retryDelayExpression": TEXT,
    **_CALLBACKS,
    **_CALLER,
    **_LABELS,
    **_FLOW,
}
_MESSAGE: Final[Schema] = {
    "messageId": TEXT,
    "url": TEXT,
    "method": TEXT,
    "maxRetries": COUNT,
    "notBefore": _TIME,
    "createdAt": _TIME,
}
_STATE: Final[Schema] = {"enum": [*State]}
_STATUS: Final[Schema] = {
    "lastError": {**TEXT, "description": "why the last attempt without success failed"},
    "nextDeliveryTime": {
        **_TIME,
        "description": "when it is due, if that lies ahead; Unix milliseconds",
    },
    "waitsFor": {
        **TEXT,
        "description": "what keeps it from starting, for example: retry",
    },
    "dlqId": TEXT,
}
_LOG_ENTRY: Final = closed(
    {"time": _TIME, "state": _STATE, "messageId": TEXT, "url": TEXT, "method": TEXT, "maxRetries": COUNT},
    {
        **_ABOUT,
        "error": TEXT,
        "nextDeliveryTime": _TIME,
        "body": {"type": "string", "description": "base64, or REDACTED:<sha256>"},
        "timeout": {"type": "integer", "description": "milliseconds"},
        "retryDelayExpr": TEXT,
        "callbackHeaders": _HEADERS,
        "failureCallbackHeaders": _HEADERS,
        "responseStatus": COUNT,
        "responseBody": _BASE64,
        "responseHeader": _HEADERS,
        "responseHeaders": _HEADERS,
    },
)
_DEAD_LETTER: Final = closed(
    {**_MESSAGE, "dlqId": TEXT, "responseStatus": COUNT},
    {
        **_ABOUT,
        **_BODY,
        "error": TEXT,
        "responseHeader": _HEADERS,
        "responseBody": TEXT,
        "responseBodyBase64": _BASE64,
    },
)
_PAUSE: Final = {"pausedAt": _TIME, "pausedBy": TEXT, "pauseNote": TEXT}
_SCHEDULE: Final = closed(
    {
        "scheduleId": TEXT,
        "destination": TEXT,
        "cron": TEXT,
        "method": TEXT,
        "createdAt": _TIME,
        "isPaused": FLAG,
        "retries": COUNT,
    },
    {
        **_PAUSE,
        **_BODY,
        **_CALLBACKS,
        **_CALLER,
        **_LABELS,
        **_FLOW,
        "header": _HEADERS,
        "delay": _SECONDS,
        "timeout": _SECONDS,
        "retryDelayExpression": TEXT,
        "queueName": TEXT,
        "nextScheduleTime": _TIME,
        "lastScheduleTime": _TIME,
        "lastScheduleStates": {
            "type": "object",
            "additionalProperties": {"enum": ["IN_PROGRESS", "SUCCESS", "FAIL"]},
        },
        "error": TEXT,
    },
)
_FLOW_KEY: Final = closed(
    {
        "flowControlKey": TEXT,
        "waitListSize": COUNT,
        "parallelismMax": COUNT,
        "parallelismCount": COUNT,
        "rateMax": COUNT,
        "rateCount": COUNT,
        "ratePeriod": _SECONDS,
        "ratePeriodStart": {"type": "integer", "description": "Unix seconds"},
        "isPaused": FLAG,
        "isPinnedParallelism": FLAG,
        "isPinnedRate": FLAG,
    },
    _PAUSE,
)
_QUEUE: Final = closed(
    {
        "name": TEXT,
        "createdAt": _TIME,
        "updatedAt": _TIME,
        "parallelism": {"type": "integer", "minimum": 1},
        "paused": FLAG,
        "lag": {**COUNT, "description": "messages that are not finished"},
    },
    _PAUSE,
)
_URL_GROUP: Final = closed(
    {
        "name": TEXT,
        "createdAt": _TIME,
        "updatedAt": _TIME,
        "endpoints": array(closed({"url": TEXT}, {"name": TEXT})),
    },
    {"headers": _HEADERS},
)
_CHAT_COMPLETION: Final[Schema] = {
    "type": "object",
    "description": "OpenAI's form; a language model's server may add fields.",
    "properties": {
        "id": TEXT,
        "object": {"const": "chat.completion"},
        "created": COUNT,
        "model": TEXT,
        "choices": array({"type": "object"}),
        "usage": {"type": "object"},
    },
    "required": ["choices"],
}
_CHAT_ERROR: Final = closed(
    {"error": {"type": "object", "properties": {"message": TEXT}, "required": ["message"]}},
)

SCHEMAS: Final[dict[str, Schema]] = {
    "Nothing": closed({}),
    "Error": closed({"error": TEXT}),
    "ChatError": _CHAT_ERROR,
    "Published": _PUBLISHED,
    "PublishAnswer": {
        "description": "An object for a URL; for a URL group, an array with one element per endpoint.",
        "oneOf": [ref("Published"), array(ref("Published"))],
    },
    "BatchAnswer": array({"oneOf": [ref("Published"), array(ref("Published")), ref("Error")]}),
    "Message": closed({**_MESSAGE, "state": _STATE, "retried": COUNT}, {**_ABOUT, **_BODY, **_STATUS}),
    "LogEntry": _LOG_ENTRY,
    "LogPage": closed(
        {"events": array(ref("LogEntry")), "logs": array(ref("LogEntry"))},
        {"cursor": {**TEXT, "description": "absent on the last page"}},
    ),
    "DeadLetter": _DEAD_LETTER,
    "DeadLetterPage": closed({"messages": array(ref("DeadLetter"))}, {"cursor": TEXT}),
    "Retried": closed({"responses": array(ref("Published"))}, {"cursor": TEXT}),
    "Cancelled": closed({"cancelled": COUNT}),
    "Deleted": closed({"deleted": COUNT}, {"cursor": TEXT}),
    "Queue": _QUEUE,
    "Queues": array(ref("Queue")),
    "UrlGroup": _URL_GROUP,
    "UrlGroups": array(ref("UrlGroup")),
    "Schedule": _SCHEDULE,
    "Schedules": array(ref("Schedule")),
    "ScheduleCreated": closed({"scheduleId": TEXT}),
    "FlowControlKey": _FLOW_KEY,
    "FlowControlKeys": array(ref("FlowControlKey")),
    "GlobalParallelism": closed({"parallelismMax": COUNT, "parallelismCount": COUNT}),
    "Keys": closed({"current": TEXT, "next": TEXT}),
    "ChatCompletion": _CHAT_COMPLETION,
    "Health": closed({"status": TEXT}, {"error": TEXT, "storage": TEXT, "clockOffsetMs": {"type": "integer"}}),
    "Document": {"type": "object", "required": ["openapi", "info", "paths"]},
}
"""Every named schema of the document."""
