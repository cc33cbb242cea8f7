"""The views of a QStash service that has only the API of QStash: what that tells, and no more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final
from urllib.parse import parse_qs, quote, unquote, urlencode

from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, json_response, read_object
from qtasks.console.hosted_calls import AskCall, body_of, call_view, task_of
from qtasks.console.passed_service import PassedService
from qtasks.protocol import cron, cron_english
from qtasks.protocol.labels import argument_labels

LACKS: Final = ("overview", "failures", "endpoints", "system", "audit", "events", "assistant", "drift", "llm")
"""The views that the API of QStash cannot give."""
NEXT: Final = 5
_PAGE: Final = 100
_STATUSES: Final = {
    "CREATED": "waiting",
    "ACTIVE": "running",
    "RETRY": "retrying",
    "ERROR": "retrying",
    "DELIVERED": "delivered",
    "FAILED": "failed",
    "CANCEL_REQUESTED": "running",
    "CANCELED": "canceled",
    "CANCELLED": "canceled",
}
_OF_MESSAGE: Final = ("messageId", "url", "method", "header")
_FINAL: Final = ("delivered", "failed", "canceled")
_MOST_IDS: Final = 100

Json = dict[str, Any]
Read = Callable[[dict[str, str]], Awaitable[Json | list[Json]]]
"""A view, called with the query."""
Act = Callable[[list[str]], Awaitable[Json]]
"""An action on dead letters, called with their ids."""


class HostedViews:
    """The views of one service, by its API. `version` is that of this program.

    `ask_call` answers what the application knows of its calls; None: it runs elsewhere.
    """

    def __init__(self, service: PassedService, version: str, ask_call: AskCall | None = None) -> None:
        self._service = service
        self._ask_call = ask_call
        self._version = version
        self._reads: dict[str, Read] = {
            "messages": self._messages,
            "dead-letters": self._dead_letters,
            "schedules": lambda _: self._schedules(),
            "queues": lambda _: self._queues(),
            "flow": lambda _: self._flow(),
        }
        self._acts: dict[str, Act] = {"dead-letters/retry": self._retry, "dead-letters/delete": self._delete}

    async def session(self) -> Json:
        """See `Views.session`."""
        service = {"kind": "qstash", "url": self._service.url, "lacks": list(LACKS)}
        return {"role": "operator", "account": "", "version": self._version, "service": service}

    async def answer(self, request: ApiRequest, path: str) -> ApiResponse:
        """See `Views.answer`."""
        if path.startswith("v2/"):
            return await self._service.pass_on(request, f"/{path}")
        name, _, text = path.partition("?")
        query = {key: values[-1] for key, values in parse_qs(text).items()}
        if request.method == "POST" and name in self._acts:
            return json_response(await self._acts[name](await _ids(request)))
        if request.method == "GET" and name in self._reads:
            try:
                return json_response(await self._reads[name](query))
            except _UnreadableFilter as error:
                return json_response({"error": error.text, "problems": error.problems}, error.status)
        if request.method == "GET" and name.startswith("messages/") and name.count("/") == 1:
            return json_response(await self._message(name.removeprefix("messages/")))
        if request.method == "GET" and name.startswith("messages/") and name.endswith("/call"):
            message_id = name.removeprefix("messages/").removesuffix("/call")
            message = (await self._message(message_id))["message"]
            return json_response(await call_view(self._ask_call, unquote(message_id), message.get("body")))
        raise HttpError(404, "the API of this service does not tell that")

    async def _messages(self, query: dict[str, str]) -> Json:
        page = await self._service.ask("GET", f"/v2/logs?{_page(query)}{_search(query)}")
        rows = {row["messageId"]: row for row in reversed([_row(entry) for entry in _list(page, "events", "logs")])}
        return {"messages": list(reversed(rows.values())), "cursor": page.get("cursor"), "scanned": None}

    async def _message(self, message_id: str) -> Json:
        page = await self._service.ask("GET", f"/v2/logs?messageId={message_id}&count={_PAGE}")
        entries = sorted(_list(page, "events", "logs"), key=lambda entry: int(entry.get("time", 0)))
        if not entries:
            raise HttpError(404, f"the log of this service has no message {message_id[:128]}")
        try:
            message = await self._service.ask("GET", f"/v2/messages/{message_id}")
        except HttpError:  # hosted QStash forgets a message that has ended
            message = {}
        row = _row(entries[-1])
        row["error"] = next((entry.get("error") for entry in reversed(entries) if entry.get("error")), None)
        row["createdMs"] = entries[0].get("time")
        log = [
            {
                "timeMs": entry.get("time"),
                "state": entry.get("state"),
                "error": entry.get("error"),
                "nextMs": entry.get("nextDeliveryTime"),
            }
            for entry in entries
        ]
        body = body_of(message, entries)
        task, call_id = task_of(str(entries[-1].get("url", "")), body)
        return {
            "row": {**row, "task": task, "callId": row["callId"] or call_id},
            "message": {
                **{name: entries[-1].get(name) for name in ("messageId", "url", "method", "header")},
                **({} if body is None else {"body": body}),
                **message,
            },
            "attempts": list(_attempts(entries)),
            "waiting": None,
            "log": log,
            "deadLetterId": None,
            "signature": None,
            "callbacks": [],
            "parent": None,
            "run": None,
        }

    async def _dead_letters(self, query: dict[str, str]) -> Json:
        page = await self._service.ask("GET", f"/v2/dlq?{_page(query)}{_search(query)}")
        letters = [
            {
                **_row({**letter, "state": "FAILED"}),
                "deadLetterId": letter.get("dlqId"),
                "failedMs": letter.get("createdAt"),
                "responseStatus": letter.get("responseStatus"),
            }
            for letter in _list(page, "messages")
        ]
        return {"deadLetters": letters, "cursor": page.get("cursor"), "matching": None}

    async def _retry(self, ids: list[str]) -> Json:
        for dead_letter_id in ids:
            await self._service.ask("POST", f"/v2/dlq/retry/{quote(dead_letter_id, safe='')}")
        return {"done": len(ids), "left": 0}

    async def _delete(self, ids: list[str]) -> Json:
        for dead_letter_id in ids:
            await self._service.ask("DELETE", f"/v2/dlq/{quote(dead_letter_id, safe='')}")
        return {"done": len(ids), "left": 0}

    async def _schedules(self) -> Json:
        schedules = await self._service.ask("GET", "/v2/schedules")
        return {"zone": "UTC", "schedules": [_schedule(schedule) for schedule in _list(schedules)]}

    async def _queues(self) -> list[Json]:
        return [
            {
                "name": queue.get("name"),
                "parallelism": queue.get("parallelism"),
                "paused": bool(queue.get("paused")),
                "waiting": queue.get("lag"),
                "running": None,
                "oldestMs": None,
                "perMinute": None,
                "timeToEmptyS": None,
            }
            for queue in _list(await self._service.ask("GET", "/v2/queues"))
        ]

    async def _flow(self) -> list[Json]:
        return [
            {
                "name": key.get("flowControlKey"),
                "parallelism": key.get("parallelismMax") or None,
                "rate": key.get("rateMax") or None,
                "periodS": key.get("ratePeriod"),
                "pinned": bool(key.get("isPinnedParallelism") or key.get("isPinnedRate")),
                "paused": bool(key.get("isPaused")),
                "waiting": key.get("waitListSize"),
                "running": key.get("parallelismCount"),
                "oldestMs": None,
                "perMinute": None,
                "timeToEmptyS": None,
            }
            for key in _list(await self._service.ask("GET", "/v2/flowControl"))
        ]


def _list(value: Any, *names: str) -> list[Json]:
    """The list in an answer: itself, or under the first of `names` that it has."""
    if isinstance(value, dict):
        value = next((value[name] for name in names if name in value), [])
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _page(query: dict[str, str]) -> str:
    pairs = {"count": query.get("count", "50"), "cursor": query.get("cursor", "")}
    return urlencode({name: value for name, value in pairs.items() if value})


def _search(query: dict[str, str]) -> str:
    """The filter of the page, if the API can apply all of it. HttpError 422 otherwise."""
    names = {"id": "messageId", "queue": "queueName", "schedule": "scheduleId", "url": "url", "label": "label"}
    pairs: dict[str, str] = {}
    text = query.get("filter", "")
    for word in text.split():
        name, colon, value = word.partition(":")
        argument = name.removeprefix("arg.")
        if value and argument != name and argument_labels.is_name(argument):
            name, value = "label", argument_labels.label_of(argument, value)
        if not colon or name not in names or not value or "," in value or names[name] in pairs:
            at = text.index(word)
            sentence = "this service knows id:, queue:, schedule:, url:, label: and searchable arguments only"
            raise _UnreadableFilter(sentence, at, len(word))
        pairs[names[name]] = value
    return f"&{urlencode(pairs)}" if pairs else ""


class _UnreadableFilter(HttpError):
    """A filter that the service cannot apply."""

    def __init__(self, text: str, at: int, length: int) -> None:
        super().__init__(422, text)
        self.problems = [{"at": at, "length": length, "text": text}]


async def _ids(request: ApiRequest) -> list[str]:
    ids = (await read_object(request)).get("ids")
    if not isinstance(ids, list) or not all(isinstance(each, str) and each for each in ids):
        raise HttpError(400, "this service acts on chosen dead letters only, not on all that match")
    if len(ids) > _MOST_IDS:
        raise HttpError(400, f"choose at most {_MOST_IDS} dead letters at a time")
    return ids


def _row(entry: Json) -> Json:
    """A row of a list, from an entry of the log or a dead letter."""
    status = _STATUSES.get(str(entry.get("state")), "waiting")
    return {
        "messageId": entry.get("messageId"),
        "callId": entry.get("callId"),
        "task": None,
        "destination": str(entry.get("url", "")).partition("?")[0],
        "status": status,
        "createdMs": entry.get("createdAt") or entry.get("time"),
        "dueMs": entry.get("nextDeliveryTime"),
        "finishedMs": entry.get("time") if status in _FINAL else None,
        "attempts": None,
        "maxRetries": entry.get("maxRetries"),
        "error": entry.get("error") or None,
        "queue": entry.get("queueName"),
        "flowKey": entry.get("flowControlKey"),
        "scheduleId": entry.get("scheduleId"),
        "labels": argument_labels.without(entry.get("labels") or ([entry["label"]] if entry.get("label") else [])),
    }


def _attempts(entries: Iterable[Json]) -> Iterable[Json]:
    """The attempts in the log of one message, oldest first."""
    number, started_ms = 0, None
    for entry in entries:
        state, time_ms = entry.get("state"), entry.get("time")
        if state == "ACTIVE":
            started_ms = time_ms
        elif state in ("ERROR", "DELIVERED"):
            number += 1
            status = entry.get("responseStatus")
            yield {
                "number": number,
                "startedMs": started_ms or time_ms,
                "endedMs": time_ms,
                "outcome": "delivered" if state == "DELIVERED" else "failed",
                "error": entry.get("error") or None,
                "response": {"status": status, "header": entry.get("responseHeader")} if status else None,
                "nextMs": entry.get("nextDeliveryTime"),
                "timing": {},
            }
            started_ms = None


def _schedule(schedule: Json) -> Json:
    text = str(schedule.get("cron", ""))
    next_ms, zone = schedule.get("nextScheduleTime"), "UTC"
    runs: list[int] = []
    try:
        expression = cron.parse(text)
    except ValueError:
        expression = None
    if expression is not None:
        zone = expression.zone
        while isinstance(next_ms, int) and len(runs) < NEXT:
            runs.append(next_ms)
            next_ms = expression.next_ms(next_ms)
    return {
        "schedule": schedule,
        "task": None,
        "destination": str(schedule.get("destination", "")).partition("?")[0],
        "english": cron_english.describe(text),
        "timeZone": zone,
        "nextMs": runs,
        "recent": [],
        "missed": 0,
    }
