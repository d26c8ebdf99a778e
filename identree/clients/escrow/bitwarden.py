"""
Bitwarden Secrets Manager, in two forms.

The real service never sees a value: keys and values are sealed by whoever sends them. It is spoken to that way when
``IDENTREE_ESCROW_AUTH_SECRET`` is a machine account's access token, as its pages show it. With a client id and a client
secret alone there is no key to seal with; values then go as they are, which only servers of compatible products take.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.constant_time import bytes_eq
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.padding import PKCS7
from twisted.internet.task import deferLater

from identree.app.escrow import EscrowFailed, Stored
from identree.clients.escrow.base import (
    Calls,
    Grant,
    Lease,
    Refusal,
    base_url,
    identifier,
    json_object,
    needed,
    number,
    objects,
    password_in,
)
from identree.core.escrow import bitwarden_identity, item_title, path_escape, place_of, query_escape, two_parts

PRODUCT = "Bitwarden"
SCOPE = "api.secrets"
# Names of secrets opened in a run, a few milliseconds of work.
OPENED_AT_ONCE = 100

_BLOCK_BYTES = 16
_KEY_BYTES = 64
# 0.<client id>.<client secret>:<16 bytes, base64>
_ACCESS_TOKEN = re.compile(r"0\.([0-9a-fA-F-]{36})\.([^.:\s]{1,200}):([A-Za-z0-9+/]{22}==)")
# AES-256-CBC with HMAC-SHA256; the other types are of other products or too weak.
_SEALED = re.compile(r"2\.([A-Za-z0-9+/]{22}==)\|([A-Za-z0-9+/]{1,65536}={0,2})\|([A-Za-z0-9+/]{43}=)")


class Unreadable(Exception):
    """It was not sealed with this key."""


@dataclass(frozen=True, slots=True)
class SymmetricKey:
    """Bitwarden's: 32 bytes for AES-256-CBC, 32 bytes for HMAC-SHA256 over IV and ciphertext."""

    raw: bytes = field(repr=False)

    @classmethod
    def of_access_token(cls, seed: bytes) -> SymmetricKey:
        """The key that opens what comes with the login. :param seed: the 16 bytes at the token's end."""
        return cls(HKDF(SHA256(), _KEY_BYTES, b"bitwarden-accesstoken", b"sm-access-token").derive(seed))

    def seal(self, text: str, iv: bytes) -> str:
        """:param iv: 16 random bytes."""
        padder = PKCS7(8 * _BLOCK_BYTES).padder()
        encryptor = Cipher(AES256(self.raw[:32]), CBC(iv)).encryptor()
        sealed = encryptor.update(padder.update(text.encode()) + padder.finalize()) + encryptor.finalize()
        return "2." + "|".join(base64.b64encode(part).decode() for part in (iv, sealed, self._mac(iv, sealed)))

    def open(self, text: str) -> str:
        """:raise Unreadable:"""
        match = _SEALED.fullmatch(text)
        if match is None:
            raise Unreadable
        try:
            iv, sealed, mac = (base64.b64decode(part, validate=True) for part in match.groups())
            if not bytes_eq(mac, self._mac(iv, sealed)):
                raise Unreadable
            decryptor = Cipher(AES256(self.raw[:32]), CBC(iv)).decryptor()
            unpadder = PKCS7(8 * _BLOCK_BYTES).unpadder()
            plain = unpadder.update(decryptor.update(sealed) + decryptor.finalize()) + unpadder.finalize()
            return plain.decode()
        except (binascii.Error, ValueError):
            raise Unreadable from None

    def _mac(self, iv: bytes, sealed: bytes) -> bytes:
        mac = HMAC(self.raw[32:], SHA256())
        mac.update(iv + sealed)
        return mac.finalize()


