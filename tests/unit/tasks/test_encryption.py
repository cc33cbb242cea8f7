"""Encryption: who has no key reads nothing, and what is encrypted for one call is worth nothing for another."""

from __future__ import annotations

import base64
import importlib.util
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator, BaseModel, SecretBytes, SecretStr

from qtasks import Embedded, QTasks, Snooze, TaskEvent, TaskRouter, chain, chord, group
from qtasks.errors import ConfigurationError, DefinitionError, PayloadError, TaskFailed
from qtasks.llm import openai, user
from qtasks.tasks.encode.encryption import Encryption, KeyUnknownError, SealBrokenError
from qtasks.tasks.encode.envelope import Envelope, encode
from qtasks.tasks.encode.pickling import Pickles, Purpose
from qtasks.tasks.task import Task
from tests.support.simulated_broker import SimulatedBroker
from tests.unit.tasks.manual_broker import ManualBroker, SentMessage, json_of

pytestmark = pytest.mark.anyio

SECRET, NEWER, FOREIGN = (f"the-secret-key-of-these-tests-{number:04}" for number in (1, 2, 3))
PURPOSE = Purpose.arguments("work", "call_1")
CARD = "4929-1234-5678-9012"
"""What must not be read."""
RAN: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    RAN.clear()


@pytest.fixture
def broker() -> Iterator[ManualBroker]:
    made = ManualBroker(secret_key=SECRET)
    yield made
    made.close()


@pytest.fixture
def others() -> Iterator[Callable[..., ManualBroker]]:
    """Makes processes with other settings."""
    made: list[ManualBroker] = []

    def make(**overrides: Any) -> ManualBroker:
        made.append(ManualBroker(**overrides))
        return made[-1]

    yield make
    for each in made:
        each.close()


def declared(tasks: QTasks, **options: Any) -> Task[..., Any]:
    @tasks.task(name="work", **{"encrypt": True, **options})
    def work(card: str, times: int = 1) -> list[str]:
        RAN.append(card)
        return [card] * times

    return work


async def run_all(broker: ManualBroker) -> list[bytes]:
    """Deliver until nothing is left. Returns every body on the way, there and back."""
    seen: list[bytes] = []
    while broker.messages:
        message = broker.messages.pop(0)
        seen += [message.body, repr(message.headers).encode(), message.url.encode()]
        seen.append((await broker.deliver(message)).body)
    return seen


def shows_nothing(seen: list[bytes]) -> bool:
    assert seen
    return not any(CARD.encode() in part or base64.b64encode(CARD.encode())[:-4] in part for part in seen)


# --- keys


def test_the_first_key_encrypts_and_all_of_them_decrypt() -> None:
    old, both, new = Encryption([SECRET]), Encryption([NEWER, SECRET]), Encryption([NEWER])
    assert both.open(old.seal(b"x", PURPOSE), PURPOSE) == b"x"
    assert new.open(both.seal(b"x", PURPOSE), PURPOSE) == b"x"
    with pytest.raises(KeyUnknownError, match="no key in QTASKS_SECRET_KEY has the id"):
        new.open(old.seal(b"x", PURPOSE), PURPOSE)


def test_the_same_value_is_never_the_same_text() -> None:
    encryption = Encryption([SECRET])
    assert len({encryption.seal(b"x", PURPOSE) for _ in range(100)}) == 100


def test_the_id_of_a_key_is_not_a_part_of_it() -> None:
    key_id = Encryption([SECRET]).seal(b"", PURPOSE).removeprefix("sealed1:").partition(".")[0]
    assert key_id == Encryption([SECRET, NEWER]).seal(b"y", PURPOSE).removeprefix("sealed1:").partition(".")[0]
    assert key_id not in SECRET
    assert key_id not in base64.urlsafe_b64encode(SECRET.encode()).decode()


@pytest.mark.parametrize(
    "other",
    [
        Purpose.arguments("work", "call_2"),
        Purpose.arguments("works", "call_1"),
        Purpose.result("work", "call_1"),
        Purpose.step("work", "call_1"),
        Purpose.schedule("work", "call_1"),
        Purpose("argumentswork", "", "call_1"),
    ],
)
def test_what_is_encrypted_for_one_purpose_is_broken_for_another(other: Purpose) -> None:
    encryption = Encryption([SECRET])
    text = encryption.seal(b"x", PURPOSE)
    with pytest.raises(SealBrokenError):
        encryption.open(text, other)
    assert encryption.open(text, other, PURPOSE) == b"x"


