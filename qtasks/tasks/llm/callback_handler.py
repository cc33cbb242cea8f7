"""Callbacks of requests to language models: run the completion, ask the model again, or end the call as failed.

The broker sends a callback for every attempt to reach the provider, and a failure callback after the last one. Only
their URL and body are signed. The call itself travels in a header, so the header is compared with its hash in the URL
before any of it is parsed. The body contains the provider's response, which can be anything the provider sends.
"""

from __future__ import annotations

import functools
import hmac
import json
import logging
import os
from dataclasses import dataclass, field, replace
from typing import Any

from qtasks.clock import Clock
from qtasks.error_codes import ErrorCode
from qtasks.errors import OutputError, PayloadError, ProviderError, QTasksError, ResultError
from qtasks.protocol import strict_json
from qtasks.tasks.base_task import BaseTask
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.llm import callback_url, model_request, provider_apis
from qtasks.tasks.llm.callback import Callback, CallbackBody, read_body
from qtasks.tasks.llm.callback_url import CallbackQuery, Repair
from qtasks.tasks.llm.chat_messages import ModelAnswer, Usage
from qtasks.tasks.llm.llm_task import LlmTask
from qtasks.tasks.llm.model_request import CallbackRedelivery
from qtasks.tasks.results.backend import ResultBackend, ResultRecord, read_record
from qtasks.tasks.run.attempt import Attempt, Delivery, Execution, context_of
from qtasks.tasks.run.decision import Decision, DispatchResponse, error_text
from qtasks.tasks.run.report import log_fields
from qtasks.tasks.run.run import Invoke, Run
from qtasks.tasks.send.outgoing import StoredCall, once

log = logging.getLogger("qtasks.dispatch")

MAX_DETAIL = 500
"""Largest number of characters of a provider's error text in our errors."""

MAX_DEPTH = 128
"""Deepest nesting of an answer. Envelopes allow less, but an answer has the shape of the user's output type."""


@dataclass(frozen=True, slots=True)
class CompletionRun(Run):
    """A run of a completion, with the answer in `callback`."""

    callback: Callback | None = field(default=None, repr=False)

    def again(self, delay_ms: int) -> CallbackRedelivery:
        """See `Run.again`: the same callback is sent once more, later."""
        assert self.callback is not None
        envelope, call_id, query = self.envelope, self.context.call_id, self.callback.query
        return CallbackRedelivery(
            task=self.task.name,
            call_id=call_id,
            body=self.callback.body,
            options=replace(
                self.task.delivery_options.publish,
                retries=envelope.retries,
                delay_ms=delay_ms,
                deduplication_id=once(call_id, f"snoozed {query.snoozed}"),
            ),
            envelope=envelope,
            query=replace(query, snoozed=query.snoozed + 1),
        )


