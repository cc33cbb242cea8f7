"""The README of the official QStash SDK, feature by feature, with `qtasks.qstash` and without the internet.

    python examples/qstash_sdk/readme.py

A broker and a receiving server run inside this process; the rest is application code. For the hosted service only URL
and token change. The program ends by itself.
"""

import asyncio
import base64
import json
import time

from local import USER, Arrival, Inbox, broker

from qtasks.qstash import AsyncQStash, QStash, Receiver
from qtasks.qstash.chat import custom
from qtasks.qstash.errors import SignatureError
from qtasks.qstash.message import PublishResponse

receiver = Receiver(current_signing_key=USER.keys.current, next_signing_key=USER.keys.next)


def verified(arrival: Arrival) -> Arrival:
    """Verify the signature first: without this check any caller could send any request."""
    receiver.verify(signature=arrival.headers["Upstash-Signature"], body=arrival.body, url=arrival.url)
    return arrival


def callback_text(arrival: Arrival) -> str:
    """Status and response body that a callback reports, as text."""
    callback = json.loads(verified(arrival).body)
    return f"status {callback['status']}, body {base64.b64decode(callback['body']).decode()!r}"


def publish_a_json_message(client: QStash, inbox: Inbox) -> None:
    client.message.publish_json(
        url=f"{inbox.url}/hello", body={"hello": "world"}, headers={"test-header": "test-value"}
    )
    arrival = inbox.wait_for("/hello")
    print("arrived:", arrival.body, "with test-header:", arrival.headers["Test-Header"])


def receive_messages(client: QStash, inbox: Inbox) -> None:
    client.message.publish(url=f"{inbox.url}/signed", body="pay 1 EUR")
    arrival = verified(inbox.wait_for("/signed"))
    print("verified:", arrival.body)
    try:
        verified(Arrival(arrival.url, arrival.headers, "pay 1000 EUR"))
    except SignatureError as error:
        print("forged:", error.reason)


def create_a_schedule(client: QStash, inbox: Inbox) -> None:
    schedule_id = client.schedule.create(destination=f"{inbox.url}/tick", cron="CRON_TZ=Europe/Berlin */5 * * * *")
    schedule = client.schedule.get(schedule_id)
    print("next run:", (schedule.next_schedule_time or 0) > time.time() * 1000, "cron:", schedule.cron)
    client.schedule.pause(schedule_id)
    print("paused:", client.schedule.get(schedule_id).paused)
    client.schedule.delete(schedule_id)


def publish_to_a_language_model(client: QStash, inbox: Inbox) -> None:
    question = {"role": "user", "content": "What is the capital of Turkey?"}
    client.message.publish_json(
        api={"name": "llm", "provider": custom(base_url=inbox.url, token="<THE PROVIDER'S KEY>")},
        body={"model": "any", "messages": [question]},
        callback=f"{inbox.url}/answered",
    )
    answer = json.loads(inbox.wait_for("/answered").body)
    print("the model says:", json.loads(base64.b64decode(answer["body"]))["choices"][0]["message"]["content"])


def chat_with_the_brokers_own_model(client: QStash, _: Inbox) -> None:
    stream = client.chat.prompt(user="hello", model="any", stream=True)
    print("".join(chunk.choices[0].delta.content or "" for chunk in stream))


def configure_a_message(client: QStash, inbox: Inbox) -> None:
    began = time.monotonic()
    for _ in range(2):
        sent = client.message.publish_json(
            url=f"{inbox.url}/flaky",
            body={"key": "value"},
            retries=3,
            retry_delay="100 * (1 + retried)",
            delay="1s",
            callback=f"{inbox.url}/callback",
            failure_callback=f"{inbox.url}/failure-callback",
            content_based_deduplication=True,
        )
        assert isinstance(sent, PublishResponse), "a list is what a URL group answers"
        print("deduplicated:", sent.deduplicated)
    inbox.wait_for("/flaky")
    print("not before its time:", time.monotonic() - began >= 1)
    print("first attempt:", callback_text(inbox.wait_for("/callback")))
    print("second attempt:", callback_text(inbox.wait_for("/callback")))


def publish_to_a_url_group(client: QStash, inbox: Inbox) -> None:
    client.url_group.upsert_endpoints("subscribers", [{"url": f"{inbox.url}/one"}, {"url": f"{inbox.url}/two"}])
    client.message.publish_json(url_group="subscribers", body={"to": "all"})
    print("arrived:", inbox.wait_for("/one").body, "and", inbox.wait_for("/two").body)


def keep_an_order(client: QStash, inbox: Inbox) -> None:
    client.queue.upsert("line", parallelism=1)
    for number in (1, 2, 3):
        client.message.enqueue_json(queue="line", url=f"{inbox.url}/in-order", body=number)
    print("in order:", *(inbox.wait_for("/in-order").body for _ in range(3)))


def limit_a_rate(client: QStash, inbox: Inbox) -> None:
    for number in (1, 2, 3):
        client.message.publish_json(
            url=f"{inbox.url}/limited", body=number, flow_control={"key": "api", "rate": 2, "period": "1h"}
        )
    inbox.wait_for("/limited")
    inbox.wait_for("/limited")
    key = client.flow_control.get("api")
    print(f"started: {key.rate_count} of {key.rate_max}, waiting: {key.wait_list_size}")


def send_a_batch(client: QStash, inbox: Inbox) -> None:
    sent = client.message.batch_json(
        [
            {"url": f"{inbox.url}/batch", "body": {"n": 1}},
            {"url": f"{inbox.url}/batch", "body": {"n": 2}, "delay": "1h", "label": "later"},
        ]
    )
    print("accepted:", len(sent), "arrived:", inbox.wait_for("/batch").body)
    print("cancelled:", client.message.cancel_all(filter={"label": "later"}))


def look_after_failures(client: QStash, inbox: Inbox) -> None:
    client.message.publish(url=f"{inbox.url}/gone", retries=0, failure_callback=f"{inbox.url}/failed")
    print("failure callback:", callback_text(inbox.wait_for("/failed")))
    [letter] = client.dlq.list().messages
    print("dead letter:", letter.response_status, letter.response_body)
    client.dlq.delete(letter.dlq_id)
    log = client.log.list(filter={"message_id": letter.message_id}).logs
    print("log:", *(entry.state.value for entry in reversed(log)))


async def use_async_code(url: str, inbox: Inbox) -> None:
    async with AsyncQStash(USER.token, base_url=url) as client:
        await client.message.publish_json(url=f"{inbox.url}/async", body="from async code")
        arrival = await asyncio.to_thread(inbox.wait_for, "/async")
    print("arrived:", verified(arrival).body)


FEATURES = (
    publish_a_json_message,
    receive_messages,
    create_a_schedule,
    publish_to_a_language_model,
    chat_with_the_brokers_own_model,
    configure_a_message,
    publish_to_a_url_group,
    keep_an_order,
    limit_a_rate,
    send_a_batch,
    look_after_failures,
)


def main() -> None:
    with broker() as url, Inbox() as inbox:
        client = QStash(
            USER.token,
            base_url=url,
            # How the client repeats its own calls when they are lost on the way, not how messages are delivered.
            retry={"retries": 1, "backoff": lambda retry_count: (2**retry_count) * 20},
        )
        with client:
            for feature in FEATURES:
                print(f"\n{feature.__name__.replace('_', ' ')}")
                feature(client, inbox)
        print("\nuse async code")
        asyncio.run(use_async_code(url, inbox))


if __name__ == "__main__":
    main()