def test_every_changed_character_is_noticed() -> None:
    encryption = Encryption([SECRET])
    text = encryption.seal(b"some content", PURPOSE)
    for place in range(len("sealed1:"), len(text)):
        for other in "Aa0-.=":
            if other != text[place]:
                with pytest.raises(PayloadError):
                    encryption.open(text[:place] + other + text[place + 1 :], PURPOSE)
    for last in string.ascii_letters + string.digits + "-_":  # its lowest bits have no meaning in base64
        if last != text[-2]:
            with pytest.raises(PayloadError):
                encryption.open(f"{text[:-2]}{last}=", PURPOSE)
    for length in range(len("sealed1:"), len(text)):
        with pytest.raises(PayloadError):
            encryption.open(text[:length], PURPOSE)


# --- calls and results


async def test_neither_the_message_nor_the_response_nor_the_record_shows_a_value(broker: ManualBroker) -> None:
    work = declared(broker.tasks)
    handle = work.delay(CARD, times=2)
    seen = await run_all(broker)
    record = broker.tasks.runtime.results().read(handle.id)
    assert record is not None
    assert record.value is not None
    assert shows_nothing([*seen, record.value.encode()])
    assert handle.get(0) == [CARD, CARD]
    assert set(json_of(await broker.deliver(_sent(broker, work)))["encrypted"]) == {"bytes", "sha256"}


def _sent(broker: ManualBroker, work: Task[..., Any]) -> SentMessage:
    work.delay(CARD)
    return broker.take()


async def test_the_application_encrypts_for_tasks_that_say_nothing(others: Callable[..., ManualBroker]) -> None:
    broker = others(secret_key=SECRET, encrypt=True)
    router = TaskRouter()

    @router.task
    def silent(card: str) -> SecretStr | None: ...

    @router.task(encrypt=False)
    def plain(card: str) -> str:
        return card

    broker.tasks.include_router(router)
    silent.delay(CARD)
    assert CARD not in broker.take().body.decode()
    plain.delay(CARD)
    assert CARD in broker.take().body.decode()


class Login(BaseModel):
    name: str
    password: SecretStr
    keys: list[SecretBytes] = []


async def test_secrets_arrive_at_any_depth_where_a_task_encrypts(broker: ManualBroker) -> None:
    @broker.tasks.task(encrypt=True)
    def login(who: Login, *, tokens: dict[str, SecretStr]) -> Login:
        RAN.append((who.password.get_secret_value(), tokens["a"].get_secret_value()))
        return who

    handle = login.delay(
        Login(name="ada", password=SecretStr(CARD), keys=[SecretBytes(b"k")]), tokens={"a": SecretStr("t")}
    )
    assert shows_nothing(await run_all(broker))
    assert RAN == [(CARD, "t")]
    assert handle.get(0).password.get_secret_value() == CARD
    assert [key.get_secret_value() for key in handle.get(0).keys] == [b"k"]


async def test_pickles_are_encrypted_too(others: Callable[..., ManualBroker]) -> None:
    broker = others(secret_key=SECRET, allow_pickle=True)

    @broker.tasks.task(serializer="pickle", encrypt=True)
    def work(what: Any) -> Any:
        return {what}  # no JSON

    handle = work.delay(CARD)
    assert shows_nothing(await run_all(broker))
    assert handle.get(0) == {CARD}


async def test_a_snoozed_call_and_a_batch_travel_encrypted(broker: ManualBroker) -> None:
    @broker.tasks.task(encrypt=True)
    def work(card: str) -> str:
        RAN.append(card)
        if len(RAN) == 1:
            raise Snooze(0)
        return card

    with broker.tasks.batch():
        first, second = work.delay(CARD), work.delay(CARD + "0")
    assert shows_nothing(await run_all(broker))
    assert [first.get(0), second.get(0)] == [CARD, CARD + "0"]
    assert len(RAN) == 3


async def test_flows_carry_only_what_is_encrypted(broker: ManualBroker) -> None:
    work = declared(broker.tasks)

    @broker.tasks.task(encrypt=True)
    def last(cards: list[str], suffix: str) -> str:
        return cards[-1] + suffix

    @broker.tasks.task(encrypt=True)
    def join(all_of_them: list[str], *, between: str = "+") -> str:
        return between.join(all_of_them)

    one = chain(work.s(CARD), last.s("!"), work.s(2)).delay()
    two = chord([work.s(CARD) | last.s("-"), work.s(CARD) | last.s(CARD)], join.s(between="|")).delay()
    assert shows_nothing(await run_all(broker))
    assert one.get(0) == [CARD + "!"] * 2
    assert two.get(0) == f"{CARD}-|{CARD}{CARD}"


