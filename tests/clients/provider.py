"""An OpenID provider in memory, which can misbehave in every way that a test wants."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

ISSUER = "https://id.example"
CLIENT_ID = "identree"
SECRET = "s3cr3t: with/ümlaut"
REDIRECT = "https://sudo.example/callback"
NOW = datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)
NONCE = "0123456789abcdef0123456789abcdef"
CODE = "c0de-that-must-not-be-told"

# Made once: an RSA key takes a while.
RSA = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
EC = {"ES256": ec.generate_private_key(ec.SECP256R1()), "ES512": ec.generate_private_key(ec.SECP521R1())}
ED = ed25519.Ed25519PrivateKey.generate()


def public_jwk(key: Any, **more: str) -> dict[str, Any]:
    """The public half as a JWK."""
    form: Any = OKPAlgorithm
    if isinstance(key, rsa.RSAPrivateKey):
        form = RSAAlgorithm
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        form = ECAlgorithm
    return {**form.to_jwk(key.public_key(), as_dict=True), "use": "sig", **more}


def claims(**changes: Any) -> dict[str, Any]:
    """Good claims; a change to None leaves one out."""
    at = int(NOW.timestamp())
    good = {
        "iss": ISSUER,
        "sub": "4711",
        "aud": CLIENT_ID,
        "iat": at,
        "exp": at + 300,
        "nonce": NONCE,
        "preferred_username": "alice",
        "groups": ["users"],
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def token(values: dict[str, Any] | None = None, *, key: Any = RSA, algorithm: str = "RS256", **headers: Any) -> str:
    """A signed ID token; its key is named k1 unless ``kid`` says otherwise (None: not named)."""
    named = {name: value for name, value in {"kid": "k1", **headers}.items() if value is not None}
    return jwt.encode(values or claims(), key, algorithm=algorithm, headers=named)


Reply = tuple[int, dict[str, str], bytes]


def reply(document: object, status: int = 200) -> Reply:
    return status, {"content-type": "application/json"}, json.dumps(document).encode()


class Provider(Resource):
    """
    :ivar replies: by path, what to answer instead: a reply, or None for never answering.
    :ivar asked: method and URL of every request so far.
    :ivar forms: the token requests.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.metadata: dict[str, Any] = {
            "issuer": ISSUER,
            "authorization_endpoint": f"{ISSUER}/authorize",
            "token_endpoint": f"{ISSUER}/token",
            "jwks_uri": f"{ISSUER}/keys",
        }
        self.keys: list[dict[str, Any]] = [public_jwk(RSA, kid="k1")]
        self.token: Any = token()
        self.takes: tuple[str, ...] = ("basic", "body")
        self.replies: dict[str, Reply | None] = {}
        self.asked: list[str] = []
        self.forms: list[dict[str, str]] = []

    def render(self, request: Any) -> Any:
        path = request.path.decode()
        host = request.getHeader("host")
        self.asked.append(f"{request.method.decode()} {host}{path}")
        answers: dict[str, Callable[[Any], Reply]] = {
            "/.well-known/openid-configuration": lambda request: reply(self.metadata),
            "/keys": lambda request: reply({"keys": self.keys}),
            "/token": self._token,
        }
        # whatever the path prefix, the last part says what is wanted
        name = next((name for name in answers if path.endswith(name)), "")
        if name in self.replies:
            made = self.replies[name]
            if made is None:
                return NOT_DONE_YET
        else:
            made = answers[name](request) if name else reply({}, 404)
        status, headers, body = made
        request.setResponseCode(status)
        for key, value in headers.items():
            request.setHeader(key, value)
        return body

    def count(self, end: str) -> int:
        return sum(asked.endswith(end) for asked in self.asked)

    def _token(self, request: Any) -> Reply:
        form = {name: values[0] for name, values in parse_qs(request.content.read().decode()).items()}
        self.forms.append(form)
        expected = base64.b64encode(b"identree:s3cr3t%3A+with%2F%C3%BCmlaut").decode()
        basic = request.getHeader("authorization") == f"Basic {expected}"
        body = (form.get("client_id"), form.get("client_secret")) == (CLIENT_ID, SECRET)
        if not (basic and "basic" in self.takes) and not (body and "body" in self.takes):
            return reply({"error": "invalid_client"}, 401)
        answer = {"access_token": "at", "token_type": "Bearer", "id_token": self.token}
        return reply({name: value for name, value in answer.items() if value is not None})
