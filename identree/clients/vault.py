"""
The key of the CA in HashiCorp Vault's transit engine (spec/ldap section 8.5): it signs digests and never leaves Vault.

Implements :class:`identree.app.ports.SigningKey`. The token goes only into the header; messages have none of it.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from twisted.logger import Logger

from identree.app.ports import SigningFailed
from identree.clients.http import Answer, Fetch, Nonsense, Unanswered

REQUEST_SECONDS = 15.0
ANSWER_BYTES = 1 << 20
# A key that is rotated daily for ten years has fewer versions.
MOST_VERSIONS = 5000
# Of what Vault says about a failure, in characters.
SHOWN_CHARACTERS = 200
# A token is renewed when this part of its time has passed.
RENEW_PART = 0.5
# How often to see whether it is; shorter than half of the shortest life that makes sense.
RENEW_LOOK_SECONDS = 30.0

_HASHES = {"sha256": "sha2-256", "sha384": "sha2-384", "sha512": "sha2-512"}
_SIGNATURE = re.compile(r"vault:v([0-9]{1,9}):([A-Za-z0-9+/_=-]{1,4096})")


class _WithBody:
    """The client, sending ``body`` as JSON; requests of :class:`Fetch` have forms or nothing."""

    def __init__(self, http: Any, body: bytes | None) -> None:
        self._http, self._body = http, body

    def request(self, method: str, url: str, **options: Any) -> Any:
        return self._http.request(method, url, **{**options, "data": self._body})


class VaultKey:
    """
    :param http: anything with treq's ``request``.
    :param clock: an ``IReactorTime``; measures the time limits.
    :param monotonic: seconds on a clock that never steps; the token's life runs on it.
    :param address: Vault's URL.
    :param certificate: of the CA; of the key's versions the one that belongs to it signs, whichever is the latest.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        http: Any,
        clock: Any,
        monotonic: Callable[[], float],
        address: str,
        token: str,
        key_name: str,
        mount: str = "transit",
        namespace: str = "",
        certificate: x509.Certificate,
    ) -> None:
        self._http = http
        self._clock = clock
        self._monotonic = monotonic
        self._address = address.rstrip("/")
        self._token = token
        self._key_name = key_name
        self._mount = mount.strip("/")
        self._namespace = namespace
        self._public: Any = certificate.public_key()
        self._version = 0
        self._renew_at: float | None = 0.0
        self._ends_at = 0.0
        self._trouble = ""

    async def check(self) -> None:
        """
        Find the version of the key that belongs to the CA's certificate. To be called at the start.

        :raise ValueError: none does, or Vault will not sign with it; says what to do.
        :raise SigningFailed: Vault gives no usable answer now; the first signature asks again.
        """
        data = await self._ask("GET", f"{self._mount_path}/keys/{quote(self._key_name, safe='')}")
        if data.get("supports_signing") is False:
            raise ValueError(
                f"IDENTREE_MTLS_VAULT_KEY_NAME: the key {self._key_name} does not sign; use an ECDSA or RSA key"
            )
        versions = data.get("keys")
        if not isinstance(versions, dict) or len(versions) > MOST_VERSIONS:
            raise SigningFailed("Vault's answer has no usable list of key versions")
        wanted = _spki(self._public)
        found = [
            int(number)
            for number, version in versions.items()
            if isinstance(number, str) and number.isascii() and number.isdigit() and _is(version, wanted)
        ]
        if not found:
            raise ValueError(
                f"IDENTREE_MTLS_CA_CERT: its key is none of the {len(versions)} versions of {self._key_name} in Vault; "
                "set IDENTREE_MTLS_VAULT_KEY_NAME to the key that the CA's certificate was made with"
            )
        oldest = data.get("min_encryption_version")
        if isinstance(oldest, int) and max(found) < oldest:
            raise ValueError(
                f"Vault signs only with version {oldest} or later of {self._key_name}, but the CA's certificate is of "
                f"version {max(found)}; lower min_encryption_version, or make a new CA certificate"
            )
        self._version = max(found)

    async def sign(self, digest: bytes, hash_name: str) -> bytes:
        if not self._version:
            try:
                await self.check()
            except ValueError as problem:
                raise SigningFailed(str(problem)) from None
        document: dict[str, object] = {
            "input": base64.b64encode(digest).decode("ascii"),
            "hash_algorithm": _HASHES[hash_name],
            "prehashed": True,
            "marshaling_algorithm": "asn1",
            "key_version": self._version,
        }
        if isinstance(self._public, rsa.RSAPublicKey):
            document["signature_algorithm"] = "pkcs1v15"
        path = f"{self._mount_path}/sign/{quote(self._key_name, safe='')}"
        data = await self._ask("POST", path, document)
        match = _SIGNATURE.fullmatch(str(data.get("signature", "")))
        if match is None:
            raise SigningFailed("Vault's answer has no signature")
        if int(match[1]) != self._version:
            raise SigningFailed(f"Vault signed with version {match[1]} of the key instead of {self._version}")
        return self._as_in_certificates(_decoded(match[2]))

    async def renew(self) -> None:
        """
        Keep the token alive; to be called every :data:`RENEW_LOOK_SECONDS`, and cheap when nothing is to be done. What
        goes wrong is logged once, and tried again.
        """
        if self._renew_at is None or self._monotonic() < self._renew_at:
            return
        try:
            if self._ends_at:
                await self._renew()
            else:
                await self._look_up()
        except SigningFailed as problem:
            if str(problem) != self._trouble:
                self._trouble = str(problem)
                self._log.error("Vault: the token could not be renewed: {problem}", problem=problem)
            return
        if self._trouble:
            self._trouble = ""
            self._log.info("Vault: the token is renewed again")

    # -- the token ----------------------------------------------------------------------------------------------------
    async def _look_up(self) -> None:
        data = await self._ask("GET", "auth/token/lookup-self")
        seconds = _number(data.get("ttl"))
        if not seconds:
            # a root token has no end
            self._renew_at = None
            return
        if data.get("renewable") is not True:
            self._renew_at = None
            self._log.warn(
                "Vault: the token ends in {hours} hours and cannot be renewed; then no certificate can be issued. Use "
                "a periodic token",
                hours=round(seconds / 3600, 1),
            )
            return
        self._lives(seconds)

    async def _renew(self) -> None:
        data = await self._ask("POST", "auth/token/renew-self", {}, part="auth")
        seconds = _number(data.get("lease_duration"))
        now, before = self._monotonic(), self._ends_at
        if not seconds:
            raise SigningFailed("Vault's answer does not say how long the token lives")
        self._lives(seconds)
        if self._ends_at <= before + 1:
            self._renew_at = None
            self._log.warn(
                "Vault: the token has reached its longest life and ends in {hours} hours; then no certificate can be "
                "issued. Use a periodic token",
                hours=round((self._ends_at - now) / 3600, 1),
            )

    def _lives(self, seconds: float) -> None:
        now = self._monotonic()
        self._ends_at = now + seconds
        self._renew_at = now + seconds * RENEW_PART

    # -- requests -----------------------------------------------------------------------------------------------------
    @property
    def _mount_path(self) -> str:
        return quote(self._mount, safe="/")

    async def _ask(
        self, method: str, path: str, document: Mapping[str, object] | None = None, part: str = "data"
    ) -> dict[str, Any]:
        """The named part of the answer. :raise SigningFailed:"""
        headers = {"X-Vault-Token": self._token, "X-Vault-Request": "true"}
        if self._namespace:
            headers["X-Vault-Namespace"] = self._namespace
        body = None
        if document is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(document).encode()
        fetch = Fetch(_WithBody(self._http, body), self._clock)
        try:
            answer = await fetch(
                method, f"{self._address}/v1/{path}", limit=ANSWER_BYTES, seconds=REQUEST_SECONDS, headers=headers
            )
        except (Unanswered, Nonsense) as problem:
            raise SigningFailed(f"Vault at {self._address}: {problem}") from None
        if answer.status != 200:
            raise SigningFailed(self._complaint(answer))
        found = _object(answer.body).get(part)
        if not isinstance(found, dict):
            raise SigningFailed(f"Vault at {self._address} answers with something else than asked for")
        return found

    def _complaint(self, answer: Answer) -> str:
        hint = {
            403: "; the token is wrong, has ended, or its policy does not allow it",
            404: "; check the name of the key, the mount and the namespace",
            503: "; Vault is sealed or in maintenance",
        }.get(answer.status, "")
        if 300 <= answer.status < 400:
            hint = "; redirects are not followed, give the address of the active node"
        errors = _object(answer.body).get("errors")
        said = "; ".join(one for one in errors if isinstance(one, str)) if isinstance(errors, list) else ""
        # a proxy before Vault might say back what it got
        said = said.replace(self._token, "***") if self._token else said
        plain = "".join(c if c.isprintable() else " " for c in said)[:SHOWN_CHARACTERS]
        return f"Vault at {self._address} answers {answer.status}{f' ({plain})' if plain else ''}{hint}"

    def _as_in_certificates(self, signature: bytes) -> bytes:
        if not isinstance(self._public, ec.EllipticCurvePublicKey):
            return signature
        try:
            decode_dss_signature(signature)
        except ValueError:
            size = (self._public.curve.key_size + 7) // 8
            if len(signature) != 2 * size:
                raise SigningFailed("Vault's signature is neither DER nor two numbers") from None
            return encode_dss_signature(
                int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big")
            )
        return signature


def _spki(key: Any) -> bytes:
    raw: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return raw


def _is(version: object, wanted: bytes) -> bool:
    """Whether a version of the key is this one. Symmetric keys have only a time there."""
    text = version.get("public_key") if isinstance(version, dict) else None
    if not isinstance(text, str):
        return False
    try:
        return _spki(load_pem_public_key(text.encode())) == wanted
    except (ValueError, TypeError):
        return False


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_" if set("-_") & set(text) else None)
    except (binascii.Error, ValueError):
        raise SigningFailed("Vault's signature is not base64") from None


def _object(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else 0.0
