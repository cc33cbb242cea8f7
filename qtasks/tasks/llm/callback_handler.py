"""What becomes of a call when the broker tells of its model: the completion runs, or asks again, or the call fails.

The broker tells of every attempt to reach the provider, and once more when it has given up. Only the URL and the body
of what it says are signed. The call itself travels in a header, so it is compared with its hash in the URL before
anything of it is read; the provider's answer is in the body, and is nobody's word but the provider's.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import os
from dataclasses import dataclass, field, replace
from typing import Any

from qtasks.error_codes import ErrorCode
from qtasks.errors import OutputError, PayloadError, ProviderError, QTasksError, ResultError
from qtasks.protocol import strict_json
from qtasks.tasks.context import TaskContext
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.encode.parameters import Values
from qtasks.tasks.llm import callback_url, model_request, provider_apis
from qtasks.tasks.llm.callback import Callback, CallbackBody, read_body
from qtasks.tasks.llm.callback_url import Repair
from qtasks.tasks.llm.chat_messages import Usage
from qtasks.tasks.llm.llm_task import LlmTask
from qtasks.tasks.llm.model_request import CallbackRedelivery
from qtasks.tasks.llm.provider_apis import ModelAnswer
from qtasks.tasks.results.backend import Record, ResultBackend
from qtasks.tasks.run import decision, dispatch_response
from qtasks.tasks.run.attempts import Attempts
from qtasks.tasks.run.decision import Kind, Verdict
from qtasks.tasks.run.dispatch_response import Outcome
from qtasks.tasks.run.report import facts, text_of
from qtasks.tasks.run.runner import Invoke, Run
from qtasks.tasks.send.outgoing import Kept

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
    """Takes callbacks to their end. `results` are asked for calls that were too large to travel."""

    def __init__(self, attempts: Attempts, results: ResultBackend | None) -> None:
        self._attempts = attempts
        self._results = results

    async def read(self, task: LlmTask[..., Any], query: str, call: str, body: bytes) -> Callback:
        """The callback in a verified delivery to `task`: `query` and `body` are signed, the header `call` is not.

        Raises payload.TamperedError for a header that the URL does not vouch for, PayloadError for what is none.
        """
        found = callback_url.read(query)
        content = read_body(body)
        text = call or await self._kept(found.digest)
        if text is None:
            empty = Envelope(found.call_id, retries=task.completion.delivery_options.retries)
            return Callback(found, content, empty, body, is_lost=True)
        if not hmac.compare_digest(model_request.digest(text), found.digest):
            raise envelopes.TamperedError(
                f"the header {model_request.HEADER} is not the one that the signed URL vouches for",
                code=ErrorCode.MODEL_CALL_TAMPERED,
            )
        envelope = model_request.read(text)
        if envelope.call_id != found.call_id:
            raise PayloadError("the URL and the header are of two calls", code=ErrorCode.CALLBACK_INVALID)
        kept = None if call else Kept(model_request.key_of(found.digest), text)
        return Callback(found, content, envelope, body, kept)

    async def take(
        self, task: LlmTask[..., Any], callback: Callback, context: TaskContext, invoke: Invoke | None
    ) -> Outcome:
        """Do what a callback is for, and answer for it."""
        envelope = callback.envelope
        try:
            if callback.is_lost:
                raise ResultError(
                    "the call is neither in the header nor kept by the result backend any more",
                    code=ErrorCode.MODEL_CALL_LOST,
                )
            arguments = task.arguments(envelope)
        except QTasksError as error:
            ended = decision.of_call(context, error, text_of(error))
            return await self._attempts.conclude(task, context, envelope, ended, error)
        if callback.content.is_answer:
            return await self._answered(task, callback, context, arguments, invoke)
        if callback.is_news and await self._has_ended(context.call_id):
            return dispatch_response.known()
        refusal = _refusal(task, callback.content)
        kind = Kind.FAILED if callback.query.failed else Kind.RETRY
        ended = decision.model_failed(kind, text_of(refusal), refusal.code)
        return await self._attempts.conclude(task, context, envelope, ended, refusal, arguments)

    async def _answered(
        self,
        task: LlmTask[..., Any],
        callback: Callback,
        context: TaskContext,
        arguments: Values,
        invoke: Invoke | None,
    ) -> Outcome:
        answer: ModelAnswer | None = None
        try:
            answer = provider_apis.answered(task.api, _document(callback.content.body), task.model)
            output = task.output.read(answer)
            values = task.completion.values(output, _total(answer.usage, callback.query.repair), arguments)
        except QTasksError as error:
            unfit = isinstance(error, OutputError) and error.code == ErrorCode.MODEL_OUTPUT_UNFIT
            if answer is not None and unfit and callback.query.repair is None:
                ended = await self._repaired(task, callback, context, answer, error)
            else:
                ended = decision.of_call(context, error, text_of(error))
            return await self._attempts.conclude(task, context, callback.envelope, ended, error, arguments)
        if answer.cut_off:
            log.warning("the answer to %s was cut off at max_tokens", context.task, extra=facts(context, "cut_off"))
        run = CompletionRun(task.completion, values, context, callback.envelope, callback)
        return await self._attempts.make(run, invoke)

    async def _repaired(
        self, task: LlmTask[..., Any], callback: Callback, context: TaskContext, answer: ModelAnswer, error: QTasksError
    ) -> Verdict:
        """Ask once more, with what is wrong."""
        spent = Repair(callback.content.message_id, answer.usage.input_tokens, answer.usage.output_tokens)
        try:
            request = json.loads(callback.content.request)
            complaint = task.output.complaint(error.message)
            message = task.asking_again(callback.envelope, task.api.repair(request, answer, complaint), spent)
        except (ValueError, TypeError, KeyError):  # the request is missing, or the answer is no part of it
            return decision.of_call(context, error, text_of(error))
        except QTasksError as failure:
            return decision.of_call(context, failure, text_of(failure))
        return await self._attempts.go_on(context, message, text_of(error), how="repaired")

    async def _kept(self, digest: str) -> str | None:
        """What the result backend keeps under a digest."""
        record = await self._read(model_request.key_of(digest))
        return None if record is None else record.value

    async def _has_ended(self, call_id: str) -> bool:
        """Whether the call has come to its end already: callbacks may overtake each other."""
        record = await self._read(call_id)
        return record is not None and record.status.is_final

    async def _read(self, key: str) -> Record | None:
        if (results := self._results) is None:
            return None
        try:
            return await asyncio.to_thread(results.read, key) if results.blocking else results.read(key)
        except ResultError:
            log.exception("what is kept of a call could not be read", extra={"action": "result_lost"})
            return None


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
