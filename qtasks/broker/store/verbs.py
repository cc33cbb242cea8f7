"""The verbs as plain functions over one SQLite connection, inside a transaction the caller opened.

They read no clock and make no ids. `broker.store.sqlite` gathers them into group commits; tests and
simulations call them inline. None of them leaves a half-done change behind a normal return, and an
exception means that the caller must roll back. Each lives in the module of its reason; this is the menu.
"""

from qtasks.broker.store.accept import accept
from qtasks.broker.store.accounts import ensure_account, keys, rotate_keys
from qtasks.broker.store.cancel import cancel, cancel_where
from qtasks.broker.store.claim import CORRUPT, claim
from qtasks.broker.store.dead_letters import delete_dead_letters, retry_dead_letters
from qtasks.broker.store.flow_control import (
    flow_key,
    flow_keys,
    pause_flow_key,
    pin_flow_key,
    reset_flow_rate,
    running_now,
    unpin_flow_key,
)
from qtasks.broker.store.health import probe
from qtasks.broker.store.queues import drop_queue, pause_queue, queue, queues, upsert_queue
from qtasks.broker.store.schedules import (
    delete_schedule,
    due_schedules,
    fire,
    next_tick,
    pause_schedule,
    put_schedule,
    schedule,
    schedules,
)
from qtasks.broker.store.settle import INTERRUPTED, recover, settle
from qtasks.broker.store.url_groups import (
    delete_group,
    group,
    groups,
    remove_endpoints,
    set_group_headers,
    upsert_endpoints,
)

__all__ = [
    "CORRUPT",
    "INTERRUPTED",
    "accept",
    "cancel",
    "cancel_where",
    "claim",
    "delete_dead_letters",
    "delete_group",
    "delete_schedule",
    "drop_queue",
    "due_schedules",
    "ensure_account",
    "fire",
    "flow_key",
    "flow_keys",
    "group",
    "groups",
    "keys",
    "next_tick",
    "pause_flow_key",
    "pause_queue",
    "pause_schedule",
    "pin_flow_key",
    "probe",
    "put_schedule",
    "queue",
    "queues",
    "recover",
    "remove_endpoints",
    "reset_flow_rate",
    "retry_dead_letters",
    "rotate_keys",
    "running_now",
    "schedule",
    "schedules",
    "set_group_headers",
    "settle",
    "unpin_flow_key",
    "upsert_endpoints",
    "upsert_queue",
]
