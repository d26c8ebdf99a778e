"""Scripts over challenges (spec/storage sections 3, 5 and 8)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from identree.core.challenge import (
    Approval,
    Challenge,
    GraceSession,
    HostContext,
    Live,
    Status,
    Step,
)
from identree.core.errors import AlreadyResolved, NotFound, StorageUnavailable, TooManyPending
from identree.core.explanation import Explanation
from identree.storage.grace import UPSERT as UPSERT_GRACE
from identree.storage.grace import from_row as grace_from_row
from identree.storage.grace import to_row as grace_row
from identree.storage.history import INSERT as INSERT_HISTORY
from identree.storage.history import to_row as history_row
from identree.storage.interface import Caps, Change, Opening, OwnerState
from identree.storage.script import Do, Effects, Owner, OwnerOf, Row, Script
from identree.storage.times import instant, instant_or_none, seconds

# Creations between two counts of all pending challenges. Nothing but a creation can use up the room that a count found,
# so one process stays exact; n replicas may overrun the total by n times this.
RECOUNT_EVERY = 250
# The next count begins while so many places are left, for those who come while it is under way: many at once would all
# count, which takes milliseconds when thousands are pending.
RESERVE = 50

_COLUMNS = (
    "id, user_code, username, hostname, reason, created_at, expires_at, status, approved_by, approved_at, denied_by, "
    "deny_reason, breakglass_rotate_before, revoke_tokens_before, policy_name, required_approvals, require_admin, "
    "breakglass_bypass_allowed, breakglass_override, one_tap_used, approvals_json, command, cwd, tty, remote_host, "
    "remote_addr, policy_json"
)
_WIDTH = _COLUMNS.count(",") + 1
_QUALIFIED = ", ".join("c." + name.strip() for name in _COLUMNS.split(","))

# The owner's few challenges are found by their name. Without the concatenation PostgreSQL, which plans once and perhaps
# on an empty table, may go through all that are pending instead.
_GRACE = "g.expiry_unix, g.hmac_hex, g.policy_name, g.approvals, g.by_admin, g.by_other, g.strength_mac"

_OWNER_STATE = f"""
SELECT
    (SELECT COUNT(*) FROM challenges
        WHERE username = :username AND status /*postgres || ''*/ = 'pending' AND expires_at > :now),
    (SELECT revoked_at FROM revoke_tokens_before WHERE username = :username),
    (SELECT rotated_at FROM rotate_breakglass_before WHERE hostname = :hostname),
    {_GRACE}
FROM (SELECT 1 AS one) AS always LEFT JOIN grace_sessions g ON g.username = :username AND g.hostname = :hostname
""".strip()  # noqa: S608 - constants

_COUNT_PENDING = "SELECT COUNT(*) FROM challenges WHERE status = 'pending' AND expires_at > :now"

_INSERT = (
    f"INSERT INTO challenges ({_COLUMNS}) VALUES (:"  # noqa: S608 - a constant
    + ", :".join(name.strip() for name in _COLUMNS.split(","))
    + ")"
)

_BY_ID = f"SELECT {_COLUMNS} FROM challenges WHERE id = :id"  # noqa: S608
_BY_CODE = f"SELECT {_COLUMNS} FROM challenges WHERE user_code = :user_code"  # noqa: S608
_PENDING = (
    f"SELECT {_COLUMNS} FROM challenges WHERE status = 'pending' AND expires_at > :now "  # noqa: S608
    "ORDER BY expires_at, created_at, id LIMIT :limit"
)
_PENDING_OF = (
    f"SELECT {_COLUMNS} FROM challenges WHERE username = :username "  # noqa: S608
    "AND status /*postgres || ''*/ = 'pending' AND expires_at > :now ORDER BY expires_at, created_at, id LIMIT :limit"
)

_FOR_DECISION = f"""
SELECT {_QUALIFIED}, r.revoked_at, {_GRACE}
FROM challenges c
LEFT JOIN revoke_tokens_before r ON r.username = c.username
LEFT JOIN grace_sessions g ON g.username = c.username AND g.hostname = c.hostname
WHERE c.id = :id
""".strip()  # noqa: S608

_UPDATE_IF_UNCHANGED = """
UPDATE challenges SET status = :status, approved_by = :approved_by, approved_at = :approved_at, denied_by = :denied_by,
    deny_reason = :deny_reason, approvals_json = :approvals_json, breakglass_override = :breakglass_override,
    one_tap_used = :one_tap_used
