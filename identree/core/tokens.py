"""
Every key derivation, signature and comparison of secrets (spec/http-api section 4, spec/storage section 6,
spec/host-agent section 6). Nothing else in the program uses :mod:`hmac`.

Keys and the time are arguments. Secrets are used as the bytes of their text, never hex-decoded.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from hashlib import sha256

from identree.core.challenge import GraceSession, Strength
from identree.core.errors import BadCsrfToken, FormExpired, Invalid, SessionExpired

# A browser session cookie and a form are good for this long; the cookie is renewed by use.
SESSION_SECONDS = 1800
# Deployed versions gave sign-out only 300 s, so that a page left open could not sign out; here all forms are equal.
FORM_SECONDS = 1800

ROLES = ("admin", "user")

# Decimal seconds as they appear in cookies and forms; twelve digits reach the year 33658.
_UNIX = re.compile(r"[0-9]{1,12}")
_SIGNED_UNIX = re.compile(r"-?[0-9]{1,12}")
_USERNAME = re.compile(r"[a-zA-Z0-9._-]{1,64}")
_HEX_32 = re.compile(r"[0-9a-fA-F]{32}")
_MAC = re.compile(r"[0-9a-f]{64}")


def _bytes(text: bytes | str) -> bytes:
    """UTF-8; what cannot be encoded (a lone surrogate from a hostile client) still gives bytes, never an exception."""
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text


# -- building blocks ------------------------------------------------------------------------------------------------


def derive(secret: bytes, purpose: str) -> bytes:
    """A subkey of ``secret``: 32 raw bytes, used as an HMAC key. (spec/http-api section 4.1)"""
    return hmac.digest(secret, purpose.encode(), "sha256")


def hexmac(key: bytes, message: bytes | str) -> str:
    """HMAC-SHA256 as 64 lower-case hex digits."""
    return hmac.digest(key, _bytes(message), "sha256").hex()


def same(a: bytes | str, b: bytes | str) -> bool:
    """Whether two secrets are equal, in a time that tells neither where they differ nor how long they are."""
    return hmac.compare_digest(sha256(_bytes(a)).digest(), sha256(_bytes(b)).digest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """
    The derived keys of one configuration.

    :ivar grace: signs grace sessions; ``b""`` when there is no secret for it, then rows are unsigned.
    :ivar id_tokens: seals ID tokens in the database.
    :ivar vapid: makes the key by which push services know us.
    """

    session: bytes = field(repr=False)
    csrf: bytes = field(repr=False)
    one_tap: bytes = field(repr=False)
    status: bytes = field(repr=False)
    grace: bytes = field(repr=False)
    id_tokens: bytes = field(repr=False)
    vapid: bytes = field(repr=False)

    @classmethod
    def from_secrets(cls, *, shared: str, session: str, hmac: str) -> Keys:
        """
        The token base is the first non-empty of ``hmac``, ``session`` and ``shared``. The key of grace sessions comes
        from ``session`` or ``shared`` only, never from the override. (spec/configuration section 7)

        :raise ValueError: all are empty. Everybody knows the empty key, so nothing may be signed with it.
        """
        base = _bytes(hmac or session or shared)
        if not base:
            raise ValueError("there is no secret to sign browser sessions with")
        grace = _bytes(session or shared)
        return cls(
            session=derive(base, "session"),
            csrf=derive(base, "csrf"),
            one_tap=derive(base, "onetap"),
            status=derive(base, "approval_status"),
            grace=derive(grace, "grace-session") if grace else b"",
            id_tokens=derive(base, "id-tokens"),
            vapid=derive(base, "vapid"),
        )


# -- browser sessions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionCookie:
    """
    What a valid session cookie says.

    :ivar role: ``admin`` or ``user``, as of ``issued_at``.
    :ivar issued_at: unix seconds.
    :ivar nonce: 32 hex digits; names the session when it is revoked.
    """

    username: str
    role: str
    issued_at: int
    nonce: str


def session_cookie(keys: Keys, username: str, role: str, issued_at_unix: int, nonce: str) -> str:
    """The value of the cookie ``pam_session``; arguments are valid already. (spec/http-api section 4.2)"""
    signed = f"{username}:{role}:{issued_at_unix}:{nonce}"
    return f"{signed}:{hexmac(keys.session, 'session:' + signed)}"


def read_session_cookie(keys: Keys, value: str, now_unix: int) -> SessionCookie:
    """
    :raise SessionExpired: not five valid parts, from the future, older than :data:`SESSION_SECONDS`, or wrongly
        signed. Whether its nonce is revoked is the caller's question.
    """
    parts = value.split(":", 5)
    if len(parts) != 5:
        raise SessionExpired
    username, role, issued_at, nonce, mac = parts
    well_formed = (
        _USERNAME.fullmatch(username)
        and role in ROLES
        and _UNIX.fullmatch(issued_at)
        and _HEX_32.fullmatch(nonce)
        and _MAC.fullmatch(mac)
    )
    if not well_formed or not same(mac, hexmac(keys.session, f"session:{username}:{role}:{issued_at}:{nonce}")):
        raise SessionExpired
    if not 0 <= now_unix - int(issued_at) <= SESSION_SECONDS:
        raise SessionExpired
    return SessionCookie(username=username, role=role, issued_at=int(issued_at), nonce=nonce)


def csrf_token(keys: Keys, username: str, ts: int) -> str:
    """The token that goes with ``csrf_ts`` = ``ts`` unix seconds. (spec/http-api section 4.3)"""
    return hexmac(keys.csrf, f"csrf:{username}:{ts}")


def check_csrf(keys: Keys, username: str, token: str, ts_text: str, now_unix: int, max_age: int = FORM_SECONDS) -> None:
    """
    :raise Invalid: ``ts_text`` is not an integer (key ``invalid_timestamp``).
    :raise FormExpired: made in the future, or more than ``max_age`` seconds ago.
    :raise BadCsrfToken: made for another person, another time or with another key.
    """
    if not _SIGNED_UNIX.fullmatch(ts_text):
        raise Invalid("csrf_ts: a time in whole unix seconds", key="invalid_timestamp")
    if not 0 <= now_unix - int(ts_text) <= max_age:
        raise FormExpired
    # over the text as it was sent: a token with leading zeros was never made
    if not same(token, hexmac(keys.csrf, f"csrf:{username}:{ts_text}")):
        raise BadCsrfToken


# -- one-tap links --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OneTap:
    """A token of the right form; :func:`one_tap_valid` says whether it is genuine. ``expires_at`` is unix seconds."""

    id: str
    expires_at: int
    mac: str = field(repr=False)


def one_tap_token(keys: Keys, id: str, username: str, expires_at_unix: int, hostname: str) -> str:
    """A link that decides one challenge. ``hostname`` is empty for challenges without. (spec/http-api section 4.4)"""
    mac = hexmac(keys.one_tap, f"onetap:{id}:{username}:{expires_at_unix}:{hostname}")
    return f"{id}.{expires_at_unix}.{mac}"


def read_one_tap(token: str) -> OneTap:
    """
    Only the form: the owner and the host that the signature covers are known once the challenge is found.

    :raise Invalid: not ``id.expires.signature``.
    """
    parts = token.split(".", 3)
    if len(parts) != 3 or not (
        re.fullmatch(r"[0-9a-f]{32}", parts[0]) and _UNIX.fullmatch(parts[1]) and _MAC.fullmatch(parts[2])
    ):
        raise Invalid("the link is incomplete; open it again from the notification")
    return OneTap(id=parts[0], expires_at=int(parts[1]), mac=parts[2])


def one_tap_valid(keys: Keys, one_tap: OneTap, username: str, hostname: str) -> bool:
    """Whether the token was made for this owner and host, ignoring the time."""
    return same(one_tap_token(keys, one_tap.id, username, one_tap.expires_at, hostname).rpartition(".")[2], one_tap.mac)


# -- status tokens --------------------------------------------------------------------------------------------------


def status_message(id: str, status: str, username: str, rotate: str, revoke: str, p: str) -> bytes:
    """
    What a status token signs: length-prefixed parts, empty optional ones left out. (spec/http-api section 4.5)

    :param rotate, revoke: exactly the strings of the creation response.
    :param p: stands before the revocation part; ``r`` or empty.
    """

    def part(text: str) -> bytes:
        raw = _bytes(text)
        return b"%d:%b" % (len(raw), raw)

    message = part(id) + part(status) + part(username)
    if rotate:
        message += part(rotate)
    if revoke:
        message += p.encode() + part(revoke)
    return message


def status_token_for_host(
    secret: bytes, challenge_id: str, status: str, username: str, rotate: str, revoke: str
) -> str:
    """
    Form A, the only one that deployed agents accept: goes into ``approval_token`` and ``denial_token``.

    :param secret: the secret that authenticated the request being answered, raw; an empty one gives no token.
    """
    return hexmac(secret, status_message(challenge_id, status, username, rotate, revoke, "r")) if secret else ""


def status_token_derived(keys: Keys, challenge_id: str, status: str, username: str, rotate: str, revoke: str) -> str:
    """Form S, what deployed servers send: goes into the extra fields ``…_token_derived``."""
    return hexmac(keys.status, status_message(challenge_id, status, username, rotate, revoke, ""))


def verify_status_token(
    secret: bytes, token: str, challenge_id: str, status: str, username: str, rotate: str, revoke: str
) -> bool:
    """
    What the agent does: accept (raw key, ``r``), (derived key, empty) and (derived key, ``r``). All three are computed
    whatever the first says; an empty token never verifies. (spec/host-agent section 6)
    """
    derived = derive(secret, "approval_status")
    accepted = False
    for key, p in ((secret, "r"), (derived, ""), (derived, "r")):
        accepted |= same(token, hexmac(key, status_message(challenge_id, status, username, rotate, revoke, p)))
    return accepted and bool(token) and bool(secret)


# -- grace sessions -------------------------------------------------------------------------------------------------


def grace_mac(key: bytes, username: str, hostname: str, expiry_unix: int) -> str:
    """The signature stored with a grace session; empty when ``key`` is. (spec/storage section 6)"""
    return hexmac(key, f"{username}\0{hostname}\0{expiry_unix}") if key else ""


def grace_valid(key: bytes, session: GraceSession) -> bool:
    """Whether the stored row is ours. Without a key every row is."""
    if not key:
        return True
    expiry = int(session.expires_at.timestamp())
    return same(session.mac, grace_mac(key, session.username, session.hostname, expiry))


def strength_mac(key: bytes, session: GraceSession) -> str:
    """The signature over what a grace session was opened by; empty when ``key`` is."""
    if not key:
        return ""
    strength = session.strength
    return hexmac(
        key,
        "\0".join(
            (
                "strength",
                session.username,
                session.hostname,
                str(int(session.expires_at.timestamp())),
                strength.policy,
                str(strength.approvals),
                str(int(strength.by_admin)),
                str(int(strength.by_other)),
            )
        ),
    )


def signed_grace(key: bytes, session: GraceSession) -> GraceSession:
    """The session with both its signatures."""
    expiry = int(session.expires_at.timestamp())
    return replace(
        session,
        mac=grace_mac(key, session.username, session.hostname, expiry),
        strength_mac=strength_mac(key, session),
    )


def grace_strength(key: bytes, session: GraceSession) -> Strength:
    """What the session was opened by, as far as that is ours; else the weakest."""
    if key and session.strength_mac and same(session.strength_mac, strength_mac(key, session)):
        return session.strength
    return Strength()


# -- others ---------------------------------------------------------------------------------------------------------


def escrow_token(secret: bytes, hostname: str, ts: int) -> str:
    """``X-Escrow-Token`` for ``X-Escrow-Ts`` = ``ts`` unix seconds. (spec/http-api section 4.6)"""
    return hexmac(derive(secret, "escrow"), f"escrow:{hostname}:{ts}")


def host_bind_password(ldap_secret: bytes, hostname: str) -> str:
    """The LDAP password of one host; ``hostname`` as it was sent. (spec/http-api section 4.8)"""
    return hexmac(derive(ldap_secret, "ldap-bind"), hostname)


def webhook_signature(secret: bytes, body: bytes) -> str:
    """``X-Webhook-Signature`` of a raw body. (spec/http-api section 4.7)"""
    return "sha256=" + hexmac(secret, body)


def webhook_valid(secret: bytes, header: str, body: bytes) -> bool:
    """The prefix is optional, upper-case hex is refused, and without a secret nothing is genuine."""
    return bool(secret) and same("sha256=" + header.removeprefix("sha256="), webhook_signature(secret, body))


def api_key_known(api_keys: Iterable[str], presented: str) -> bool:
    """Whether ``presented`` is one of the keys; all are compared, whichever fits. (spec/configuration section 7)"""

    def digest(key: str) -> bytes:
        return hmac.digest(b"api-key-verification", _bytes(key), "sha256")

    wanted, known = digest(presented), False
    for key in api_keys:
        known |= hmac.compare_digest(digest(key), wanted)
    return known and bool(presented)
