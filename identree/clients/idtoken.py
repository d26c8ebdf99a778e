"""
Verification of an OpenID Connect ID token (OpenID Connect Core 1.0 section 3.1.3.7, RFC 7515, RFC 8725).

Pure: the token, the keys and the time come as arguments. Messages name what is wrong with a token and never quote it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK, PyJWS
from jwt.exceptions import PyJWTError

from identree.app.ports import Identity
from identree.core import names, tokens
from identree.core.errors import Invalid, LoginFailed

# Asymmetric algorithms only, each with the key types and curves that it works with.
ALGORITHMS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), ("RSA", ())),
    "ES256": ("EC", ("P-256",)),
    "ES384": ("EC", ("P-384",)),
    "ES512": ("EC", ("P-521",)),
    "EdDSA": ("OKP", ("Ed25519", "Ed448")),
}
MIN_RSA_BITS = 2048  # RFC 7518 section 3.3
# Keys of one set that are looked at; a provider has two or three.
MAX_KEYS = 32
# Keys that are tried on a token that names none.
MAX_TRIES = 8
MAX_GROUPS = 2000
MAX_GROUP_LENGTH = 256
MAX_PICTURE_LENGTH = 2048

Keys = Sequence[Mapping[str, Any]]
Claims = Mapping[str, Any]


class UnknownKey(Exception):
    """No key of the set fits the token or verifies it: the provider may have new ones."""


def invalid(detail: str) -> LoginFailed:
    return LoginFailed("login_token_invalid", 500, detail)


def usable_keys(document: object) -> Keys:
    """
    The signature keys of a JWK set (RFC 7517 section 5).

    :raise ValueError: it is no key set.
    """
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list):
        raise ValueError("it has no list of keys")
    return [key for key in keys[:MAX_KEYS] if isinstance(key, dict) and key.get("use", "sig") == "sig"]


def signed_claims(token: str, keys: Keys) -> Claims:
    """
    The claims of a token whose signature is right.

    :raise LoginFailed: ``login_token_invalid``: it can never be right, whatever the keys.
    :raise UnknownKey: not with these keys.
    """
    jws = PyJWS(algorithms=list(ALGORITHMS))
    try:
        header = jws.get_unverified_header(token)
    except (PyJWTError, ValueError, TypeError, RecursionError):
        raise invalid("the ID token is no signed token") from None
    algorithm, key_id = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise invalid(f"the ID token's algorithm is {str(algorithm)[:20]!r}, which is not accepted")
    if "crit" in header:
        raise invalid("the ID token demands extensions that are not known")
    fitting = [key for key in keys if _fits(key, algorithm, key_id)]
    for key in fitting[:MAX_TRIES]:
        try:
            public = PyJWK(dict(key), algorithm)
            if isinstance(public.key, RSAPublicKey) and public.key.key_size < MIN_RSA_BITS:
                raise invalid(f"the provider's RSA key has fewer than {MIN_RSA_BITS} bits")
            payload = jws.decode(token, public, algorithms=[algorithm])
        except (PyJWTError, ValueError, TypeError):
            continue
        return _claims(payload)
    if fitting:
        raise UnknownKey("the ID token's signature is wrong")
    raise UnknownKey(f"none of the provider's keys fits the ID token ({algorithm})")


def _fits(key: Mapping[str, Any], algorithm: str, key_id: object) -> bool:
    key_type, curves = ALGORITHMS[algorithm]
    return (
        key.get("kty") == key_type
        and (not curves or key.get("crv") in curves)
        and key.get("alg", algorithm) in (algorithm, None)
        and (key_id is None or key.get("kid") == key_id)
    )


def _claims(payload: object) -> Claims:
    try:
        claims = json.loads(payload) if isinstance(payload, (bytes, str)) else payload
    except (ValueError, RecursionError):
        claims = None
    if not isinstance(claims, dict):
        raise LoginFailed("login_claims_invalid", 500, "the ID token's claims are no JSON object")
    return claims


def check(claims: Claims, *, issuer: str, client_id: str, nonce: str, now: datetime, leeway_seconds: float) -> None:
    """
    :raise LoginFailed: ``login_token_invalid`` (500): not from this issuer, not for this client, or not at this time;
        ``login_nonce_mismatch`` (400): not for this sign-in.
    """
    if claims.get("iss") != issuer:
        raise invalid(f"the ID token's issuer is {str(claims.get('iss'))[:200]!r}, it should be {issuer!r}")
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if client_id not in audiences:
        raise invalid("the ID token is for another client (aud)")
    authorised = claims.get("azp")
    if (len(audiences) > 1 or authorised is not None) and authorised != client_id:
        raise invalid("the ID token was issued to another client (azp)")
    at = now.timestamp()
    expires = _instant(claims, "exp")
    if expires is None:
        raise invalid("the ID token has no end (exp)")
    if at >= expires + leeway_seconds:
        raise invalid("the ID token is expired; are the clocks of both machines right?")
    for name in ("nbf", "iat"):
        begins = _instant(claims, name)
        if begins is not None and at < begins - leeway_seconds:
            raise invalid(f"the ID token is from the future ({name}); are the clocks of both machines right?")
    given = claims.get("nonce")
    if not isinstance(given, str) or not tokens.same(given, nonce):
        raise LoginFailed("login_nonce_mismatch", 400, "the ID token belongs to another sign-in (nonce)")


def _instant(claims: Claims, name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e12 < value < 1e12 or math.isnan(value):
        raise invalid(f"the ID token's {name} is no time")
    return float(value)


def identity(claims: Claims) -> Identity:
    """
    :raise LoginFailed: ``login_claims_invalid`` (500): a claim has an impossible type; ``login_username_invalid``
        (400): no ``preferred_username`` of valid syntax.
    """
    groups = claims.get("groups")
    if groups is None:
        groups = []
    if not isinstance(groups, list) or not all(isinstance(group, str) for group in groups):
        raise LoginFailed("login_claims_invalid", 500, "the groups claim is no list of names")
    if len(groups) > MAX_GROUPS or any(len(group) > MAX_GROUP_LENGTH for group in groups):
        raise LoginFailed("login_claims_invalid", 500, f"more than {MAX_GROUPS} groups, or a name too long")
    username = claims.get("preferred_username")
    if username is not None and not isinstance(username, str):
        raise LoginFailed("login_claims_invalid", 500, "the preferred_username claim is no text")
    try:
        authenticated = _instant(claims, "auth_time")
        authenticated_at = None if authenticated is None else datetime.fromtimestamp(authenticated, UTC)
    except (LoginFailed, ValueError, OverflowError):
        raise LoginFailed("login_claims_invalid", 500, "the auth_time claim is no time") from None
    try:
        username = names.username(username or "")
    except Invalid:
        raise LoginFailed("login_username_invalid", 400, "no preferred_username of valid syntax") from None
    picture = claims.get("picture")
    if not isinstance(picture, str) or len(picture) > MAX_PICTURE_LENGTH or not picture.isprintable():
        picture = ""  # an ornament: never a reason to refuse
    return Identity(
        username=username,
        groups=tuple(groups),
        picture=picture if picture.startswith(("https://", "http://")) else "",
        authenticated_at=authenticated_at,
    )
