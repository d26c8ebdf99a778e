"""Scripts over notifications that shall be sent, and over browsers that get push messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta

from identree.core.challenge import Live
from identree.core.events import Event
from identree.storage.interface import MOST_PLANNED, Delivery, DeliveryState, Planned, PushDevice
from identree.storage.script import Do, Effects, Row, Script
from identree.storage.times import instant, instant_or_none, seconds

# Other replicas read their notification files again (spec/notifications-and-policy section 4).
RELOAD_NOTIFY = "reload_notify_config"
DELIVERIES_PLANNED = "deliveries_planned"
DELIVERIES_CHANGED = "deliveries_changed"

_OVER = "no longer waiting"
_LATE = "too late"
_DECIDED = "decided before it was sent"
# Rows that one claim finds to be pointless at most; the others are found by the next one.
_POINTLESS_AT_ONCE = 200

_COLUMNS = (
    "id, delivery_key, channel, target, event, username, hostname, code, notice, if_pending, replaces, until_at, "
    "state, attempts, due_at, created_at, finished_at, error, reference"
)
_PLAN = """
INSERT INTO notification_deliveries (delivery_key, channel, target, event, username, hostname, code, notice, if_pending,
    replaces, until_at, state, due_at, created_at, finished_at, error)
VALUES (:delivery_key, :channel, :target, :event, :username, :hostname, :code, :notice, :if_pending, :replaces,
    :until_at, :state, :due_at, :now, :finished_at, :error)
ON CONFLICT (delivery_key) DO NOTHING RETURNING 1
""".strip()
_CHOSEN = "SELECT id FROM notification_deliveries WHERE state IN ('queued', 'sending') AND due_at <= :now"
_SKIP = f"""
WITH chosen AS MATERIALIZED (
    {_CHOSEN} AND (until_at < :now OR (if_pending <> '' AND NOT EXISTS (
        SELECT 1 FROM challenges c WHERE c.id = if_pending AND c.status = 'pending' AND c.expires_at > :now
    ))) LIMIT :limit /*postgres FOR UPDATE SKIP LOCKED*/
)
UPDATE notification_deliveries SET state = 'skipped', owner = '', finished_at = :now,
    error = CASE WHEN until_at < :now THEN (CASE WHEN error = '' THEN :late ELSE error END) ELSE :over END
WHERE id IN (SELECT id FROM chosen) RETURNING 1
""".strip()  # noqa: S608 - constants
_CLAIM = f"""
WITH chosen AS MATERIALIZED (
    {_CHOSEN} ORDER BY due_at, id LIMIT :limit /*postgres FOR UPDATE SKIP LOCKED*/
)
UPDATE notification_deliveries SET state = 'sending', owner = :owner, attempts = attempts + 1, due_at = :lease
WHERE id IN (SELECT id FROM chosen) RETURNING {_COLUMNS}
""".strip()  # noqa: S608
_SETTLE = """
UPDATE notification_deliveries SET state = :state, owner = '', error = :error, due_at = :due_at,
    finished_at = :finished_at, reference = CASE WHEN :reference = '' THEN reference ELSE :reference END
WHERE id = :id AND state = 'sending' AND owner = :owner RETURNING 1
""".strip()
_DROP = """
UPDATE notification_deliveries SET state = 'skipped', finished_at = :now, error = :why
WHERE code = :code AND state = 'queued' AND event = 'challenge_created' AND replaces = 0 RETURNING 1
""".strip()
_PAGE = f"""
SELECT {_COLUMNS} FROM notification_deliveries
WHERE id < :before AND (:channel = '' OR channel = :channel) AND (:state = '' OR state = :state)
    AND (:code = '' OR code = :code)
ORDER BY id DESC LIMIT :limit
""".strip()  # noqa: S608
_OF_CODE = f"""
SELECT {_COLUMNS} FROM notification_deliveries WHERE code = :code AND id < :before
    AND (:channel = '' OR channel = :channel) AND (:state = '' OR state = :state)
ORDER BY id DESC LIMIT :limit
""".strip()  # noqa: S608
_NEXT = "SELECT MIN(due_at) FROM notification_deliveries WHERE state IN ('queued', 'sending')"
_WAITING = "SELECT state, COUNT(*) FROM notification_deliveries WHERE state IN ('queued', 'sending') GROUP BY state"

_DEVICE = "id, username, endpoint, p256dh, auth, label, events_json, created_at, last_sent_at"
_OTHER_DEVICES = "SELECT COUNT(*) FROM push_devices WHERE username = :username AND id <> :id"
_ADD_DEVICE = """
INSERT INTO push_devices (id, username, endpoint, p256dh, auth, label, events_json, created_at)
VALUES (:id, :username, :endpoint, :public_key, :auth, :label, :events_json, :created_at)
ON CONFLICT (id) DO UPDATE SET username = excluded.username, p256dh = excluded.p256dh, auth = excluded.auth,
    label = excluded.label, events_json = excluded.events_json
