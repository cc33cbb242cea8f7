"""A task as the framework needs it: a function with a name, options and parameters, whose calls can be sent."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, ParamSpec, TypeVar, Unpack

from qtasks.api_names import ApiNames
from qtasks.error_codes import ErrorCode
from qtasks.errors import ArgumentsError, ConfigurationError, DefinitionError
from qtasks.lazy import lazy_property
from qtasks.protocol import wire
from qtasks.protocol.labels.argument_labels import labels_of
from qtasks.protocol.messages import PublishOptions
from qtasks.tasks import definition as definitions
from qtasks.tasks import options as call_options
from qtasks.tasks.codec import WireForm
from qtasks.tasks.definition import Definition
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.encode.searchable import check_type
from qtasks.tasks.encode.unfit_parameters import check_texts
from qtasks.tasks.hooks import Hooks
from qtasks.tasks.options import CallOptions, DeliveryOptions
from qtasks.tasks.results.task_result import TaskResult
from qtasks.tasks.results.unique import Unique, key_of
from qtasks.tasks.retries import RetryPolicy
from qtasks.tasks.send import sender
from qtasks.tasks.send.batch import Batch
from qtasks.tasks.send.outgoing import Outgoing
from qtasks.tasks.send.runtime_port import Runtime

if TYPE_CHECKING:
    from typing import Self

    from qtasks.tasks.encode.argument_codec import ArgumentCodec
    from qtasks.tasks.encode.encoding import Encoding
    from qtasks.tasks.encode.parameters import TaskParameters, Values
    from qtasks.tasks.encode.pickling import Purpose
    from qtasks.tasks.encode.result_codec import ResultForm

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_TURN: Final = 100
"""Calls that are made on an event loop before it turns: a few milliseconds."""


class BaseTask(ApiNames, Generic[P, R]):
    """A function with a name, options and typed parameters, whose calls can be sent.

    `Task` adds hooks, flows, schedules, and the names that Celery and Django use.
    """

    _internal = frozenset(
        {
            "asend_message",
            "belongs_with",
            "codec",
            "declare",
            "declared",
            "declared_in",
            "definition",
            "delivery_options",
            "encoded",
            "encoding",
            "follow_up",
            "for_flow",
            "hooks",
            "is_llm",
            "message",
            "message_with",
            "not_encodable",
            "not_unique_in_flow",
            "own_options",
            "parameters",
            "ready",
            "result_form",
            "runtime",
            "searchable",
            "send_message",
            "wire_form",
        }
    )

    is_llm: ClassVar[bool] = False
    """True for LLM tasks: the function builds a request; a language model does the work."""

    is_async: bool = False
    """True if the function is an ``async def``."""

    def __init__(
        self,
        get_runtime: Callable[[], Runtime],
        function: Callable[P, Any],
        *,
        name: str,
        options: Mapping[str, Any],
        inherit: BaseTask[P, R] | None = None,
    ) -> None:
        self._wrap(function)
        self._get_runtime = get_runtime
        self.name = name
        """The name under which its calls are sent."""
        self.aliases: tuple[str, ...] = ()
        """Earlier names of the task, under which calls may still arrive."""
        self.__wrapped__: Callable[P, Any] = function
        """The function itself."""
        self.options: Mapping[str, Any] = MappingProxyType(dict(options))
        """The options of its calls: those of the declaration, overridden by those of `using`."""
        self.own_options: Mapping[str, Any] = MappingProxyType({})
        """The options that `using` gave."""
        self._origin = inherit
        """The declared task that this one is a copy of, made by `using`."""
        self.hooks: Hooks = inherit.hooks if inherit is not None else Hooks()
        self.definition: Definition = inherit.definition if inherit is not None else Definition(function)
        """Tells whether another function is this one, defined once more."""
        self.declared_in: str = inherit.declared_in if inherit is not None else function.__module__
        """The module whose code made the task of its function."""

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Run the function here and now, without the broker."""
        return self.__wrapped__(*args, **kwargs)

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Pickle the task by its name. Raises PicklingError if no name of a module leads to it."""
        if self._origin is not None:
            return _with_options, (self._origin, dict(self.own_options))
        for module in dict.fromkeys((self.__module__, self.declared_in)):
            if (path := definitions.path_to(self, module, self.__qualname__)) is not None:
                return path if module == self.__module__ else (definitions.resolved, (module, path))
        raise definitions.not_picklable(self.name, self.__wrapped__)

    def __copy__(self) -> Self:
        return self  # a task does not change, and there is one of each name

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def _wrap(self, function: Callable[..., Any]) -> None:
        """Take the name, the documentation and the attributes of `function`, but none that is a task's own."""
        functools.update_wrapper(self, function, updated=())
        self.__qualname__ = definitions.qualified_name(function)
        for name, value in definitions.vars_of(function).items():
            if not hasattr(type(self), name):
                self.__dict__[name] = value

    @property
    def function(self) -> Callable[P, Any]:
        """The function itself. From now on its qualified name is that of this attribute, so that `pickle` finds it."""
        function = self.__wrapped__
        if definitions.path_to(self, self.__module__, self.__qualname__) == self.__qualname__:
            definitions.make_picklable(function)
        return function

    @property
    def runtime(self) -> Runtime:
        """What the calls are sent through. Raises ConfigurationError if no application includes the task's router."""
        return self._get_runtime()

    def belongs_with(self, other: BaseTask[..., Any]) -> bool:
        """True if both were declared on the same application or router."""
        return self._get_runtime == other._get_runtime

    @lazy_property
    def parameters(self) -> TaskParameters:
        """The parameters of the function, read on first use, when every name in its annotations exists.

        Raises DefinitionError.
        """
        if self._origin is not None:
            return self._origin.parameters
        # Imported here, as in the properties below: it loads pydantic, and declaring a task does not need that.
        from qtasks.tasks.encode.parameter_reader import read_parameters

        return read_parameters(
            self.name,
            self.__wrapped__,
            pickled=self.delivery_options.form.pickled,
            reveals_secrets=self._encrypts,
        )

    @property
    def _encrypts(self) -> bool:
        """True if the task encrypts; False as long as its router is not included in an application that decides it."""
        declared = self.delivery_options.form.encrypts
        if declared is None:
            with contextlib.suppress(ConfigurationError):
                return bool(self.wire_form().encrypts)
        return bool(declared)

    @lazy_property
    def codec(self) -> ArgumentCodec:
        """Encodes and decodes the arguments of the task's calls. Raises DefinitionError, and as `encoding`."""
        if self._origin is not None:
            return self._origin.codec
        from qtasks.tasks.encode.argument_codec import ArgumentCodec

        return ArgumentCodec(self.parameters, (self.name, *self.aliases), self.encoding)

    @lazy_property
    def encoding(self) -> Encoding:
        """Writes and reads arguments and results in the form that the task declares, or its application.

        Raises as `wire_form`.
        """
        if self._origin is not None:
            return self._origin.encoding
        from qtasks.tasks.encode.encoding import Encoding

        return Encoding(self.wire_form(), lambda: self.runtime.keyring)

    def wire_form(self) -> WireForm:
        """The form of arguments and results that the task declares, or its application.

        Raises ConfigurationError if no application includes the task's router, DefinitionError for a form that this
        task cannot have.
        """
        return self.delivery_options.form.over(self.runtime.form)

    @lazy_property
    def searchable(self) -> Mapping[str, int | None]:
        """The parameters by whose values calls are found, each with its position; None: it is passed by name only.

        Raises DefinitionError, and as `wire_form`.
        """
        names, parameters = self.delivery_options.search, self.parameters
        if not names:
            return {}
        self.wire_form().check_searchable(self.name)
        for name in names:
            check_type(self.name, names, name, parameters.annotations[name])
        places = {name: place for place, name in enumerate(parameters.positional)}
        return {name: places.get(name) for name in names}

    @lazy_property
    def delivery_options(self) -> DeliveryOptions:
        """The options of this task in the protocol's form."""
        return call_options.delivery_options(self.name, self.options)

    @property
    def retry_policy(self) -> RetryPolicy | None:
        """The declared policy that decides which errors are retried, if there is one."""
        if self._origin is not None:
            return self._origin.retry_policy
        retries = self.options.get("retries")
        return retries if isinstance(retries, RetryPolicy) else None

    def using(self, **options: Unpack[CallOptions]) -> Self:
        """Return the same task with other options for its calls; this task does not change.

        ``resize.using(delay="10s", retries=5).delay(photo_id)``. Raises DefinitionError for an option that is unknown
        or not valid.
        """
        return self._using(options)

    def delay(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskResult[R]:
        """Queue a call of the task. Returns once the broker has stored the call.

        Raises ArgumentsError if the arguments do not fit the parameters, ConfigurationError if no broker is configured,
        BrokerUnreachable within 3 seconds (6 for a broker on another machine) if the broker does not answer, and
        ApiError if it refuses the call.
        """
        return self.send_message(self.message(args, kwargs))

    async def adelay(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskResult[R]:
        """As `delay`, without blocking the event loop."""
        return await self.asend_message(self.message(args, kwargs))

    def map(self, values: Iterable[Any]) -> list[TaskResult[R]]:
        """Queue one call for each value, as its first argument, in one batch; in an open batch they leave with it.

        Our broker gets 1,000 calls in a request, any other service 100. If one value does not fit the parameters, none
        of the calls is sent. Raises as `delay`, and PartlyRefused if the broker refuses some of the calls.
        """
        return self.starmap((value,) for value in values)

    async def amap(self, values: Iterable[Any]) -> list[TaskResult[R]]:
        """As `map`, without blocking the event loop."""
        return await self.astarmap((value,) for value in values)

    def starmap(self, calls: Iterable[Sequence[Any]]) -> list[TaskResult[R]]:
        """As `map`, with a sequence of positional arguments for each call."""
        messages = [self.message(tuple(args), {}) for args in calls]
        with Batch(self.runtime, joins=True):
            return [self.send_message(message) for message in messages]

    async def astarmap(self, calls: Iterable[Sequence[Any]]) -> list[TaskResult[R]]:
        """As `starmap`, without blocking the event loop."""
        messages = [self.message(tuple(args), {}) async for args in _in_turns(calls)]
        async with Batch(self.runtime, joins=True):
            return [await self.asend_message(message) async for message in _in_turns(messages)]

    def result(self, id: str) -> TaskResult[R]:  # noqa: A002 - the name it has on a TaskResult
        """The handle on an earlier call of this task, by its call id or its message id.

        It raises ResultError if the call is one of another task.
        """
        handle = TaskResult(self.runtime, self.result_form, task=self.name, id=id, message_id=None)
        return handle.of_task(self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of the task, and its earlier ones."""
        return (self.name, *(self if self._origin is None else self._origin).aliases)

    def result_form(self) -> ResultForm[R]:
        """Reads the stored results. Raises DefinitionError."""
        from qtasks.tasks.encode.result_codec import ResultForm

        return ResultForm(self.parameters.result, self.encoding)

    def for_flow(self) -> DeliveryOptions:
        """The options of a step of a flow. Raises DefinitionError for an option that a step cannot have."""
        if self.delivery_options.unique:
            raise self.not_unique_in_flow()
        return self.delivery_options

    def not_unique_in_flow(self) -> DefinitionError:
        """The error for a unique call in a flow: if an earlier call took its place, the flow would never go on."""
        return DefinitionError(f"{self.name}: a call in a flow cannot be unique", code=ErrorCode.FLOW_INVALID)

    def follow_up(self, envelope: Envelope, call_id: str, value: Any) -> Outgoing | None:  # noqa: ARG002
        """The follow-up message if the call continues after its function returned; None if `value` is the result."""
        return None

    def ready(self) -> None:
        """Validate the declaration now, instead of at the first call. Raises DefinitionError, ConfigurationError."""
        _ = self.searchable
        form = self.encoding.form
        if form.pickled:
            self.encoding.pickles()
        if form.needs_key:
            self.encoding.encryption()

    def message(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], call_id: str | None = None) -> Outgoing:
        """A call that is ready to be sent; its arguments are checked. The default of `call_id` is a new one."""
        return self.message_with(self.parameters.check(self.parameters.bind(args, kwargs)), len(args), call_id)

    def message_with(
        self, values: Values, positional: int, call_id: str | None = None, purpose: Purpose | None = None
    ) -> Outgoing:
        """As `message`, for checked arguments, the first `positional` of them by position.

        `purpose` is theirs if it is not to be the arguments of this one call.
        """
        call_id = call_id or envelopes.new_call_id()
        delivery = self.delivery_options
        unique = self._unique(values) if delivery.unique else None
        envelope = Envelope(
            call_id,
            retries=delivery.retries,
            timeout_ms=delivery.publish.timeout_ms,
            expires_ms=delivery.expires_ms(self.runtime.now_ms()) if delivery.expires is not None else None,
            retry_delay=delivery.publish.retry_delay if delivery.jitter else None,
            jitter=delivery.jitter,
            options=self._own_headers,
            unique=unique.key if unique is not None and unique.window_ms is None else None,
            **self.codec.encode(values, positional, call_id, purpose),
        )
        return Outgoing(
            task=self.name,
            call_id=call_id,
            options=delivery.publish,
            queue=delivery.queue,
            envelope=envelope,
            unique=unique,
            argument_labels=labels_of(self.searchable, envelope.args, envelope.kwargs) if delivery.search else (),
            own_deduplication=delivery.publish.deduplication_id is not None,
        )

    def encoded(self, message: Outgoing) -> Outgoing:
        """Encode a call of this task, once. Raises ArgumentsError that names the argument that cannot be encoded."""
        return sender.encoded(self, message)

    def not_encodable(self, message: Outgoing, error: ValueError) -> ArgumentsError:
        """The error that names the argument because of which a call of this task cannot be encoded."""
        envelope = message.envelope
        is_plain = envelope.pickled is None and envelope.coded is None
        values = self.parameters.bind(envelope.args, envelope.kwargs) if is_plain else {}
        culprit = envelopes.culprit(values)
        if culprit is None and envelope.flow:  # the arguments of its steps were checked when they were made
            return ArgumentsError(
                f"{self.name}: the flow after it cannot be written as JSON: {error}",
                fix="put fewer groups inside one another",
                code=ErrorCode.FLOW_INVALID,
            )
        path, reason = culprit or ("", str(error))
        return self.parameters.not_json(path, reason)

    def send_message(self, message: Outgoing) -> TaskResult[R]:
        """Send a call, or add it to the open batch. Returns the handle of an earlier call that holds its unique key."""
        return sender.send(self.runtime, self, message)

    async def asend_message(self, message: Outgoing) -> TaskResult[R]:
        """As `send_message`, without blocking the event loop."""
        return await sender.asend(self.runtime, self, message)

    def _using(self, options: Mapping[str, Any]) -> Self:
        merged = call_options.merge(self.options, options)
        self._check(options, merged)
        check_texts(self.name, self.__wrapped__, options)
        copy = type(self)(
            self._get_runtime, self.__wrapped__, name=self.name, options=merged, inherit=self._origin or self
        )
        copy.own_options = MappingProxyType(
            {name: merged[name] for name in (*self.own_options, *options) if name in merged}
        )
        return copy

    def _check(self, options: Mapping[str, Any], merged: Mapping[str, Any]) -> None:
        call_options.check(self.name, options, merged=merged)

    def _unique(self, values: Values) -> Unique:
        """The unique key of a call; an argument that equals its default counts as left out."""
        values = self.parameters.without_defaults(values)
        choice = self.delivery_options.unique
        if self.delivery_options.form.pickled and not isinstance(choice, bool):
            plain = self.parameters.some_to_json(values, (choice,) if isinstance(choice, str) else choice)
        else:
            plain = self.parameters.to_json(values)
        key = key_of(self.name, choice, plain, self.parameters.annotations, self.encoding.digest)
        return Unique(key, self.delivery_options.unique_ms)

    @lazy_property
    def _own_headers(self) -> Mapping[str, str]:
        """The header lines with which the dispatcher publishes a call again, if they differ from the declaration's."""
        if self._origin is None:
            return {}
        own = _lasting(self.delivery_options.publish)
        return {} if own == _lasting(self._origin.delivery_options.publish) else dict(wire.write(own))


async def _in_turns(items: Iterable[T]) -> AsyncIterator[T]:
    """The same items. The event loop turns after every `_TURN` of them."""
    for place, item in enumerate(items, 1):
        yield item
        if place % _TURN == 0:
            await asyncio.sleep(0)


def _with_options(task: BaseTask[..., Any], options: Mapping[str, Any]) -> BaseTask[..., Any]:
    """Restore what `using` returned, from a pickle."""
    return task.using(**options)


def _lasting(options: PublishOptions) -> PublishOptions:
    """Options without those that apply to a single publish."""
    return replace(options, delay_ms=None, not_before_s=None, deduplication_id=None, retries=None)