class BitwardenBackend:
    """
    Implements :class:`identree.app.escrow.EscrowBackend`. A place is ``ORG`` or ``ORG/PROJECT``.

    :param random_bytes: as ``secrets.token_bytes``.
    """

    name = "bitwarden"
    revealable = True

    def __init__(
        self,
        *,
        http: Any,
        clock: Any,
        monotonic: Callable[[], float],
        random_bytes: Callable[[int], bytes],
        url: str,
        auth_id: str,
        auth_secret: str,
        path: str,
        vault_map: Mapping[str, str],
    ) -> None:
        """:raise ValueError: a setting is missing or cannot be used; says which."""
        self._url = base_url(url)
        needed(auth_secret, "IDENTREE_ESCROW_AUTH_SECRET", self.name)
        if not vault_map:
            needed(path, "IDENTREE_ESCROW_PATH", self.name)
        self._path, self._map = path, vault_map
        self._random_bytes = random_bytes
        self._token_key: SymmetricKey | None = None
        match = _ACCESS_TOKEN.fullmatch(auth_secret)
        if match is not None:
            self._client_id, self._client_secret = match[1], match[2]
            seed = base64.b64decode(match[3])
            self._token_key = SymmetricKey.of_access_token(seed)
        else:
            self._client_id = needed(auth_id, "IDENTREE_ESCROW_AUTH_ID", self.name)
            self._client_secret = auth_secret
        self._calls = Calls(http, clock, PRODUCT, (auth_secret, self._client_secret))
        self._lease = Lease(monotonic, self._log_in)

    async def store(self, hostname: str, password: str) -> Stored:
        self._calls.check_password(password)
        return await self._calls.whole(self._lease.with_token(lambda grant: self._store(grant, hostname, password)))

    async def retrieve(self, hostname: str, item_id: str, vault_id: str) -> str:
        return await self._calls.whole(self._lease.with_token(lambda grant: self._retrieve(grant, hostname, item_id)))

    async def check(self) -> None:
        await self._calls.whole(self._lease.current())

    async def keep(self) -> None:
        """A new token can be had at any time."""

    # -- the login ----------------------------------------------------------------------------------------------------
    async def _log_in(self) -> Grant:
        answer = await self._calls(
            "POST",
            f"{bitwarden_identity(self._url)}/connect/token",
            form={
                "grant_type": "client_credentials",
                "client_id": self._client_id,
                "client_secret": self._client_secret,
                "scope": SCOPE,
            },
        )
        token = answer.get("access_token")
        if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
            raise EscrowFailed(f"{PRODUCT}: the answer to the login has no token")
        raw = self._organisation_key(answer.get("encrypted_payload")) if self._token_key else b""
        return Grant(token=token, seconds=number(answer.get("expires_in")), extra=raw)

    def _organisation_key(self, payload: object) -> bytes:
        assert self._token_key is not None
        try:
            document = json_object(self._token_key.open(payload if isinstance(payload, str) else "").encode())
            raw = base64.b64decode(str(document.get("encryptionKey", "")), validate=True)
        except (Unreadable, binascii.Error):
            raw = b""
        if len(raw) != _KEY_BYTES:
            raise EscrowFailed(
                f"{PRODUCT}: the key that comes with the login cannot be opened with the access token; copy "
                "IDENTREE_ESCROW_AUTH_SECRET once more, or make a new token"
            )
        return raw

    # -- secrets ------------------------------------------------------------------------------------------------------
    async def _store(self, grant: Grant, hostname: str, password: str) -> Stored:
        key = _title(hostname)
        organisation, project = self._place(hostname)
        known = await self._find(grant, organisation, project, key)
        document: dict[str, object] = {
            "key": self._sealed(grant, key),
            "value": self._sealed(grant, password),
            "organizationId": organisation,
        }
        if self._token_key is not None:
            document["note"] = self._sealed(grant, "")
        if project:
            document["projectIds"] = [project]
        if known:
            method, url = "PUT", f"{self._url}/secrets/{path_escape(known)}"
        elif self._token_key is not None:
            method, url = "POST", f"{self._url}/organizations/{path_escape(organisation)}/secrets"
        else:
            method, url = "POST", f"{self._url}/secrets"
        answer = await self._ask(method, url, grant, document, password)
        return Stored(item_id=identifier(answer.get("id"), PRODUCT))

    async def _find(self, grant: Grant, organisation: str, project: str, key: str) -> str:
        """The id of the host's secret; empty when there is none."""
        if self._token_key is None:
            url = f"{self._url}/organizations/{path_escape(organisation)}/secrets?search={query_escape(key)}"
            found = objects((await self._ask("GET", url, grant)).get("data"))
        else:
            # it cannot search what it cannot read
            within = f"projects/{path_escape(project)}" if project else f"organizations/{path_escape(organisation)}"
            found = objects((await self._ask("GET", f"{self._url}/{within}/secrets", grant)).get("secrets"))
        for position, one in enumerate(found):
            if grant.extra and position % OPENED_AT_ONCE == OPENED_AT_ONCE - 1:
                # hosts wait for their answers meanwhile
                await deferLater(self._calls.clock, 0)
            if self._opened(grant, one.get("key")) == key:
                return identifier(one.get("id"), PRODUCT)
        return ""

    async def _retrieve(self, grant: Grant, hostname: str, item_id: str) -> str:
        if not item_id:
            item_id = await self._find(grant, *self._place(hostname), _title(hostname))
        if not item_id:
            raise EscrowFailed(f"{PRODUCT}: there is no secret of this host")
        answer = await self._ask("GET", f"{self._url}/secrets/{path_escape(item_id)}", grant)
        return password_in(self._opened(grant, answer.get("value")), PRODUCT)

    def _place(self, hostname: str) -> tuple[str, str]:
        organisation, project = two_parts(place_of(hostname, self._map, self._path))
        if not organisation or "/" in project:
            raise EscrowFailed(
                f"{PRODUCT}: ORGANISATION or ORGANISATION/PROJECT is needed for this host in IDENTREE_ESCROW_PATH or "
                "IDENTREE_ESCROW_VAULT_MAP"
            )
        return organisation, project

    def _sealed(self, grant: Grant, text: str) -> str:
        return SymmetricKey(grant.extra).seal(text, self._random_bytes(_BLOCK_BYTES)) if grant.extra else text

    @staticmethod
    def _opened(grant: Grant, value: object) -> str | None:
        """None: it is no text, or sealed with another key."""
        if not isinstance(value, str) or not grant.extra:
            return value if isinstance(value, str) else None
        try:
            return SymmetricKey(grant.extra).open(value)
        except Unreadable:
            return None

    async def _ask(
        self,
        method: str,
        url: str,
        grant: Grant,
        document: Mapping[str, object] | None = None,
        password: str = "",
    ) -> dict[str, Any]:
        try:
            return await self._calls(
                method,
                url,
                headers={"Authorization": f"Bearer {grant.token}"},
                document=document,
                secrets=(password, grant.token),
            )
        except Refusal as refusal:
            if refusal.status == 400 and document is not None and self._token_key is None:
                raise Refusal(
                    f"{refusal.reason}; Bitwarden itself takes only sealed values: set IDENTREE_ESCROW_AUTH_SECRET to "
                    "the whole access token of a machine account",
                    refusal.status,
                ) from None
            raise


def _title(hostname: str) -> str:
    try:
        return item_title(hostname)
    except ValueError as problem:
        raise EscrowFailed(f"{PRODUCT}: {problem}") from None
