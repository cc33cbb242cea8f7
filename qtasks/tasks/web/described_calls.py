"""What the dispatcher tells the broker of one call: see `qtasks.protocol.dispatcher_questions`.

Only what the result backend has. Results that are not JSON are never opened, and values of secret names are masked.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from qtasks.masking import mask_pairs, masked_text
from qtasks.protocol import strict_json
from qtasks.protocol.dispatcher_questions import (
    MAX_QUESTION,
    MAX_RESULT,
    VERSION,
    CallRecord,
    CallReport,
    CallResult,
    ReportedProgress,
)
from qtasks.tasks.base_task import BaseTask
from qtasks.tasks.encode.encoding import hidden_form
from qtasks.tasks.encode.envelope import ID
from qtasks.tasks.progress import Progress
from qtasks.tasks.results.backend import ResultBackend, ResultRecord, ResultStatus, storable
from qtasks.tasks.web.described_flows import report_flow

Tasks = Mapping[str, BaseTask[..., Any]]


async def report_call(question: bytes, results: ResultBackend | None, tasks: Tasks) -> bytes:
    """The answer to a question, JSON. Raises ValueError for what is not one, ResultError."""
    call_id, flow_id = _read(question)
    if results is None:
        nothing: CallReport = {"v": VERSION, "results": False, "call": None, "flow": None}
        return _json(nothing)
    if results.blocking:
        return await asyncio.to_thread(_report, results, call_id, flow_id, tasks)
    return _report(results, call_id, flow_id, tasks)


def _read(question: bytes) -> tuple[str, str | None]:
    """The id of the call, and that of its flow."""
    if len(question) > MAX_QUESTION:
        raise ValueError(f"it has more than {MAX_QUESTION} bytes")
    document = strict_json.loads(question)
    if not isinstance(document, dict) or document.get("v") != VERSION:
        raise ValueError(f"expected an object of version {VERSION}")
    call_id, flow_id = document.get("id"), document.get("flow")
    if not _is_id(call_id) or not (flow_id is None or _is_id(flow_id)):
        raise ValueError("expected the ids of a call and of its flow")
    return str(call_id), None if flow_id is None else str(flow_id)


def _is_id(value: object) -> bool:
    return isinstance(value, str) and ID.fullmatch(value) is not None


def _report(results: ResultBackend, call_id: str, flow_id: str | None, tasks: Tasks) -> bytes:
    record = results.read(call_id)
    report: CallReport = {
        "v": VERSION,
        "results": True,
        "call": None if record is None else _call(record, tasks),
        "flow": report_flow(results, call_id if record is None else record.call_id, flow_id),
    }
    return _json(report)


def _call(record: ResultRecord, tasks: Tasks) -> CallRecord:
    has_succeeded = record.status is ResultStatus.SUCCEEDED
    return {
        "id": record.call_id,
        "task": record.task,
        "state": record.status.value,
        "attempt": record.attempt,
        "updatedMs": record.updated_ms,
        "progress": None if record.progress is None else _progress(record.progress),
        "result": _result(record.value or "null", _is_redacted(tasks.get(record.task))) if has_succeeded else None,
        "error": None if record.error is None else mask_pairs(record.error),
    }


def _is_redacted(task: BaseTask[..., Any] | None) -> bool:
    redaction = None if task is None else task.delivery_options.publish.redact
    return redaction is not None and redaction.body


def _result(text: str, is_redacted: bool) -> CallResult:
    size = len(text.encode())
    form = "redacted" if is_redacted else hidden_form(text)
    if form is not None:
        return {"form": form, "bytes": size}
    shown = masked_text(text).encode()
    if len(shown) <= MAX_RESULT:
        return {"form": "json", "bytes": size, "text": shown.decode(), "isCut": False}
    return {"form": "json", "bytes": size, "text": shown[:MAX_RESULT].decode(errors="ignore"), "isCut": True}


def _progress(text: str) -> ReportedProgress:
    progress = Progress.from_json(text)
    return {"done": progress.done, "total": progress.total, "note": mask_pairs(storable(progress.note))}


def _json(report: CallReport) -> bytes:
    return json.dumps(report, ensure_ascii=False, separators=(",", ":")).encode()
