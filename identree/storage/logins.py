"""Scripts over signing in and out (spec/storage section 3, spec/web-ui sections 3 and 4)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime

from identree.core.events import Event
from identree.storage import grace
from identree.storage.interface import BrowserSession, GraceChange, Login, Revocations
from identree.storage.script import Do, Effects, Owner, Script
from identree.storage.times import instant, instant_or_none, seconds

# More rows than this are never loaded into the caches; the sweep keeps far below it.
MOST_REVOCATIONS = 200_000

# How long a login may take (spec/storage section 3).
LOGIN_SECONDS = 15 * 60

_START = (
    "INSERT INTO session_nonces (nonce, issued_at, code_verifier, client_ip, expires_at, return_to, fresh_since) "
    "VALUES (:nonce, :issued_at, :code_verifier, :client_ip, :expires_at, :return_to, :fresh_since)"
)
# Whoever deletes the row has it: of two callbacks with one nonce only one can win.
_TAKE = (
    "DELETE FROM session_nonces WHERE nonce = :nonce "
    "RETURNING code_verifier, client_ip, return_to, issued_at, expires_at, fresh_since"
)
_LOGGED_IN = (
    "INSERT INTO last_oidc_auth (username, at_unix) VALUES (:username, :at_unix) "
    "ON CONFLICT (username) DO UPDATE SET at_unix = excluded.at_unix WHERE last_oidc_auth.at_unix < excluded.at_unix"
)
_LAST_LOGIN = "SELECT at_unix FROM last_oidc_auth WHERE username = :username"
_INSERT_SESSION = (
    "INSERT INTO browser_sessions (nonce, username, started_at, id_token, groups_json, authenticated_at) "
    "VALUES (:nonce, :username, :started_at, :id_token, :groups_json, :authenticated_at) "
    "ON CONFLICT (nonce) DO NOTHING"
)
_SESSION = (
    "SELECT nonce, username, started_at, groups_json, authenticated_at FROM browser_sessions WHERE nonce = :nonce"
)
_REVOKE_NONCE = (
    "INSERT INTO revoked_nonces (nonce, revoked_at) VALUES (:nonce, :revoked_at) ON CONFLICT (nonce) DO NOTHING"
)
_NONCES = "SELECT nonce, revoked_at FROM revoked_nonces ORDER BY revoked_at DESC LIMIT :limit"
_REVOKE_ADMIN = (
    "INSERT INTO revoked_admin_sessions (username, revoked_at) VALUES (:username, :revoked_at) "
    "ON CONFLICT (username) DO UPDATE SET revoked_at = excluded.revoked_at "
    "WHERE revoked_admin_sessions.revoked_at < excluded.revoked_at"
)
_ADMINS = "SELECT username, revoked_at FROM revoked_admin_sessions ORDER BY revoked_at DESC LIMIT :limit"


def start(login: Login) -> Script[None]:
    yield Do(
        _START,
        {
            "nonce": login.nonce,
            "issued_at": seconds(login.issued_at),
            "code_verifier": login.verifier,
            "client_ip": login.client_ip,
            "expires_at": seconds(login.expires_at),
            "return_to": login.return_to,
            "fresh_since": seconds(login.fresh_since),
        },
    )


def take(nonce: str, now: datetime) -> Script[Login | None]:
    rows = yield _TAKE, {"nonce": nonce}
    if not rows:
        return None
    verifier, client_ip, return_to, issued_at, expires_at, fresh_since = rows[0]
    # deployed versions know 0 as "no expiry", but a login is never older than this
    expires_at = expires_at or issued_at + LOGIN_SECONDS
    if expires_at <= seconds(now):
        return None
    return Login(
        nonce=nonce,
        verifier=verifier,
        client_ip=client_ip,
        return_to=return_to,
        issued_at=instant(issued_at),
        expires_at=instant(expires_at),
        fresh_since=instant_or_none(fresh_since),
    )


def completed(session: BrowserSession, event: Event, now: datetime) -> Script[None]:
    yield Do(_LOGGED_IN, {"username": session.username, "at_unix": seconds(now)})
    yield Do(_INSERT_SESSION, _session_row(session))
    yield Effects((event,))


def last_login(username: str) -> Script[datetime | None]:
    rows = yield _LAST_LOGIN, {"username": username}
    return instant_or_none(rows[0][0]) if rows else None


def browser_session(nonce: str) -> Script[BrowserSession | None]:
    rows = yield _SESSION, {"nonce": nonce}
    if not rows:
        return None
    nonce, username, started_at, groups, authenticated_at = rows[0]
    return BrowserSession(
        nonce=nonce,
        username=username,
        started_at=instant(started_at),
        groups=tuple(json.loads(groups)),
        authenticated_at=instant_or_none(authenticated_at),
    )


def first_sight(session: BrowserSession) -> Script[BrowserSession]:
    yield Do(_INSERT_SESSION, _session_row(session))
    stored = yield from browser_session(session.nonce)
    return stored or session


def sign_out(
    username: str, nonce: str, now: datetime, describe: Callable[[Sequence[str]], GraceChange]
) -> Script[list[str]]:
    yield Owner(username)
    hostnames = yield from grace.delete_all(username)
    yield Do(_REVOKE_NONCE, {"nonce": nonce, "revoked_at": seconds(now)})
    if hostnames:
        yield Do(grace.REVOKE, {"username": username, "revoked_at": seconds(now)})
    yield from grace.commit(describe(hostnames))
    yield Effects(cluster=({"type": "revoke_nonce", "nonce": nonce},))
    return hostnames


def revoke_admins(usernames: Sequence[str], now: datetime) -> Script[None]:
    for username in usernames:
        yield Do(_REVOKE_ADMIN, {"username": username, "revoked_at": seconds(now)})
    yield Effects(cluster=tuple({"type": "revoke_admin", "username": username} for username in usernames))


def revocations() -> Script[Revocations]:
    nonces = yield _NONCES, {"limit": MOST_REVOCATIONS}
    admins = yield _ADMINS, {"limit": MOST_REVOCATIONS}
    return Revocations(
        nonces={nonce: instant(at) for nonce, at in nonces}, admins={username: instant(at) for username, at in admins}
    )


def _session_row(session: BrowserSession) -> dict[str, object]:
    return {
        "nonce": session.nonce,
        "username": session.username,
        "started_at": seconds(session.started_at),
        "id_token": session.id_token,
        "groups_json": json.dumps(list(session.groups), ensure_ascii=False),
        "authenticated_at": seconds(session.authenticated_at),
    }