async def test_a_flow_that_would_carry_an_encrypted_result_in_the_open_is_not_started(broker: ManualBroker) -> None:
    work = declared(broker.tasks)

    @broker.tasks.task
    def tell(cards: Any) -> str:
        return "told"

    @broker.tasks.task
    def done() -> str:
        return "done"

    start = tell.s("x")
    for flow in (
        chain(work.s(CARD), tell.s()),
        group(work.s(CARD), start) | tell.s(),
        group(start, work.s(CARD), collect="successes") | tell.s(),
        group(start, start | work.s()) | group(done.si(), done.si() | tell.s(), tell.s()) | done.si(),
        chord([start, work.s(CARD) | tell.s()], work.s()),
    ):
        with pytest.raises(DefinitionError, match="tell: it takes the result of work, which is encrypted"):
            flow.delay()
    assert broker.messages == []
    handle = (work.s(CARD) | done.si() | tell.s()).delay()
    assert shows_nothing(await run_all(broker))
    assert handle.get(0) == "told"


async def test_an_encrypted_result_goes_on_only_to_a_task_that_encrypts_here_too(
    others: Callable[..., ManualBroker],
) -> None:
    """The flow may have been started where the next task is declared otherwise."""
    sender, receiver = others(secret_key=SECRET), others(secret_key=SECRET)

    def tell(cards: Any) -> None:
        RAN.append("told")

    follower = sender.tasks.task(tell)
    receiver.tasks.task(tell)
    plain = declared(sender.tasks, encrypt=False)
    declared(receiver.tasks, accepts=["unencrypted"])
    handle = (group(plain.s(CARD), plain.s(CARD)) | follower.s()).delay()
    for message in sender.messages:
        await receiver.deliver(message)
    assert receiver.messages == []
    record = receiver.tasks.runtime.results().read(handle.id)
    assert record is not None
    assert "is encrypted; the next task of the flow would carry it unencrypted" in (record.error or "")


async def test_keys_of_unique_calls_do_not_show_the_arguments(
    broker: ManualBroker, others: Callable[..., ManualBroker]
) -> None:
    keys: list[str] = []
    for secret in (SECRET, FOREIGN, f"{NEWER},{SECRET}"):
        other = others(secret_key=secret)
        work = declared(other.tasks, unique=True)
        first, again = work.delay(CARD), work.delay(CARD)
        assert again.id == first.id
        message = other.take()
        assert CARD not in message.headers.__repr__()
        _, plain = other, declared(others().tasks, unique=True, encrypt=False)
        assert plain.message((CARD,), {}).unique != work.message((CARD,), {}).unique
        keys.append(message.envelope["unique"])
    # Who adds a key before the old one does not lose what is locked.
    assert keys[0] == keys[2] != keys[1]


# --- who must not


SCHEDULE = Purpose.schedule("work", "s1")
FORGERIES: dict[str, Callable[[str, str], Envelope]] = {
    "another call": lambda text, _call: Envelope("call_other", coded=text),
    "a result": lambda _text, call: Envelope(call, coded=_sealed(Purpose.result("work", call))),
    "another task": lambda _text, call: Envelope(call, coded=_sealed(Purpose.arguments("other", call))),
    "a step": lambda _text, call: Envelope(call, coded=_sealed(Purpose.step("work", call))),
    "a schedule": lambda _text, call: Envelope(call, coded=_sealed(SCHEDULE)),
    "another schedule": lambda _text, call: Envelope(call, coded=_sealed(SCHEDULE), schedule="s2"),
    "a cut one": lambda text, call: Envelope(call, coded=text[:-8]),
    "one that is none": lambda text, call: Envelope(call, coded=text.partition(".")[0]),
    "a changed one": lambda text, call: Envelope(call, coded=text[:-9] + ("A" if text[-9] != "A" else "B") + text[-8:]),
}


def _sealed(purpose: Purpose) -> str:
    return Encryption([SECRET]).seal(b'json\0[["x"],{}]', purpose)


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_nothing_that_was_changed_or_moved_runs(broker: ManualBroker, forgery: str) -> None:
    message = _sent(broker, declared(broker.tasks))
    message.body = encode(FORGERIES[forgery](message.envelope["coded"], message.envelope["id"]))
    answer = await broker.deliver(message)
    assert (answer.status, json_of(answer)["code"]) == (489, "QT443")
    assert RAN == []


