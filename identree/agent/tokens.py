"""Status tokens (spec/host-agent section 6): whether an answer comes from somebody who knows this host's secret."""

from __future__ import annotations

import hmac


def message(challenge: str, status: str, user: str, rotate: str, revoke: str, prefix: str) -> bytes:
    """What is signed. :param prefix: marks the revocation part; ``r``, or nothing in the older form."""
    fields = _part(challenge) + _part(status) + _part(user)
    if rotate:
        fields += _part(rotate)
    if revoke:
        fields += prefix.encode() + _part(revoke)
    return fields


def sign(
    key: bytes, challenge: str, status: str, user: str, rotate: str = "", revoke: str = "", prefix: str = "r"
) -> str:
    """The token: lower-case hex of HMAC-SHA256."""
    return hmac.new(key, message(challenge, status, user, rotate, revoke, prefix), "sha256").hexdigest()


def derived_key(secret: str) -> bytes:
    return hmac.new(secret.encode(), b"approval_status", "sha256").digest()


def verify(
    tokens: list[str], secret: str, challenge: str, status: str, user: str, rotate: str = "", revoke: str = ""
) -> bool:
    """
    Whether one of ``tokens`` has one of the three forms: secret and ``r``, derived key and nothing, derived key and
    ``r``. All are computed and compared in constant time.
    """
    raw, derived = secret.encode(), derived_key(secret)
    valid = False
    for token in tokens:
        given = token.encode("utf-8", "replace")
        for key, prefix in ((raw, "r"), (derived, ""), (derived, "r")):
            expected = sign(key, challenge, status, user, rotate, revoke, prefix)
            valid |= bool(token) and hmac.compare_digest(expected.encode(), given)
    return valid


def _part(text: str) -> bytes:
    data = text.encode()
    return b"%d:%s" % (len(data), data)
