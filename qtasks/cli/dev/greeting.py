"""The first lines of `qtasks dev`: where everything is, and what a program needs to reach it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from urllib.parse import urlsplit

from qtasks.broker.broker import Broker
from qtasks.broker.settings import LLM_VARIABLE, BrokerSettings
from qtasks.broker.store.connection import MEMORY
from qtasks.cli.loader import AppLocation
from qtasks.cli.serving.child_process import StartedApp
from qtasks.protocol import development
from qtasks.protocol.messages import SigningKeys


def with_application(target: AppLocation, app: StartedApp, broker: Broker, broker_url: str) -> list[str]:
    """The lines for a broker that delivers to the application that was started with it."""
    lines = [
        f"console at {broker_url}/",
        f"qtasks {version('qstash-tasks')}  dev   app {app.target} ({target.source})   {app}",
        f"  broker   {broker_url}   QSTASH_TOKEN={development.USERS[0].token}",
        f"  app      {app.base_url}",
        *_state(broker),
    ]
    if app.synced:
        lines.append(f"  synced   {app.synced}")
    return [*lines, f"  reload   when code in {target.folder} changes", ""]


def without_application(reason: str, broker: Broker, broker_url: str, keys: SigningKeys) -> list[str]:
    """The lines for a broker alone, in the place of the development server of QStash."""
    token = development.USERS[0].token
    return [
        f"console at {broker_url}/",
        f"qtasks {version('qstash-tasks')}  dev   no application ({reason}): a QStash development server",
        f"  running at {broker_url}",
        *_state(broker),
        "",
        f"QSTASH_URL={broker_url}",
        f"QSTASH_TOKEN={token}",
        f"QSTASH_CURRENT_SIGNING_KEY={keys.current}",
        f"QSTASH_NEXT_SIGNING_KEY={keys.next}",
        "",
        f"curl -X POST {broker_url}/v2/publish/https://example.com \\",
        f'  -H "Authorization: Bearer {token}"',
        "",
    ]


def _state(broker: Broker) -> Sequence[str]:
    path = broker.settings.path
    store = "in memory, nothing is kept" if path == MEMORY else f"{path} ({broker.store.promise})"
    lines = [f"  store    {store}", f"  model    {model_in_words(broker.settings)}"]
    if broker.recovery.waiting:
        lines.append(f"  found    {broker.recovery.waiting} waiting, {broker.recovery.interrupted} of them interrupted")
    return lines


def model_in_words(settings: BrokerSettings) -> str:
    """The language model behind `api/llm`."""
    if settings.llm_url is None:
        return f"the built-in echo ({LLM_VARIABLE} names another)"
    return f"{model_name(settings)} ({LLM_VARIABLE})"


def model_name(settings: BrokerSettings) -> str:
    """The language model behind `api/llm`, as short as it can be."""
    return "the echo" if settings.llm_url is None else urlsplit(settings.llm_url).netloc.rpartition("@")[2]
