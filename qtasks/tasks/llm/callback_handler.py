"""What becomes of a call when the broker tells of its model: the completion runs, or asks again, or the call fails.

The broker tells of every attempt to reach the provider, and once more when it has given up. Only the URL and the body
of what it says are signed. The call itself travels in a header, so it is compared with its hash in the URL before
anything of it is read; the provider's answer is in the body, and is nobody's word but the provider's.
"""

from __future__ import annotations

import functools
import hashlib
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
from qtasks.tasks.send.outgoing import Kept
from qtasks.tasks.task import Task

log = logging.getLogger("qtasks.dispatch")

MAX_DETAIL = 500
"""Characters of a provider's words in an error."""

MAX_DEPTH = 128
"""Levels of an answer; our own envelopes have fewer, but an answer is of the user's making."""


@dataclass(frozen=True, slots=True)
class CompletionRun(Run):
    """A run of a completion, for `callback`."""

    callback: Callback | None = field(default=None, repr=False)

    def again(self, delay_ms: int) -> CallbackRedelivery:
        """See `Run.again`: the same callback, later."""
        assert self.callback is not None
        envelope, call_id, came = self.envelope, self.context.call_id, self.callback.query
        once = hashlib.sha256(f"{call_id} snoozed {came.snoozed}".encode()).hexdigest()
        return CallbackRedelivery(
            task=self.task.name,
            call_id=call_id,
            body=self.callback.body,
            options=replace(
                self.task.delivery_options.publish, retries=envelope.retries, delay_ms=delay_ms, deduplication_id=once
            ),
            envelope=envelope,
            query=replace(came, snoozed=came.snoozed + 1),
        )


class LlmCallbackHandler:
    """Reads callbacks and decides what they lead to. `results` are asked for calls that were too large to travel."""

    def __init__(self, results: ResultBackend | None, clock: Clock) -> None:
        self._results = results
        self._clock = clock

    async def read(self, task: Task[..., Any], delivery: Delivery, invoke: Invoke | None) -> Attempt:
        """The attempt that a verified callback starts: its query and body are signed, the header `call` is not.

        Raises PayloadError for a malformed callback, TamperedError for a header that does not match the signed URL.
        """
        if not isinstance(task, LlmTask):
            raise PayloadError(f"{task.name} asks no language model, so its URL has no query")
        query, content = callback_url.read(delivery.query), read_body(delivery.body)
        text = delivery.call or await self._kept(query.digest)
        if text is None:
            empty = Envelope(query.call_id, retries=task.completion.delivery_options.retries)
            callback = Callback(query, content, empty, delivery.body, is_lost=True)
        else:
            kept = None if delivery.call else Kept(model_request.key_of(query.digest), text)
            callback = Callback(query, content, _vouched_envelope(query, text), delivery.body, kept)
        context = context_of(task.name, delivery, callback.envelope, self._clock)
        return Attempt(
            task=task,
            context=callback.adjusted(context),
            envelope=callback.envelope,
            invoke=invoke,
            decide=functools.partial(self._decide, task, callback),
            source=callback.source,
            stored=callback.kept,
            is_superseded=callback.is_last_of_many,  # the failure callback reports the same failure
            is_brief=callback.is_news,
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
                    "the call is neither in the header nor kept by the result backend any more",
                    code=ErrorCode.MODEL_CALL_LOST,
                )
            attempt.arguments = task.arguments(attempt.envelope)
        except QTasksError as error:
            return attempt.unfit(error)
        if callback.content.is_answer:
            return await self._answered(task, callback, attempt, execution)
        if callback.is_news and await self._has_ended(attempt.context.call_id):
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
        """Ask the model once more, with what is wrong."""
        attempt.error = error
        spent = Repair(callback.content.message_id, answer.usage.input_tokens, answer.usage.output_tokens)
        try:
            request = json.loads(callback.content.request)
            complaint = task.output.complaint(error.message)
            message = task.asking_again(attempt.envelope, task.api.repair(request, answer, complaint), spent)
        except (ValueError, TypeError, KeyError):  # the request is missing, or the answer is no part of it
            return Decision.of_unfit_call(attempt.context, error)
        except QTasksError as failure:
            return Decision.of_unfit_call(attempt.context, failure)
        return await execution.republish(attempt, message, error_text(error), action="repaired")

    async def _kept(self, digest: str) -> str | None:
        """What the result backend keeps under a digest."""
        record = await self._read(model_request.key_of(digest))
        return None if record is None else record.value

    async def _has_ended(self, call_id: str) -> bool:
        """Whether the call has come to its end already: callbacks may overtake each other."""
        record = await self._read(call_id)
        return record is not None and record.status.is_final

    async def _read(self, key: str) -> ResultRecord | None:
        if self._results is None:
            return None
        try:
            return await read_record(self._results, key)
        except ResultError:
            log.exception("what is kept of a call could not be read", extra={"action": "result_lost"})
            return None


def _vouched_envelope(query: CallbackQuery, text: str) -> Envelope:
    """The call that a callback carries beside its signed URL, which has the digest of `text`."""
    if not hmac.compare_digest(model_request.digest(text), query.digest):
        raise envelopes.TamperedError(
            f"the header {model_request.HEADER} is not the one that the signed URL vouches for",
            code=ErrorCode.MODEL_CALL_TAMPERED,
        )
    envelope = model_request.read(text)
    if envelope.call_id != query.call_id:
        raise PayloadError("the URL and the header are of two calls", code=ErrorCode.CALLBACK_INVALID)
    return envelope


def _document(body: bytes) -> object:
    """The JSON of a provider's answer; its text where it is none."""
    try:
        return strict_json.loads(body, max_depth=MAX_DEPTH, big_integers=True)
    except ValueError:
        return body.decode(errors="replace")


def _refusal(task: LlmTask[..., Any], content: CallbackBody) -> ProviderError:
    """What a provider has to say for itself."""
    name = task.provider.name
    if content.status == 0:
        detail = content.error or "no reason is known"
        return ProviderError(f"{name} could not be asked: {detail}", status=0, detail=detail)
    document = _document(content.body)
    said = document.get("error", document) if isinstance(document, dict) else document
    said = said.get("message", said) if isinstance(said, dict) else said
    text = said if isinstance(said, str) else json.dumps(said)
    detail = task.provider.without_key(text, os.environ)[:MAX_DETAIL]
    return ProviderError(f"{name} answered {content.status}: {detail}", status=content.status, detail=detail)


def _total(usage: Usage, repair: Repair | None) -> Usage:
    if repair is None:
        return usage
    return Usage(
        usage.model, usage.input_tokens + repair.input_tokens, usage.output_tokens + repair.output_tokens, requests=2
    )