""".strip()
_DEVICES = (
    f"SELECT {_DEVICE} FROM push_devices WHERE (:username = '' OR username = :username) AND id > :after "  # noqa: S608
    "ORDER BY id LIMIT :limit"
)
_ONE_DEVICE = f"SELECT {_DEVICE} FROM push_devices WHERE id = :id"  # noqa: S608
_REMOVE_DEVICE = "DELETE FROM push_devices WHERE id = :id AND (:username = '' OR username = :username) RETURNING 1"
_PUSHED = "UPDATE push_devices SET last_sent_at = :now WHERE id = :id"


# -- deliveries -------------------------------------------------------------------------------------------------------
def _delivery(row: Row) -> Delivery:
    state = DeliveryState(row[12])
    return Delivery(
        id=row[0],
        planned=Planned(
            key=row[1],
            channel=row[2],
            target=row[3],
            event=row[4],
            username=row[5],
            hostname=row[6],
            code=row[7],
            notice=row[8],
            if_pending=row[9],
            replaces=row[10],
            until=instant(row[11]),
            due_at=instant(row[14]),
        ),
        state=state,
        attempts=row[13],
        due_at=instant(row[14]),
        created_at=instant(row[15]),
        finished_at=instant_or_none(row[16]),
        error=row[17],
        reference=row[18],
    )


def plan(planned: Sequence[Planned], now: datetime) -> Script[int]:
    if len(planned) > MOST_PLANNED:
        raise ValueError(f"{len(planned)} messages in one transaction; at most {MOST_PLANNED}")
    at, new, waits = seconds(now), 0, False
    for one in planned:
        over = one.state in (DeliveryState.SENT, DeliveryState.FAILED, DeliveryState.SKIPPED)
        row: dict[str, object] = {
            "delivery_key": one.key,
            "channel": one.channel,
            "target": one.target,
            "event": one.event,
            "username": one.username,
            "hostname": one.hostname,
            "code": one.code,
            "notice": one.notice,
            "if_pending": one.if_pending,
            "replaces": one.replaces,
            "until_at": seconds(one.until),
            "state": one.state.value,
            "due_at": seconds(one.due_at),
            "now": at,
            "finished_at": at if over else 0,
            "error": one.error,
        }
        if (yield _PLAN, row):
            new += 1
            waits |= not over
    if waits:
        yield Effects(live=(Live(event=DELIVERIES_PLANNED, username=""),))
    return new


def claim(owner: str, now: datetime, lease: timedelta, limit: int) -> Script[list[Delivery]]:
    at = seconds(now)
    skip: dict[str, object] = {"now": at, "limit": _POINTLESS_AT_ONCE, "late": _LATE, "over": _OVER}
    yield Do(_SKIP, skip)
    rows = yield _CLAIM, {"owner": owner, "now": at, "lease": at + int(lease.total_seconds()), "limit": limit}
    return sorted((_delivery(row) for row in rows), key=lambda delivery: delivery.id)


def settle(
    id: int,
    owner: str,
    state: DeliveryState,
    now: datetime,
    *,
    error: str,
    reference: str,
    due_at: datetime | None,
) -> Script[bool]:
    waits = state is DeliveryState.QUEUED
    row: dict[str, object] = {
        "id": id,
        "owner": owner,
        "state": state.value,
        "error": error,
        "reference": reference,
        "due_at": seconds(due_at or now),
        "finished_at": 0 if waits else seconds(now),
    }
    return bool((yield _SETTLE, row))


def drop(code: str, now: datetime, why: str) -> Script[int]:
    rows = yield _DROP, {"code": code, "now": seconds(now), "why": why or _DECIDED}
    return len(rows)


def page(
    before: int | None, channel: str, state: DeliveryState | None, code: str, limit: int
) -> Script[list[Delivery]]:
    row: dict[str, object] = {
        "before": 2**62 if before is None else before,
        "channel": channel,
        "state": state.value if state is not None else "",
        "code": code,
        "limit": limit,
    }
    rows = yield (_OF_CODE if code else _PAGE), row
    return [_delivery(found) for found in rows]


def next_due() -> Script[datetime | None]:
    [(due,)] = yield _NEXT, {}
    return instant_or_none(due or 0)


def waiting() -> Script[dict[DeliveryState, int]]:
    rows = yield _WAITING, {}
    counts = {DeliveryState(state): int(count) for state, count in rows}
    return {state: counts.get(state, 0) for state in (DeliveryState.QUEUED, DeliveryState.SENDING)}


# -- push devices -----------------------------------------------------------------------------------------------------
def _device(row: Row) -> PushDevice:
    return PushDevice(
        id=row[0],
        username=row[1],
        endpoint=row[2],
        p256dh=row[3],
        auth=row[4],
        label=row[5],
        events=tuple(json.loads(row[6])),
        created_at=instant(row[7]),
        last_sent_at=instant_or_none(row[8]),
    )


def add_device(device: PushDevice, event: Event, limit: int) -> Script[bool]:
    [(others,)] = yield _OTHER_DEVICES, {"username": device.username, "id": device.id}
    if others >= limit:
        return False
    yield Do(
        _ADD_DEVICE,
        {
            "id": device.id,
            "username": device.username,
            "endpoint": device.endpoint,
            "public_key": device.p256dh,
            "auth": device.auth,
            "label": device.label,
            "events_json": json.dumps(list(device.events), ensure_ascii=False),
            "created_at": seconds(device.created_at),
        },
    )
    yield Effects((event,))
    return True


def devices(username: str | None, after: str, limit: int) -> Script[list[PushDevice]]:
    rows = yield _DEVICES, {"username": username or "", "after": after, "limit": limit}
    return [_device(row) for row in rows]


def device(id: str) -> Script[PushDevice | None]:
    rows = yield _ONE_DEVICE, {"id": id}
    return _device(rows[0]) if rows else None


def remove_device(id: str, event: Event, username: str) -> Script[bool]:
    if not (yield _REMOVE_DEVICE, {"id": id, "username": username}):
        return False
    yield Effects((event,))
    return True


def pushed(id: str, now: datetime) -> Script[None]:
    yield Do(_PUSHED, {"id": id, "now": seconds(now)})


def tell_replicas(event: str) -> Script[None]:
    yield Effects(cluster=({"type": event},))


def tell_pages() -> Script[None]:
    yield Effects(live=(Live(event=DELIVERIES_CHANGED, username=""),))
