"""A task whose work a language model does: its function builds the request, at the call."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, Unpack, overload

from qtasks.error_codes import ErrorCode
from qtasks.errors import ArgumentsError, DefinitionError
from qtasks.protocol import wire
from qtasks.protocol.messages import MAX_BODY, PublishOptions
from qtasks.tasks import options as call_options
from qtasks.tasks.decorators import check_name
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.encode.parameters import TaskParameters, Values, read_parameters
from qtasks.tasks.llm import llm_options as llm_options
from qtasks.tasks.llm import provider_apis
from qtasks.tasks.llm.callback_url import Repair
from qtasks.tasks.llm.chat_messages import ChatMessage
from qtasks.tasks.llm.completion import (
    Completion,
    CompletionDecorator,
    CompletionParams,
    CompletionSlot,
    Returned,
)
from qtasks.tasks.llm.llm_options import MODEL_OPTIONS, LlmCallOptions
from qtasks.tasks.llm.model_request import ModelRequest
from qtasks.tasks.llm.output import Output
from qtasks.tasks.llm.providers import Provider
from qtasks.tasks.options import AttemptOptions, DeliveryOptions
from qtasks.tasks.task import Task

if TYPE_CHECKING:
    from typing import Self

    from qtasks.tasks.results.unique import Unique
    from qtasks.tasks.send.runtime_port import Runtime

P = ParamSpec("P")
T = TypeVar("T")


class LlmTask(Task[P, T]):
    """A task that a language model does. Made by `@tasks.llm`; calling it builds the messages, and asks nobody."""

    asks = True

    def __init__(
        self,
        bound: Callable[[], Runtime],
        function: Callable[P, Any],
        *,
        name: str,
        options: Mapping[str, Any],
        inherit: LlmTask[P, T] | None = None,
    ) -> None:
        super().__init__(bound, function, name=name, options=options, inherit=inherit)
        self.completions: CompletionSlot[T] = CompletionSlot(self) if inherit is None else inherit.completions
        self.provider: Provider = options["provider"]
        self.model: str = options["model"]
        self.output: Output[T] = options["output"]
        self.api = provider_apis.api_of(self.provider)

    if TYPE_CHECKING:

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Sequence[ChatMessage]:  # noqa: D102 - as of Task
            ...

    def using(self, **options: Unpack[LlmCallOptions]) -> Self:
        """See `Task.using`; besides, another `model` of the same provider, and what the model is told."""
        return self._using(options)

    @overload
    def on_completion(
        self, function: Callable[Concatenate[T, CompletionParams], Returned], /
    ) -> Callable[Concatenate[T, CompletionParams], Returned]: ...
    @overload
    def on_completion(self, function: None = None, /, **options: Unpack[AttemptOptions]) -> CompletionDecorator[T]: ...
    def on_completion(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Have `function` run with every answer that fits: ``@summarise.on_completion`` or with options of its own.

        It gets the output first and then whichever arguments of the call it names; it may ask for `usage: Usage`,
        for ``ctx: TaskContext = injected``, and for `Depends`. It is retried as a task is, and the call has succeeded
        once it has returned. Raises DefinitionError for a second one.
        """
        if function is None:
            return functools.partial(self.completions.take, options=options)
        return self.completions.take(function, options={})

    @property
    def completion(self) -> Completion[T]:
        """What runs with the answer."""
        return self.completions.taken

    @functools.cached_property
    def parameters(self) -> TaskParameters:
        """See `BaseTask.parameters`: the arguments are those of the function, the result is the output."""
        if self._origin is not None:
            return self._origin.parameters
        made = read_parameters(self.name, self.function, returns=self.output.annotation)
        if asked := [*made.contexts, *(parameter.name for parameter in made.dependencies)]:
            raise DefinitionError(
                f"{self.name}: nothing can fill {asked[0]!r}, for the function runs where the call is made",
                fix="let @task.on_completion ask for it",
                code=ErrorCode.COMPLETION_INVALID,
            )
        return made

    def ready(self) -> None:
        """See `Task.ready`."""
        super().ready()
        if not self.output.is_text:
            _ = self.output.schema
        _ = self.completion.parameters

    def message(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], call_id: str | None = None) -> ModelRequest:
        """See `Task.message`: a request for the provider, made of the messages that the function makes."""
        checked = self.parameters.check(self.parameters.bind(args, kwargs))
        plain = self.carrying(checked, len(args), call_id)
        messages = self.parameters.call(self.function, checked)
        envelope = replace(plain.envelope, call_id=plain.call_id)
        return self._asking(envelope, messages, plain.options, plain.queue, plain.unique)

    def follow_up(self, envelope: Envelope, call_id: str, value: Any) -> ModelRequest:
        """See `BaseTask.follow_up`: a call that was delivered, such as a step of a flow, continues as the request."""
        envelope = replace(envelope, call_id=call_id)
        return self._asking(envelope, value, self._again(envelope, "asked"), self.delivery_options.queue)

    def repair_request(self, envelope: Envelope, request: Mapping[str, Any], repair: Repair) -> ModelRequest:
        """The second request of a call, with `request` as its body."""
        return self._question(envelope, request, self._again(envelope, "repaired"), repair=repair)

    def arguments(self, envelope: Envelope) -> Values:
        """The arguments of a call as plain JSON values, defaults included. Raises ArgumentsError."""
        given = self.parameters.check(self.parameters.bind(envelope.args, envelope.kwargs), from_wire=True)
        return self.parameters.to_json(self.parameters.check({**self.parameters.defaults, **given}))

    def _again(self, envelope: Envelope, what: str) -> PublishOptions:
        """The options of a call, for what is sent for it once, by whichever delivery of it comes first."""
        said = wire.read(envelope.options.items()) if envelope.options else self.delivery_options.publish
        once = hashlib.sha256(f"{envelope.call_id} {what}".encode()).hexdigest()
        return replace(said, delay_ms=None, not_before_s=None, deduplication_id=once)

    def _asking(
        self,
        envelope: Envelope,
        messages: Any,
        options: PublishOptions,
        queue: str | None,
        unique: Unique | None = None,
    ) -> ModelRequest:
        said = {name: self.options[name] for name in MODEL_OPTIONS if name in self.options}
        request = self.api.request(self.model, self._checked(messages), self.output, said)
        how = self.completion.delivery_options
        back = replace(
            envelope,
            retries=how.retries,
            timeout_ms=how.publish.timeout_ms,
            retry_delay=how.publish.retry_delay if how.jitter else None,
            jitter=how.jitter,
            snoozed=0,
        )
        return self._question(back, request, options, queue=queue, unique=unique)

    def _question(
        self,
        envelope: Envelope,
        request: Mapping[str, Any],
        options: PublishOptions,
        *,
        queue: str | None = None,
        unique: Unique | None = None,
        repair: Repair | None = None,
    ) -> ModelRequest:
        assert envelope.call_id is not None
        try:
            body = json.dumps(request, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise self._misfit(f"they cannot be written as JSON: {error}") from None
        if len(body) > MAX_BODY:
            raise ArgumentsError(
                f"{self.name}: the request to {self.model} has {len(body):,} bytes; {MAX_BODY:,} are allowed",
                code=ErrorCode.CALL_TOO_LARGE,
            )
        how = self.completion.delivery_options
        return ModelRequest(
            task=self.name,
            call_id=envelope.call_id,
            body=body,
            options=options,
            queue=queue,
            envelope=envelope,
            unique=unique,
            url=self.provider.url,
            key=self.provider.headers(os.environ, keyless=not self.runtime.model_keys),
            completion=replace(how.publish, retries=how.retries),
            repair=repair,
        )

    def _checked(self, messages: Any) -> Sequence[ChatMessage]:
        """What the function returned, if it is messages. Raises ArgumentsError."""
        if not isinstance(messages, (list, tuple)) or not messages:
            raise self._misfit(f"a list of messages is wanted, not {type(messages).__name__}")
        for message in messages:
            if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
                raise self._misfit("each of them has a role and a content")
        return messages

    def _misfit(self, reason: str) -> ArgumentsError:
        return ArgumentsError(
            f"{self.name}: what the function returned cannot be asked: {reason}",
            fix='return [system("..."), user("...")], made with qtasks.llm',
            code=ErrorCode.MODEL_MESSAGES_INVALID,
        )

    def for_flow(self) -> DeliveryOptions:
        """See `Task.for_flow`. Raises DefinitionError for what a call does not carry through a flow."""
        for name in ("model", *MODEL_OPTIONS):
            if self._origin is not None and self.options.get(name) != self._origin.options.get(name):
                raise DefinitionError(
                    f"{self.name}: {name} of a single call does not travel in a flow",
                    fix="declare another task for it",
                    code=ErrorCode.OPTION_INVALID,
                )
        return super().for_flow()

    def _check(self, options: Mapping[str, Any], merged: Mapping[str, Any]) -> None:
        allowed = tuple(LlmCallOptions.__annotations__)
        call_options.check(self.name, options, allowed=allowed, merged=merged)
        llm_options.check(self.name, options, self.api.settings, self.provider.kind)


class LlmDecorator(Protocol, Generic[T]):
    """What ``@tasks.llm(...)`` returns: makes an LLM task of a function that builds messages."""

    def __call__(self, function: Callable[P, Sequence[ChatMessage]], /) -> LlmTask[P, T]:
        """Make the task."""
        ...


def make_llm_task(
    bound: Callable[[], Runtime], function: Callable[..., Any], *, name: str, options: Mapping[str, Any]
) -> LlmTask[..., Any]:
    """An LLM task of `function`; `options` are those of the decorator. Raises DefinitionError for what cannot work."""
    if not inspect.isfunction(function) or inspect.iscoroutinefunction(function):
        raise DefinitionError(
            f"{function!r} is not a function written with def: it builds the messages where the call is made",
            fix="fetch what it needs before, and pass it",
            code=ErrorCode.NOT_A_FUNCTION,
        )
    provider = options["provider"]
    if not isinstance(provider, Provider) or not isinstance(options["model"], str) or not options["model"]:
        raise DefinitionError(
            f"{name}: provider={provider!r}, model={options['model']!r}: one of qtasks.llm and a name are wanted",
            fix='@tasks.llm(provider=openai(), model="gpt-4o-mini")',
            code=ErrorCode.OPTION_INVALID,
        )
    said = {key: value for key, value in options.items() if key not in ("provider", "model", "output")}
    call_options.check(check_name(name), said, allowed=tuple(llm_options.LlmOptions.__annotations__))
    llm_options.check(name, said, provider_apis.api_of(provider).settings, provider.kind)
    output: Output[Any] = Output(str if options["output"] is None else options["output"], task=name)
    return LlmTask(bound, function, name=name, options={**options, "output": output})
