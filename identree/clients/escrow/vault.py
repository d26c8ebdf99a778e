"""
HashiCorp Vault, or OpenBao: a KV engine of version 2. With ``IDENTREE_ESCROW_AUTH_ID`` the AppRole of that id logs in,
without it the secret is a token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from twisted.logger import Logger

from identree.app.escrow import EscrowFailed, Stored
from identree.clients.escrow.base import (
    Calls,
    Grant,
    Lease,
    Refusal,
    base_url,
    header_value,
    needed,
    number,
    part,
    password_in,
)
from identree.core.escrow import kv_path, kv_path_of_item, place_of

PRODUCT = "Vault"
# A given token is renewed when this part of its time has passed.
RENEW_PART = 0.5
# A renewal that gives less than this is the last one that the token's longest life allows.
SHORTEST_LEASE_SECONDS = 30.0


class VaultBackend:
    """
    Implements :class:`identree.app.escrow.EscrowBackend`.

    :param namespace: sent as ``X-Vault-Namespace``; empty: none.
    """

    _log = Logger()

    name = "vault"
    revealable = True

    def __init__(
        self,
        *,
        http: Any,
        clock: Any,
        monotonic: Callable[[], float],
        url: str,
        auth_id: str,
        auth_secret: str,
        path: str,
        vault_map: Mapping[str, str],
        namespace: str = "",
    ) -> None:
        """:raise ValueError: a setting is missing or cannot be used; says which."""
        self._url = base_url(url)
        self._auth_id = auth_id
        self._secret = needed(auth_secret, "IDENTREE_ESCROW_AUTH_SECRET", self.name)
        self._namespace = header_value(namespace, "the namespace of Vault")
        if not auth_id:
            header_value(auth_secret, "IDENTREE_ESCROW_AUTH_SECRET")
        self._path, self._map = path, vault_map
        for place in {*vault_map.values(), *([path] if path or not vault_map else [])}:
            kv_path(place, "any")
        self._calls = Calls(http, clock, PRODUCT, (auth_secret,))
        self._monotonic = monotonic
        self._lease = Lease(monotonic, self._log_in, self._renew) if auth_id else None
        self._given = Grant(token=auth_secret, seconds=math.inf)
        self._look_at = 0.0
        self._ends_at = 0.0
        self._trouble = ""

    async def store(self, hostname: str, password: str) -> Stored:
        self._calls.check_password(password)
        return await self._calls.whole(self._store(hostname, password))

    async def retrieve(self, hostname: str, item_id: str, vault_id: str) -> str:
        return await self._calls.whole(self._retrieve(hostname, item_id))

    async def check(self) -> None:
        await self._calls.whole(self._with_token(self._look_up))

    async def keep(self) -> None:
        """A given token lives only while it is renewed; one of an AppRole can be had again at any time."""
        if self._lease is not None or self._monotonic() < self._look_at:
            return
        try:
            await self._calls.whole(self._keep())
        except EscrowFailed as problem:
            if problem.reason != self._trouble:
                self._trouble = problem.reason
                self._log.error("The token of the escrow back end could not be renewed: {problem}", problem=problem)
            return
        if self._trouble:
            self._trouble = ""
            self._log.info("The token of the escrow back end is renewed again")

    # -- secrets ------------------------------------------------------------------------------------------------------
    async def _store(self, hostname: str, password: str) -> Stored:
        try:
            path = kv_path(place_of(hostname, self._map, self._path), hostname)
        except ValueError as problem:
            raise EscrowFailed(f"{PRODUCT}: {problem}") from None
        document = {"data": {"password": password}}

        async def write(grant: Grant) -> None:
            try:
                await self._ask("POST", path, grant, document, password)
            except Refusal as refusal:
                if refusal.status < 400:
                    raise
                # some policies and proxies let only one of the two pass; to Vault they are the same
                await self._ask("PUT", path, grant, document, password)

        await self._with_token(write)
        return Stored(item_id=f"{self._url}/v1/{path}")

    async def _retrieve(self, hostname: str, item_id: str) -> str:
        wrong = ""
        places = [kv_path_of_item(item_id, self._url, hostname)]
        for place in (place_of(hostname, self._map, self._path), self._path):
            try:
                places.append(kv_path(place, hostname))
            except ValueError as problem:
                wrong = str(problem)
        paths = list(dict.fromkeys(path for path in places if path))
        if not paths:
            raise EscrowFailed(f"{PRODUCT}: {wrong}")

        async def read(grant: Grant) -> str:
            for path in paths:
                try:
                    answer = await self._ask("GET", path, grant)
                except Refusal as refusal:
                    # deleted, or moved since by another map
                    if refusal.status == 404 and path != paths[-1]:
                        continue
                    raise
                return password_in(part(answer, "data", "data").get("password"), PRODUCT)
            raise AssertionError  # the last path returns or raises

        password: str = await self._with_token(read)
        return password

    # -- tokens -------------------------------------------------------------------------------------------------------
    async def _with_token(self, work: Callable[[Grant], Any]) -> Any:
        if self._lease is None:
            return await work(self._given)
        return await self._lease.with_token(work, (403,))

    async def _log_in(self) -> Grant:
        document = {"role_id": self._auth_id, "secret_id": self._secret}
        answer = await self._ask("POST", "auth/approle/login", None, document)
        return self._granted(answer, "")

    async def _renew(self, token: str) -> Grant:
        answer = await self._ask("POST", "auth/token/renew-self", Grant(token=token, seconds=0), {})
        grant = self._granted(answer, token)
        if grant.seconds < SHORTEST_LEASE_SECONDS:
            raise EscrowFailed(f"{PRODUCT}: the token cannot be renewed for long")
        return grant

    @staticmethod
    def _granted(answer: Mapping[str, Any], token: str) -> Grant:
        auth = part(answer, "auth")
        given = auth.get("client_token") or token
        if not isinstance(given, str) or not given or not given.isascii() or not given.isprintable():
            raise EscrowFailed(f"{PRODUCT}: the answer to the login has no token")
        return Grant(token=given, seconds=number(auth.get("lease_duration")), renewable=auth.get("renewable") is True)

    async def _look_up(self, grant: Grant) -> dict[str, Any]:
        return part(await self._ask("GET", "auth/token/lookup-self", grant), "data")

    async def _keep(self) -> None:
        if self._ends_at:
            answer = await self._ask("POST", "auth/token/renew-self", self._given, {})
            seconds, before = number(part(answer, "auth").get("lease_duration")), self._ends_at
            if not seconds:
                raise EscrowFailed(f"{PRODUCT}: the answer does not say how long the token lives")
            self._lives(seconds)
            if self._ends_at <= before + 1:
                self._ends("has reached its longest life", seconds)
            return
        data = await self._look_up(self._given)
        seconds = number(data.get("ttl"))
        if not seconds:
            # a root token has no end
            self._look_at = math.inf
        elif data.get("renewable") is not True:
            self._ends("cannot be renewed", seconds)
        else:
            self._lives(seconds)

    def _lives(self, seconds: float) -> None:
        now = self._monotonic()
        self._ends_at = now + seconds
        self._look_at = now + seconds * RENEW_PART

    def _ends(self, why: str, seconds: float) -> None:
        self._look_at = math.inf
        self._log.warn(
            "The token of the escrow back end {why} and ends in {hours} hours; then no password can be stored or "
            "revealed. Use a periodic token, or an AppRole",
            why=why,
            hours=round(seconds / 3600, 1),
        )

    # -- requests -----------------------------------------------------------------------------------------------------
    async def _ask(
        self,
        method: str,
        path: str,
        grant: Grant | None,
        document: Mapping[str, object] | None = None,
        password: str = "",
    ) -> dict[str, Any]:
        headers = {"X-Vault-Request": "true"}
        if grant is not None:
            headers["X-Vault-Token"] = grant.token
        if self._namespace:
            headers["X-Vault-Namespace"] = self._namespace
        return await self._calls(
            method,
            f"{self._url}/v1/{path}",
            headers=headers,
            document=document,
            secrets=(password, grant.token if grant else ""),
        )