class LlmCallbackHandler:
    """Reads callbacks and decides what follows. `results` stores the calls that are too large for a header."""

    def __init__(self, results: ResultBackend | None, clock: Clock) -> None:
        self._results = results
        self._clock = clock

    async def read(self, task: BaseTask[..., Any], delivery: Delivery, invoke: Invoke | None) -> Attempt:
        """The attempt that a verified callback starts: its query and body are signed, the header `call` is not.

        Raises PayloadError for a malformed callback, TamperedError for a header that does not match the signed URL.
        """
        if not isinstance(task, LlmTask):
            raise PayloadError(f"{task.name} is not a task for a language model, so its URL has no query")
        query, content = callback_url.read(delivery.query), read_body(delivery.body)
        text = delivery.call or await self._stored_text(query.digest)
        if text is None:
            empty = Envelope(query.call_id, retries=task.completion.delivery_options.retries)
            callback = Callback(query, content, empty, delivery.body, is_lost=True)
        else:
            stored = None if delivery.call else StoredCall(model_request.key_of(query.digest), text)
            callback = Callback(query, content, _checked_envelope(query, text), delivery.body, stored)
        context = context_of(task.name, delivery, callback.envelope, self._clock)
        return Attempt(
            task=task,
            context=callback.adjusted(context),
            envelope=callback.envelope,
            invoke=invoke,
            decide=functools.partial(self._decide, task, callback),
            source=callback.source,
            stored=callback.stored,
            is_superseded=callback.repeats_failure_callback,  # the failure callback reports the same failure
            is_brief=callback.is_interim,
            can_expire=callback.content.is_answer,  # only an answer runs the completion
            refused=callback.refused,
        )

    async def _decide(
        self, task: LlmTask[..., Any], callback: Callback, attempt: Attempt, execution: Execution
    ) -> Decision:
        """Run the completion, ask the model again, or end the attempt."""
        try:
            if callback.is_lost:
                raise ResultError(
                    "the call is not in the header, and the result store no longer has it",
                    code=ErrorCode.MODEL_CALL_LOST,
                )
            attempt.arguments = task.arguments(attempt.envelope)
        except QTasksError as error:
            return attempt.unfit(error)
        if callback.content.is_answer:
            return await self._answered(task, callback, attempt, execution)
        if callback.is_interim and await self._has_ended(attempt.context.call_id):
            return Decision.duplicate(DispatchResponse.acknowledgement())
        refusal = _refusal(task, callback.content)
        attempt.error = refusal
        return Decision.of_model_failure(error_text(refusal), refusal.code, is_final=callback.query.failed)

    async def _answered(
        self, task: LlmTask[..., Any], callback: Callback, attempt: Attempt, execution: Execution
    ) -> Decision:
        context = attempt.context
        answer: ModelAnswer | None = None
        try:
            answer = provider_apis.read_answer(task.api, _document(callback.content.body), task.model)
            output = task.output.read(answer)
            usage = _total(answer.usage, callback.query.repair)
            values = task.completion.values(output, usage, attempt.arguments)
        except QTasksError as error:
            is_unfit = isinstance(error, OutputError) and error.code == ErrorCode.MODEL_OUTPUT_UNFIT
            if answer is not None and is_unfit and callback.query.repair is None:
                return await self._repaired(task, callback, attempt, execution, answer, error)
            return attempt.unfit(error)
        if answer.cut_off:
            log.warning(
                "the answer to %s was cut off at max_tokens", context.task, extra=log_fields(context, "cut_off")
            )
        run = CompletionRun(task.completion, values, context, attempt.envelope, callback)
        return await execution.run(attempt, run)

    async def _repaired(
        self,
        task: LlmTask[..., Any],
        callback: Callback,
        attempt: Attempt,
        execution: Execution,
        answer: ModelAnswer,
        error: QTasksError,
    ) -> Decision:
        """Ask the model once more: the request also contains the first answer and its errors."""
        attempt.error = error
        repair = Repair(callback.content.message_id, answer.usage.input_tokens, answer.usage.output_tokens)
        try:
            request = json.loads(callback.content.request)
            complaint = task.output.complaint(error.message)
            message = task.repair_request(attempt.envelope, task.api.repair(request, answer, complaint), repair)
        except (ValueError, TypeError, KeyError):  # the callback does not contain the request, or a malformed one
            return Decision.of_unfit_call(attempt.context, error)
        except QTasksError as failure:
            return Decision.of_unfit_call(attempt.context, failure)
        return await execution.republish(attempt, message, error_text(error), action="repaired")

    async def _stored_text(self, digest: str) -> str | None:
        """The call that the result store has for a digest."""
        record = await self._read(model_request.key_of(digest))
        return None if record is None else record.value

    async def _has_ended(self, call_id: str) -> bool:
        """True if the call has ended already: callbacks may arrive in another order."""
        record = await self._read(call_id)
        return record is not None and record.status.is_final

    async def _read(self, key: str) -> ResultRecord | None:
        if self._results is None:
            return None
        try:
            return await read_record(self._results, key)
        except ResultError as error:
            log.error("the stored call cannot be read: %s", error.message, extra={"action": "result_lost"})
            return None


def _checked_envelope(query: CallbackQuery, text: str) -> Envelope:
    """The call in the header `text`. Raises TamperedError if the signed URL has the hash of another header."""
    if not hmac.compare_digest(model_request.digest(text), query.digest):
        raise envelopes.TamperedError(
            f"the header {model_request.HEADER} does not match the hash in the signed URL",
            code=ErrorCode.MODEL_CALL_TAMPERED,
        )
    envelope = model_request.decode(text)
    if envelope.call_id != query.call_id:
        raise PayloadError("the URL and the header belong to different calls", code=ErrorCode.CALLBACK_INVALID)
    return envelope


def _document(body: bytes) -> object:
    """The JSON of a provider's response; the text itself if it is not JSON."""
    try:
        return strict_json.loads(body, max_depth=MAX_DEPTH, big_integers=True)
    except ValueError:
        return body.decode(errors="replace")


def _refusal(task: LlmTask[..., Any], content: CallbackBody) -> ProviderError:
    """The error for a response that is not an answer."""
    name = task.provider.name
    if content.status == 0:
        detail = content.error or "the reason is unknown"
        return ProviderError(f"{name} could not be reached: {detail}", status=0, detail=detail)
    document = _document(content.body)
    reason = document.get("error", document) if isinstance(document, dict) else document
    reason = reason.get("message", reason) if isinstance(reason, dict) else reason
    text = reason if isinstance(reason, str) else json.dumps(reason)
    detail = task.provider.without_key(text, os.environ)[:MAX_DETAIL]
    return ProviderError(f"{name} answered {content.status}: {detail}", status=content.status, detail=detail)


def _total(usage: Usage, repair: Repair | None) -> Usage:
    """The usage of both requests if the answer is that of a repair."""
    if repair is None:
        return usage
    return Usage(
        usage.model, usage.input_tokens + repair.input_tokens, usage.output_tokens + repair.output_tokens, requests=2
    )