WHERE id = :id AND status = 'pending' AND approvals_json = :seen AND one_tap_used = :seen_one_tap RETURNING 1
""".strip()

# Only the owner's own session has a token that is good for the owner's host.
_KEEP_ID_TOKEN = """
UPDATE challenges SET raw_id_token = COALESCE(
    (SELECT s.id_token FROM browser_sessions s WHERE s.nonce = :nonce AND s.username = challenges.username), ''
) WHERE id = :id
""".strip()
_ID_TOKEN = "SELECT raw_id_token FROM challenges WHERE id = :id AND status = 'approved'"  # noqa: S105

# A plain subquery with LIMIT may be run anew for every row by PostgreSQL, and then claims more than LIMIT.
_EXPIRE = f"""
WITH chosen AS MATERIALIZED (
    SELECT id FROM challenges WHERE status = 'pending' AND expires_at <= :now ORDER BY expires_at LIMIT :limit
    /*postgres FOR UPDATE SKIP LOCKED*/
)
UPDATE challenges SET status = 'expired' WHERE status = 'pending' AND id IN (SELECT id FROM chosen)
RETURNING {_COLUMNS}
""".strip()  # noqa: S608


class Headroom:
    """
    How many creations may follow the last count of all pending challenges before the next one is due.

    It is only ever too small: a refused or repeated creation uses up a place that it does not take.
    """

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = 0

    def take(self) -> bool:
        if self._left <= 0:
            return False
        self._left -= 1
        return self._left != RESERVE

    def counted(self, free: int) -> None:
        """
        :param free: places left; one of them is taken by the creation that counted. Up to ``RESERVE`` others may be
            taken by creations that the count has not seen.
        """
        self._left = max(0, min(free - 1, RECOUNT_EVERY) - RESERVE)


def _approvals(text: str) -> tuple[Approval, ...]:
    """:raise ValueError: not what we or deployed versions write."""
    if text == "[]":
        return ()
    try:
        return tuple(
            Approval(
                approver=str(entry["approver"]),
                at=_approved_at(entry["approved_at"]),
                as_admin=entry.get("as_admin") is True,
            )
            for entry in json.loads(text) or ()
        )
    except (KeyError, TypeError, AttributeError) as e:
        raise ValueError("approvals are not a list of approver and approved_at") from e


def _approved_at(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def _approvals_json(approvals: Sequence[Approval]) -> str:
    if not approvals:
        return "[]"
    return json.dumps(
        [
            {
                "approver": approval.approver,
                "approved_at": approval.at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                **({"as_admin": True} if approval.as_admin else {}),
            }
            for approval in approvals
        ],
        ensure_ascii=False,
        separators=(",", ":"),
    )


def _snapshot_json(challenge: Challenge) -> str:
    """What the policy said that has no column of its own; empty where no policy said anything."""
    values: dict[str, object] = {}
    if challenge.forbid_self_approval:
        values["forbid_self_approval"] = True
    if challenge.approver_groups:
        values["approver_groups"] = list(challenge.approver_groups)
    if challenge.max_grace is not None:
        values["max_grace"] = int(challenge.max_grace.total_seconds())
    if challenge.explanation != Explanation():
        values["explanation"] = json.loads(challenge.explanation.to_json())
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")) if values else ""


def _snapshot(text: str) -> tuple[bool, tuple[str, ...], timedelta | None, Explanation]:
    """:raise ValueError: not what we write."""
    if not text:
        return False, (), None, Explanation()
    try:
        values = json.loads(text)
        groups, longest = values.get("approver_groups", []), values.get("max_grace")
        return (
            values.get("forbid_self_approval") is True,
            tuple(str(group) for group in groups),
            None if longest is None else timedelta(seconds=int(longest)),
            Explanation.from_json(json.dumps(values.get("explanation", {}))),
        )
    except (TypeError, AttributeError) as e:
        raise ValueError("the policy of a challenge is unreadable") from e


def from_row(row: Row, *, strict: bool = False) -> Challenge:
    """
    :param strict: refuse unreadable approvals instead of showing none; whoever decides must not count from zero, nor
        take a restriction that cannot be read for none.
    """
    try:
        approvals = _approvals(row[20])
        forbid_self, groups, max_grace, explanation = _snapshot(row[26])
    except ValueError as e:
        if strict:
            raise StorageUnavailable("error", f"approvals or policy of challenge {row[0][:8]} are unreadable") from e
        approvals = ()
        forbid_self, groups, max_grace, explanation = True, (), None, Explanation()
    return Challenge(
        id=row[0],
        user_code=row[1],
        username=row[2],
        hostname=row[3],
        reason=row[4],
        created_at=instant(row[5]),
        expires_at=instant(row[6]),
        status=Status(row[7]),
        approved_by=row[8],
        approved_at=instant_or_none(row[9]),
        denied_by=row[10],
        deny_reason=row[11],
        rotate_before=row[12],
        revoke_before=row[13],
        policy_name=row[14],
        required_approvals=max(1, row[15]),
        require_admin=bool(row[16]),
        bypass_allowed=bool(row[17]),
        overridden=bool(row[18]),
        one_tap_used=bool(row[19]),
        approvals=approvals,
        context=HostContext(command=row[21], cwd=row[22], tty=row[23], remote_host=row[24]),
        remote_addr=row[25],
        forbid_self_approval=forbid_self,
        approver_groups=groups,
        max_grace=max_grace,
        explanation=explanation,
    )


def to_row(challenge: Challenge) -> dict[str, object]:
    context = challenge.context
    return {
        "id": challenge.id,
        "user_code": challenge.user_code,
        "username": challenge.username,
        "hostname": challenge.hostname,
        "reason": challenge.reason,
        "created_at": seconds(challenge.created_at),
        "expires_at": seconds(challenge.expires_at),
        "status": challenge.status.value,
        "approved_by": challenge.approved_by,
        "approved_at": seconds(challenge.approved_at),
        "denied_by": challenge.denied_by,
        "deny_reason": challenge.deny_reason,
        "breakglass_rotate_before": challenge.rotate_before,
        "revoke_tokens_before": challenge.revoke_before,
        "policy_name": challenge.policy_name,
        "required_approvals": challenge.required_approvals,
        "require_admin": int(challenge.require_admin),
        "breakglass_bypass_allowed": int(challenge.bypass_allowed),
        "breakglass_override": int(challenge.overridden),
        "one_tap_used": int(challenge.one_tap_used),
        "approvals_json": _approvals_json(challenge.approvals),
        "command": context.command,
        "cwd": context.cwd,
        "tty": context.tty,
        "remote_host": context.remote_host,
        "remote_addr": challenge.remote_addr,
        "policy_json": _snapshot_json(challenge),
    }


def _joined(username: str, hostname: str, columns: Row) -> GraceSession | None:
    """The grace session that came with a join; None where there was none."""
    return None if columns[0] is None else grace_from_row((username, hostname, *columns))


def create(
    username: str,
    hostname: str,
    code: str,
    opening: Opening,
    caps: Caps,
    now: datetime,
    headroom: Headroom,
    keeps: Callable[[GraceSession], bool],
) -> Script[Step]:
    """
    :raise TooManyPending: a cap is reached.

    The driver raises :class:`~identree.storage.script.Taken` when another challenge has this code: the insertion
    travels with the commit, and asking first would cost every creation a round trip for what happens once in 10^14.
    """
    at = seconds(now)
    yield Owner(username)
    [row] = yield _OWNER_STATE, {"username": username, "hostname": hostname, "now": at}
    mine, revoked_at, rotated_at = row[:3]
    if mine >= caps.per_user:
        raise TooManyPending("too many pending challenges for this user")
    if not headroom.take():
        [(total,)] = yield _COUNT_PENDING, {"now": at}
        if total >= caps.total:
            raise TooManyPending("too many pending challenges")
        headroom.counted(caps.total - total)
    grace = _joined(username, hostname, row[3:])
    state = OwnerState(revoked_at=instant_or_none(revoked_at), host_rotated_at=instant_or_none(rotated_at), grace=grace)
    step = opening(code, state)
    yield Do(_INSERT, to_row(step.challenge))
    yield from _consequences(step, grace, keeps)
    return step


def by_id(id: str) -> Script[Challenge | None]:
    rows = yield _BY_ID, {"id": id}
    return from_row(rows[0]) if rows else None


def by_code(user_code: str) -> Script[Challenge | None]:
    rows = yield _BY_CODE, {"user_code": user_code}
    return from_row(rows[0]) if rows else None


def pending(username: str | None, now: datetime, limit: int) -> Script[list[Challenge]]:
    if username is None:
        rows = yield _PENDING, {"now": seconds(now), "limit": limit}
    else:
        rows = yield _PENDING_OF, {"username": username, "now": seconds(now), "limit": limit}
    return [from_row(row) for row in rows]


def id_token(id: str) -> Script[str]:
    """What an approval has kept for the host, sealed; empty: nothing."""
    rows = yield _ID_TOKEN, {"id": id}
    return str(rows[0][0]) if rows else ""


def decide(id: str, change: Change, keeps: Callable[[GraceSession], bool], session: str = "") -> Script[Step]:
    """
    :param session: the nonce of the browser session of whoever decides.
    :raise NotFound: unknown id.
    :raise AlreadyResolved: another decision won, even one by a program that takes no lock.
    """
    yield OwnerOf(id)
    rows = yield _FOR_DECISION, {"id": id}
    if not rows:
        raise NotFound(id[:8])
    row = rows[0]
    before = from_row(row, strict=True)
    step = change(before, instant_or_none(row[_WIDTH]))
    after = step.challenge
    updated = yield (
        _UPDATE_IF_UNCHANGED,
        {
            "id": id,
            "seen": row[20],
            "seen_one_tap": row[19],
            "status": after.status.value,
            "approved_by": after.approved_by,
            "approved_at": seconds(after.approved_at),
            "denied_by": after.denied_by,
            "deny_reason": after.deny_reason,
            "approvals_json": _approvals_json(after.approvals),
            "breakglass_override": int(after.overridden),
            "one_tap_used": int(after.one_tap_used),
        },
    )
    if not updated:
        raise AlreadyResolved(id[:8])
    if session and after.status is Status.APPROVED:
        yield Do(_KEEP_ID_TOKEN, {"id": id, "nonce": session})
    existing = _joined(before.username, before.hostname, row[_WIDTH + 1 :])
    yield from _consequences(step, existing, keeps)
    return step


def expire(now: datetime, change: Callable[[Challenge], Step], limit: int) -> Script[list[Step]]:
    """One statement claims them, so each is expired by exactly one caller, also with several replicas."""
    rows = yield _EXPIRE, {"now": seconds(now), "limit": limit}
    if not rows:
        return []
    overdue = sorted((from_row(row) for row in rows), key=lambda challenge: (challenge.expires_at, challenge.id))
    steps = [change(replace(challenge, status=Status.PENDING)) for challenge in overdue]
    live: list[Live] = []
    for step in steps:
        for entry in step.history:
            yield Do(INSERT_HISTORY, history_row(entry))
        live.extend(step.live)
    yield Effects(tuple(event for step in steps for event in step.events), tuple(live))
    return steps


def _consequences(step: Step, existing: GraceSession | None, keeps: Callable[[GraceSession], bool]) -> Script[None]:
    """
    What commits with the challenge. An approval never shortens a grace session: a later one stays as it is, if it is
    genuine; what a session was opened by belongs to its end.
    """
    for entry in step.history:
        yield Do(INSERT_HISTORY, history_row(entry))
    if step.grace is not None and not (
        existing is not None
        and (existing.username, existing.hostname) == (step.grace.username, step.grace.hostname)
        and existing.expires_at > step.grace.expires_at
        and keeps(existing)
    ):
        yield Do(UPSERT_GRACE, grace_row(step.grace))
    if step.events or step.live:
        yield Effects(step.events, step.live)
