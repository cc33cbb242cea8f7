"""LLM tasks: the function builds the chat messages when the call is sent; a language model does the work."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, Unpack, overload

from qtasks.error_codes import ErrorCode
from qtasks.errors import ArgumentsError, DefinitionError
from qtasks.lazy import lazy_property
from qtasks.protocol import wire
from qtasks.protocol.labels.argument_labels import labels_of
from qtasks.protocol.messages import MAX_BODY, PublishOptions
from qtasks.tasks import options as call_options
from qtasks.tasks.codec import AS_JSON, WireForm
from qtasks.tasks.decorators import check_name
from qtasks.tasks.encode.envelope import COMPACT, Envelope
from qtasks.tasks.encode.parameter_reader import read_parameters
from qtasks.tasks.encode.parameters import TaskParameters, Values
from qtasks.tasks.llm import llm_options, provider_apis
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
from qtasks.tasks.send.outgoing import once
from qtasks.tasks.task import Task

if TYPE_CHECKING:
    from typing import Self

    from qtasks.tasks.results.unique import Unique
    from qtasks.tasks.send.runtime_port import Runtime

P = ParamSpec("P")
T = TypeVar("T")


class LlmTask(Task[P, T]):
    """A task that a language model carries out. `@tasks.llm` makes one.

    ``summarise(text)`` only builds the messages; ``summarise.delay(text)`` sends them to the model.
    """

    is_llm = True

    def __init__(
        self,
        get_runtime: Callable[[], Runtime],
        function: Callable[P, Any],
        *,
        name: str,
        options: Mapping[str, Any],
        inherit: LlmTask[P, T] | None = None,
    ) -> None:
        super().__init__(get_runtime, function, name=name, options=options, inherit=inherit)
        self.provider: Provider = options["provider"]
        self.model: str = options["model"]
        self.output: Output[T] = options["output"]
        self.completions: CompletionSlot[T] = (
            CompletionSlot(self, self.output) if inherit is None else inherit.completions
        )
        self.api = provider_apis.api_of(self.provider)

    if TYPE_CHECKING:

        def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Sequence[ChatMessage]:  # noqa: D102 - see Task
            ...

    def using(self, **options: Unpack[LlmCallOptions]) -> Self:
        """See `Task.using`; in addition, another `model` of the same provider, and options of the request to it."""
        return self._using(options)

    @overload
    def on_completion(
        self, function: Callable[Concatenate[T, CompletionParams], Returned], /
    ) -> Callable[Concatenate[T, CompletionParams], Returned]: ...
    @overload
    def on_completion(self, function: None = None, /, **options: Unpack[AttemptOptions]) -> CompletionDecorator[T]: ...
    def on_completion(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Run `function` with every valid answer: ``@summarise.on_completion``, also with options for its attempts.

        Its first parameter is the output. Further parameters have the names of arguments of the call; it can also take
        ``usage: Usage``, ``ctx: TaskContext = injected``, and dependencies (`Depends`). It is retried as a task is. The
        call has succeeded when it has returned; the output is the result. Raises DefinitionError for a second one.
        """
        if function is None:
            return functools.partial(self.completions.declare, options=options)
        return self.completions.declare(function, options={})

    @property
    def completion(self) -> Completion[T]:
        """The task that runs with the answer."""
        return self.completions.completion

    @lazy_property
    def parameters(self) -> TaskParameters:
        """See `BaseTask.parameters`: the arguments are those of the function, the result is the output."""
        if self._origin is not None:
            return self._origin.parameters
        own = read_parameters(self.name, self.__wrapped__, returns=self.output.annotation)
        if injected := [*own.contexts, *(parameter.name for parameter in own.dependencies)]:
            raise DefinitionError(
                f"{self.name}: {injected[0]!r} cannot be injected, because the function runs in the process that sends "
                "the call",
                fix="use it in the function of @task.on_completion",
                code=ErrorCode.COMPLETION_INVALID,
            )
        return own

    def wire_form(self) -> WireForm:
        """See `BaseTask.wire_form`: JSON, also if the application has a codec. Raises DefinitionError."""
        if super().wire_form().encrypts:
            raise llm_options.not_encryptable(self.name)
        return AS_JSON

    def ready(self) -> None:
        """See `Task.ready`."""
        super().ready()
        if not self.output.is_text:
            _ = self.output.schema
        _ = self.completion.parameters

    def message(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], call_id: str | None = None) -> ModelRequest:
        """See `BaseTask.message`: a request to the provider, with the messages that the function returns."""
        checked = self.parameters.check(self.parameters.bind(args, kwargs))
        plain = self.message_with(checked, len(args), call_id)
        messages = self.parameters.call(self.__wrapped__, checked)
        envelope = plain.envelope._replace(call_id=plain.call_id)
        request = self._first_request(envelope, messages, plain.options, plain.queue, plain.unique)
        return replace(request, own_deduplication=plain.own_deduplication)

    def follow_up(self, envelope: Envelope, call_id: str, value: Any) -> ModelRequest:
        """See `BaseTask.follow_up`: a call that was delivered, such as a step of a flow, continues as the request."""
        envelope = envelope._replace(call_id=call_id)
        return self._first_request(envelope, value, self._once(envelope, "asked"), self.delivery_options.queue)

    def repair_request(self, envelope: Envelope, request: Mapping[str, Any], repair: Repair) -> ModelRequest:
        """The second request of a call, with `request` as its body and `repair` in its callback URL."""
        return self._request(envelope, request, self._once(envelope, "repaired"), repair=repair)

    def arguments(self, envelope: Envelope) -> Values:
        """The arguments of a call as plain JSON values, defaults included. Raises ArgumentsError."""
        values = self.parameters.check(self.parameters.bind(envelope.args, envelope.kwargs), from_wire=True)
        return self.parameters.to_json(self.parameters.check({**self.parameters.defaults, **values}))

    def _once(self, envelope: Envelope, step: str) -> PublishOptions:
        """The options of a message that several deliveries of a call may send: the broker takes the first one."""
        options = wire.read(envelope.options.items()) if envelope.options else self.delivery_options.publish
        return replace(options, delay_ms=None, not_before_s=None, deduplication_id=once(envelope.call_id or "", step))

    def _first_request(
        self,
        envelope: Envelope,
        messages: Any,
        options: PublishOptions,
        queue: str | None,
        unique: Unique | None = None,
    ) -> ModelRequest:
        model_options = {name: self.options[name] for name in MODEL_OPTIONS if name in self.options}
        request = self.api.request(self.model, self._checked(messages), self.output, model_options)
        # From here on the envelope is that of the callback, so its attempts are those of the completion.
        completion = self.completion.delivery_options
        envelope = envelope._replace(
            retries=completion.retries,
            timeout_ms=completion.publish.timeout_ms,
            retry_delay=completion.publish.retry_delay if completion.jitter else None,
            jitter=completion.jitter,
            snoozed=0,
        )
        return self._request(envelope, request, options, queue=queue, unique=unique)

    def _request(
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
            body = COMPACT.encode(request).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise self._invalid_messages(f"the messages cannot be written as JSON: {error}") from None
        if len(body) > MAX_BODY:
            raise ArgumentsError(
                f"{self.name}: the request to {self.model} has {len(body):,} bytes; {MAX_BODY:,} are allowed",
                code=ErrorCode.CALL_TOO_LARGE,
            )
        completion = self.completion.delivery_options
        return ModelRequest(
            task=self.name,
            call_id=envelope.call_id,
            body=body,
            options=options,
            queue=queue,
            envelope=envelope,
            unique=unique,
            argument_labels=labels_of(self.searchable, envelope.args, envelope.kwargs),
            url=self.provider.url,
            authorization=self.provider.headers(os.environ, keyless=not self.runtime.model_keys),
            completion=replace(completion.publish, retries=completion.retries),
            repair=repair,
        )

    def _checked(self, messages: Any) -> Sequence[ChatMessage]:
        """`messages`, if the function returned a list of chat messages. Raises ArgumentsError if not."""
        if not isinstance(messages, (list, tuple)) or not messages:
            raise self._invalid_messages(f"expected a list of messages, not {type(messages).__name__}")
        for message in messages:
            if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
                raise self._invalid_messages("each message needs a role and a content")
        return messages

    def _invalid_messages(self, reason: str) -> ArgumentsError:
        return ArgumentsError(
            f"{self.name}: the function did not return chat messages: {reason}",
            fix='return [system("..."), user("...")], made with qtasks.llm',
            code=ErrorCode.MODEL_MESSAGES_INVALID,
        )

    def for_flow(self) -> DeliveryOptions:
        """See `BaseTask.for_flow`. Raises DefinitionError for model options from `using`: a step cannot carry them."""
        for name in ("model", *MODEL_OPTIONS):
            if self._origin is not None and self.options.get(name) != self._origin.options.get(name):
                raise DefinitionError(
                    f"{self.name}: {name} of one call cannot be set for a step of a flow",
                    fix="declare another task with it",
                    code=ErrorCode.OPTION_INVALID,
                )
        return super().for_flow()

    def _check(self, options: Mapping[str, Any], merged: Mapping[str, Any]) -> None:
        allowed = tuple(LlmCallOptions.__annotations__)
        call_options.check(self.name, options, allowed=allowed, merged=merged)
        llm_options.check(self.name, options, self.api.settings, self.provider.kind)


class LlmDecorator(Protocol, Generic[T]):
    """The type of ``@tasks.llm(...)``: turns a function that returns chat messages into an LLM task."""

    def __call__(self, function: Callable[P, Sequence[ChatMessage]], /) -> LlmTask[P, T]:
        """Turn `function` into an LLM task."""
        ...


def make_llm_task(
    get_runtime: Callable[[], Runtime], function: Callable[..., Any], *, name: str, options: Mapping[str, Any]
) -> LlmTask[..., Any]:
    """Turn `function` into an LLM task; `options` are those of the decorator. Raises DefinitionError."""
    if not inspect.isfunction(function) or inspect.iscoroutinefunction(function):
        raise DefinitionError(
            f"{function!r} is not a function written with def, which builds the messages when the call is sent",
            fix="fetch data before the call, and pass it as an argument",
            code=ErrorCode.NOT_A_FUNCTION,
        )
    provider = options["provider"]
    if not isinstance(provider, Provider) or not isinstance(options["model"], str) or not options["model"]:
        raise DefinitionError(
            f"{name}: provider={provider!r}, model={options['model']!r}: expected a provider of qtasks.llm "
            "and a model name",
            fix='@tasks.llm(provider=openai(), model="gpt-4o-mini")',
            code=ErrorCode.OPTION_INVALID,
        )
    call_defaults = {key: value for key, value in options.items() if key not in ("provider", "model", "output")}
    call_options.check(check_name(name), call_defaults, allowed=tuple(llm_options.LlmOptions.__annotations__))
    llm_options.check(name, call_defaults, provider_apis.api_of(provider).settings, provider.kind)
    output: Output[Any] = Output(str if options["output"] is None else options["output"], task=name)
    return LlmTask(get_runtime, function, name=name, options={**options, "output": output})
