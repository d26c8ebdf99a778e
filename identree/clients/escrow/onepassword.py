"""1Password through a Connect server: one login item per host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from identree.app.escrow import EscrowFailed, Stored
from identree.clients.escrow.base import (
    Calls,
    base_url,
    header_value,
    identifier,
    needed,
    objects,
    password_in,
)
from identree.core.escrow import is_onepassword_id, item_title, onepassword_filter, path_escape, place_of

PRODUCT = "1Password Connect"


class OnePasswordBackend:
    """Implements :class:`identree.app.escrow.EscrowBackend`. A place is a vault, by its id or its name."""

    name = "1password-connect"
    revealable = True

    def __init__(
        self, *, http: Any, clock: Any, url: str, auth_secret: str, path: str, vault_map: Mapping[str, str]
    ) -> None:
        """:raise ValueError: a setting is missing or cannot be used; says which."""
        self._url = base_url(url)
        token = header_value(
            needed(auth_secret, "IDENTREE_ESCROW_AUTH_SECRET", self.name), "IDENTREE_ESCROW_AUTH_SECRET"
        )
        if not vault_map:
            needed(path, "IDENTREE_ESCROW_PATH", self.name)
        self._headers = {"Authorization": f"Bearer {token}"}
        self._path, self._map = path, vault_map
        self._calls = Calls(http, clock, PRODUCT, (token,))

    async def store(self, hostname: str, password: str) -> Stored:
        self._calls.check_password(password)
        return await self._calls.whole(self._store(hostname, password))

    async def retrieve(self, hostname: str, item_id: str, vault_id: str) -> str:
        return await self._calls.whole(self._retrieve(hostname, item_id, vault_id))

    async def check(self) -> None:
        await self._calls.whole(self._calls.listed(f"{self._url}/v1/vaults", self._headers))

    async def keep(self) -> None:
        """The token of a Connect server has its end fixed."""

    async def _store(self, hostname: str, password: str) -> Stored:
        title = _title(hostname)
        vault = await self._vault(hostname)
        items = f"{self._url}/v1/vaults/{path_escape(vault)}/items"
        item = await self._item(vault, title)
        document: dict[str, object] = {
            "vault": {"id": vault},
            "title": title,
            "category": "LOGIN",
            "fields": [
                {
                    "id": "password",
                    "type": "CONCEALED",
                    "purpose": "PASSWORD",
                    "label": "password",
                    "value": password,
                }
            ],
        }
        if item:
            method, url = "PUT", f"{items}/{path_escape(item)}"
            document["id"] = item
        else:
            method, url = "POST", items
        answer = await self._calls(method, url, headers=self._headers, document=document, secrets=(password,))
        return Stored(item_id=identifier(answer.get("id"), PRODUCT), vault_id=vault)

    async def _retrieve(self, hostname: str, item_id: str, vault_id: str) -> str:
        vault = vault_id or await self._vault(hostname)
        # a record without an id is of another back end, or of a command; the item may be there all the same
        item = item_id if vault_id and item_id else await self._item(vault, _title(hostname))
        if not item:
            raise EscrowFailed(f"{PRODUCT}: there is no item of this host in its vault")
        answer = await self._calls(
            "GET", f"{self._url}/v1/vaults/{path_escape(vault)}/items/{path_escape(item)}", headers=self._headers
        )
        for field in objects(answer.get("fields")):
            if field.get("purpose") == "PASSWORD":
                return password_in(field.get("value"), PRODUCT)
        raise EscrowFailed(f"{PRODUCT}: the item has no password field")

    async def _vault(self, hostname: str) -> str:
        """The id of the host's vault."""
        place = place_of(hostname, self._map, self._path).strip()
        if not place:
            raise EscrowFailed(
                f"{PRODUCT}: no vault is set for this host; add it, or the key default, to IDENTREE_ESCROW_VAULT_MAP, "
                "or set IDENTREE_ESCROW_PATH"
            )
        if is_onepassword_id(place):
            return place
        for vault in await self._calls.listed(f"{self._url}/v1/vaults", self._headers):
            name = vault.get("name")
            if isinstance(name, str) and name.casefold() == place.casefold():
                return identifier(vault.get("id"), PRODUCT)
        raise EscrowFailed(f"{PRODUCT}: the token sees no vault that is called {place!r}")

    async def _item(self, vault: str, title: str) -> str:
        """The id of the first item of this title; empty when there is none."""
        url = f"{self._url}/v1/vaults/{path_escape(vault)}/items?filter={onepassword_filter(title)}"
        for item in await self._calls.listed(url, self._headers):
            # case does not matter to the filter
            if item.get("title", title) == title:
                return identifier(item.get("id"), PRODUCT)
        return ""


def _title(hostname: str) -> str:
    try:
        return item_title(hostname)
    except ValueError as problem:
        raise EscrowFailed(f"{PRODUCT}: {problem}") from None