class Canary:
    """Runs something when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return RAN.append, ("unpickled",)


async def test_a_pickle_is_not_read_inside_of_encryption_either_where_the_task_takes_json(
    others: Callable[..., ManualBroker],
) -> None:
    broker = others(secret_key=SECRET, allow_pickle=True)
    message = _sent(broker, declared(broker.tasks))
    purpose = Purpose.arguments("work", message.envelope["id"])
    pickled = Pickles([SECRET]).dump(((Canary(),), {}), purpose)
    text = Encryption([SECRET]).seal(b"pickle\0" + pickled.encode(), purpose)
    message.body = encode(Envelope(message.envelope["id"], coded=text))
    answer = await broker.deliver(message)
    assert (answer.status, json_of(answer)["code"]) == (500, "QT440")
    assert RAN == []


async def test_a_call_in_the_open_does_not_run_where_the_task_encrypts(broker: ManualBroker) -> None:
    message = _sent(broker, declared(broker.tasks))
    message.body = encode(Envelope(message.envelope["id"], args=["forged"]))
    answer = await broker.deliver(message)
    assert (answer.status, json_of(answer)["code"]) == (500, "QT440")
    assert 'accepts=["unencrypted"]' in json_of(answer)["error"]
    assert RAN == []


async def test_a_result_of_another_call_or_in_the_open_is_not_read(
    broker: ManualBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = declared(broker.tasks)
    mine, other = work.delay(CARD), work.delay("other")
    await run_all(broker)
    backend = broker.tasks.runtime.results()
    mine_record, other_record = backend.read(mine.id), backend.read(other.id)
    monkeypatch.setattr(backend, "read", lambda _key: other_record)
    with pytest.raises(SealBrokenError, match="the encrypted result of work"):
        mine.get(0)
    assert mine_record is not None
    object.__setattr__(mine_record, "value", '["forged"]')
    monkeypatch.setattr(backend, "read", lambda _key: mine_record)
    with pytest.raises(PayloadError, match="arrived unencrypted"):
        mine.get(0)


async def test_a_key_that_is_not_here_yet_keeps_the_call(others: Callable[..., ManualBroker]) -> None:
    sender, receiver = others(secret_key=FOREIGN), others(secret_key=SECRET)
    declared(receiver.tasks)
    message = _sent(sender, declared(sender.tasks))
    answer = await receiver.deliver(message)
    assert (answer.status, json_of(answer)["code"]) == (500, "QT442")
    assert RAN == []
    rotated = others(secret_key=f"{SECRET},{FOREIGN}")
    declared(rotated.tasks)
    assert (await rotated.deliver(message)).status == 200


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "QTASKS_SECRET_KEY is not set, so nothing can be encrypted"),
        ({"secret_key": "short"}, "QTASKS_SECRET_KEY has 5 characters"),
        (
            {"secret_key": f"{SECRET},sig_{'c' * 28}"},
            "known to the broker, which must not be able to read what is encrypted",
        ),
    ],
)
def test_a_missing_or_unusable_key_is_named_at_the_call_and_at_the_start(
    others: Callable[..., ManualBroker], settings: dict[str, Any], text: str
) -> None:
    work = declared(others(**settings).tasks)
    with pytest.raises(ConfigurationError, match=text):
        work.delay(CARD)
    with pytest.raises(ConfigurationError, match=text):
        work.ready()


def test_without_the_package_the_declaration_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cryptography" else find(name))
    with pytest.raises(DefinitionError, match="cryptography is not installed") as caught:
        declared(QTasks())
    assert caught.value.fix == 'pip install "qstash-tasks[crypto]"'
    with pytest.raises(DefinitionError, match="QTasks: what it sends is encrypted"):
        QTasks(encrypt=True)


# --- what is said about it


def refuse(card: str) -> str:
    raise ValueError(f"{card} is not wanted")


async def test_errors_of_ours_do_not_show_encrypted_values(others: Callable[..., ManualBroker]) -> None:
    sender, receiver = others(secret_key=SECRET), others(secret_key=SECRET)

    @receiver.tasks.task(name="work", encrypt=True)
    def narrower(card: int, times: int = 1) -> None: ...

    @receiver.tasks.task(encrypt=True)
    def wrong() -> Annotated[str, AfterValidator(refuse)]:
        return CARD

    answer = await receiver.deliver(_sent(sender, declared(sender.tasks)))
    assert (answer.status, json_of(answer)["code"]) == (489, "QT153")
    wrong.delay()
    assert shows_nothing([answer.body, *await run_all(receiver)])


async def test_hooks_see_the_arguments(broker: ManualBroker) -> None:
    work = declared(broker.tasks)

    @work.on_success
    def hook(event: TaskEvent) -> None:
        RAN.append(dict(event.arguments))

    work.delay(CARD)
    await run_all(broker)
    assert RAN == [CARD, {"card": CARD}]


def test_a_language_model_cannot_be_asked_in_secret(others: Callable[..., ManualBroker]) -> None:
    tasks = others(secret_key=SECRET, encrypt=True).tasks
    with pytest.raises(DefinitionError, match="the broker makes the request to the model"):

        @tasks.llm(provider=openai(token="t"), model="m", encrypt=True)
        def refused(text: str) -> list[Any]:
            return [user(text)]

    @tasks.llm(provider=openai(token="t"), model="m")
    def asked(text: str) -> list[Any]:
        return [user(text)]

    @tasks.llm(provider=openai(token="t"), model="m", encrypt=False)
    def allowed(text: str) -> list[Any]:
        return [user(text)]

    with pytest.raises(DefinitionError, match="asked: the broker makes the request") as caught:
        asked.ready()
    assert "encrypt=False" in (caught.value.fix or "")
    allowed.ready()


# --- while it changes


async def test_accepts_lets_calls_of_the_time_before_and_after_run(others: Callable[..., ManualBroker]) -> None:
    before, after = others(secret_key=SECRET), others(secret_key=SECRET)
    plain = declared(before.tasks, encrypt=False, accepts=["encrypted"])
    sealed = declared(after.tasks, accepts=["unencrypted"])
    first, second = plain.delay("plain"), sealed.delay("sealed")
    assert (await after.deliver(before.take())).status == 200
    assert (await before.deliver(after.take())).status == 200
    assert RAN == ["plain", "sealed"]
    one, other = before.tasks.runtime, after.tasks.runtime
    one._results, other._results = other.results(), one.results()
    assert [first.get(0), second.get(0)] == [["plain"], ["sealed"]]


# --- schedules


@pytest.fixture
def simulated() -> Iterator[SimulatedBroker]:
    made = SimulatedBroker()
    yield made
    made.stop()


def test_an_encrypted_schedule_runs_and_is_written_once(simulated: SimulatedBroker) -> None:
    with simulated.application(secret_key=SECRET) as tasks:
        work = declared(tasks)
        tasks.cron("0 9 * * *", args=[CARD])(work)
        assert str(tasks.schedules.sync()) == "added work"
        assert str(tasks.schedules.sync()) == "nothing to do"
        (stored,) = simulated.schedules.values()
        assert shows_nothing([repr(stored).encode()])
        simulated.advance(hours=24)
        simulated.run()
        assert RAN == [CARD]
        (schedule,) = work.schedules
        schedule.trigger()
        tasks.schedules.get(stored["scheduleId"]).trigger()
        simulated.run()
        assert RAN == [CARD] * 3


def test_changed_arguments_and_a_new_key_are_changes_of_an_encrypted_schedule(simulated: SimulatedBroker) -> None:
    def plan(secret: str, card: str) -> str:
        with simulated.application(secret_key=secret) as tasks:
            tasks.cron("0 9 * * *", args=[card])(declared(tasks))
            return str(tasks.schedules.sync())

    assert plan(SECRET, CARD) == "added work"
    assert plan(SECRET, CARD) == "nothing to do"
    assert plan(SECRET, "other") == "changed work"
    # What the old key encrypted is written anew, so that the old key can go.
    assert plan(f"{NEWER},{SECRET}", "other") == "changed work"
    assert plan(NEWER, "other") == "nothing to do"


def test_the_name_of_a_schedule_is_not_made_of_encrypted_arguments(simulated: SimulatedBroker) -> None:
    with simulated.application(secret_key=SECRET) as tasks:
        work = declared(tasks)
        with pytest.raises(DefinitionError, match="the name of a schedule is made of its arguments"):
            work.schedule("0 9 * * *", args=[CARD])
        assert work.schedule("0 9 * * *", name="card", args=[CARD]).name == "work:card"


# --- the files


def test_neither_the_file_of_the_broker_nor_that_of_the_results_contains_a_value(tmp_path: Path) -> None:
    tasks = QTasks(embedded=Embedded(tmp_path / "tasks.db"), encrypt=True, secret_key=SECRET)
    work = declared(tasks)

    @tasks.task
    def fails(card: str) -> None:
        raise ValueError("its own words")

    try:
        assert work.delay(CARD).get(timeout=10) == [CARD]
        failed = fails.using(retries=0).delay(CARD)
        with pytest.raises(TaskFailed, match="its own words"):
            failed.get(timeout=10)
        contents = [file.read_bytes() for file in tmp_path.iterdir() if file.is_file()]
        assert sum(b"work" in content for content in contents) >= 2  # the broker's, and that of the results
        assert shows_nothing(contents)
    finally:
        tasks.close()
    assert shows_nothing([file.read_bytes() for file in tmp_path.iterdir() if file.is_file()])
