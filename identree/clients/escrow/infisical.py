"""Infisical, through a machine identity with Universal Auth: one secret per host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from identree.app.escrow import EscrowFailed, Stored
from identree.clients.escrow.base import Calls, Grant, Lease, Refusal, base_url, needed, number, part, password_in
from identree.core.escrow import infisical_name, path_escape, place_of, query_escape, two_parts

PRODUCT = "Infisical"
DEFAULT_ENVIRONMENT = "prod"
# Says whose password a secret is: the names of two hosts can become the same.
_COMMENT = "break-glass password of "


class InfisicalBackend:
    """Implements :class:`identree.app.escrow.EscrowBackend`. A place is ``WORKSPACE`` or ``WORKSPACE/ENVIRONMENT``."""

    name = "infisical"
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
    ) -> None:
        """:raise ValueError: a setting is missing; says which."""
        self._url = base_url(url)
        self._auth_id = needed(auth_id, "IDENTREE_ESCROW_AUTH_ID", self.name)
        self._secret = needed(auth_secret, "IDENTREE_ESCROW_AUTH_SECRET", self.name)
        if not vault_map:
            needed(path, "IDENTREE_ESCROW_PATH", self.name)
        self._path, self._map = path, vault_map
        self._calls = Calls(http, clock, PRODUCT, (auth_secret,))
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

    async def _log_in(self) -> Grant:
        answer = await self._calls(
            "POST",
            f"{self._url}/api/v1/auth/universal-auth/login",
            document={"clientId": self._auth_id, "clientSecret": self._secret},
        )
        token = answer.get("accessToken")
        if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
            raise EscrowFailed(f"{PRODUCT}: the answer to the login has no token")
        return Grant(token=token, seconds=number(answer.get("expiresIn")))

    async def _store(self, grant: Grant, hostname: str, password: str) -> Stored:
        workspace, environment, name = self._address(hostname)
        document = {
            "workspaceId": workspace,
            "environment": environment,
            "secretPath": "/",
            "secretValue": password,
            "secretComment": _COMMENT + hostname,
        }
        url = f"{self._url}/api/v3/secrets/raw/{path_escape(name)}"
        if await self._exists(grant, workspace, environment, name, hostname):
            try:
                await self._ask("PATCH", url, grant, document, password)
            except Refusal as refusal:
                if refusal.status != 404:
                    raise
                await self._ask("POST", url, grant, document, password)
        else:
            await self._ask("POST", url, grant, document, password)
        return Stored(item_id=f"{workspace}/{environment}/{name}")

    async def _exists(self, grant: Grant, workspace: str, environment: str, name: str, hostname: str) -> bool:
        """:raise EscrowFailed: and it is another host's."""
        try:
            answer = await self._ask("GET", self._secret_url(workspace, environment, name), grant)
        except Refusal as refusal:
            if refusal.status == 404:
                return False
            if refusal.status == 403:
                # an identity that may only write cannot be told
                return True
            raise
        comment = part(answer, "secret").get("secretComment")
        if isinstance(comment, str) and comment.startswith(_COMMENT) and comment != _COMMENT + hostname:
            other = comment.removeprefix(_COMMENT)[:253]
            raise EscrowFailed(
                f"{PRODUCT}: the name {name} is taken by the host {other!r}; give the two hosts different workspaces "
                "or environments with IDENTREE_ESCROW_VAULT_MAP"
            )
        return True

    async def _retrieve(self, grant: Grant, hostname: str, item_id: str) -> str:
        address = item_id.split("/")
        if len(address) == 3 and address[2] == _name(hostname) and all(address):
            workspace, environment, name = address
        else:
            workspace, environment, name = self._address(hostname)
        answer = await self._ask("GET", self._secret_url(workspace, environment, name), grant)
        secret = part(answer, "secret")
        comment = secret.get("secretComment")
        if isinstance(comment, str) and comment.startswith(_COMMENT) and comment != _COMMENT + hostname:
            raise EscrowFailed(f"{PRODUCT}: the secret {name} is the password of another host of a similar name")
        return password_in(secret.get("secretValue"), PRODUCT)

    def _address(self, hostname: str) -> tuple[str, str, str]:
        workspace, environment = two_parts(place_of(hostname, self._map, self._path))
        if not workspace or "/" in environment:
            raise EscrowFailed(
                f"{PRODUCT}: WORKSPACE or WORKSPACE/ENVIRONMENT is needed for this host in IDENTREE_ESCROW_PATH or "
                "IDENTREE_ESCROW_VAULT_MAP"
            )
        return workspace, environment or DEFAULT_ENVIRONMENT, _name(hostname)

    def _secret_url(self, workspace: str, environment: str, name: str) -> str:
        query = f"workspaceId={query_escape(workspace)}&environment={query_escape(environment)}&secretPath=%2F"
        return f"{self._url}/api/v3/secrets/raw/{path_escape(name)}?{query}"

    async def _ask(
        self,
        method: str,
        url: str,
        grant: Grant,
        document: Mapping[str, object] | None = None,
        password: str = "",
    ) -> dict[str, Any]:
        return await self._calls(
            method,
            url,
            headers={"Authorization": f"Bearer {grant.token}"},
            document=document,
            secrets=(password, grant.token),
        )


def _name(hostname: str) -> str:
    try:
        return infisical_name(hostname)
    except ValueError as problem:
        raise EscrowFailed(f"{PRODUCT}: {problem}") from None
