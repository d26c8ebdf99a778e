"""
Passwords in a real Vault, where there is one: with ``VAULT_TEST_ADDR`` and ``VAULT_TEST_TOKEN`` (its
root token) these tests run against that server, such as ``vault server -dev`` or ``bao server -dev``. A mount, a policy
and a role of their own are made there, and removed again. Otherwise they run against the stand-in, over a real socket:
so the two are held to the same facts.
"""

from __future__ import annotations

import os
import secrets
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase
from twisted.web.server import Site

from identree.app.escrow import EscrowFailed
from identree.clients.escrow.base import Calls
from identree.clients.escrow.vault import VaultBackend
from identree.clients.http import build_http_client
from tests.clients.escrow.case import PASSWORD
from tests.clients.escrow.standins import Vault

ROOT = "hvs.root-of-the-tests"
POLICY = 'path "{mount}/data/*" {{ capabilities = ["create", "update", "read"] }}'
# Where AppRoles log in; identree knows no other place.
LOGIN = "approle"


class StandInServer:
    """The stand-in, to be looked into as the real one is."""

    def __init__(self) -> None:
        self.vault = Vault({ROOT: 0})
        self.mount, self.token = self.vault.mount, ROOT
        self.role, self.secret = self.vault.role, self.vault.secret_id

    async def start(self, test: TestCase) -> None:
        port: Any = reactor.listenTCP(0, Site(self.vault), interface="127.0.0.1")  # type: ignore[attr-defined]
        test.addCleanup(port.stopListening)
        self.url = f"http://127.0.0.1:{port.getHost().port}"

    async def stored(self, path: str) -> object:
        return self.vault.secrets[path][-1]

    async def delete(self, path: str) -> None:
        del self.vault.secrets[path]

    async def revoke_all(self) -> None:
        self.vault.tokens = {ROOT: 0}


class RealServer:
    """Somebody's Vault, by its API."""

    def __init__(self, url: str, token: str) -> None:
        self.url, self.token = url.rstrip("/"), token
        self.mount = f"identree-test-{secrets.token_hex(4)}"
        self._calls = Calls(build_http_client(reactor), reactor, "Vault", (token,))

    async def ask(self, method: str, path: str, document: dict[str, object] | None = None) -> dict[str, Any]:
        headers = {"X-Vault-Token": self.token}
        return await self._calls(method, f"{self.url}/v1/{path}", headers=headers, document=document)

    async def start(self, test: TestCase) -> None:
        name = self.mount

        def removed(path: str) -> None:
            test.addCleanup(lambda: Deferred.fromCoroutine(self.ask("DELETE", path)))

        await self.ask("POST", f"sys/mounts/{name}", {"type": "kv", "options": {"version": "2"}})
        removed(f"sys/mounts/{name}")
        await self.ask("PUT", f"sys/policies/acl/{name}", {"policy": POLICY.format(mount=name)})
        removed(f"sys/policies/acl/{name}")
        if f"{LOGIN}/" not in await self.ask("GET", "sys/auth"):
            await self.ask("POST", f"sys/auth/{LOGIN}", {"type": "approle"})
        role = f"auth/{LOGIN}/role/{name}"
        await self.ask("POST", role, {"token_policies": [name], "token_ttl": "1h", "token_max_ttl": "4h"})
        removed(role)
        self.role = (await self.ask("GET", f"{role}/role-id"))["data"]["role_id"]
        self.secret = (await self.ask("POST", f"{role}/secret-id", {}))["data"]["secret_id"]
        # a new engine of version 2 takes a moment to be ready
        for _ in range(100):
            try:
                await self.ask("POST", f"{name}/data/ready", {"data": {}})
            except EscrowFailed:
                continue
            return

    async def stored(self, path: str) -> object:
        return (await self.ask("GET", f"{self.mount}/data/{path}"))["data"]["data"]

    async def delete(self, path: str) -> None:
        await self.ask("DELETE", f"{self.mount}/data/{path}")

    async def revoke_all(self) -> None:
        await self.ask("PUT", f"sys/leases/revoke-prefix/auth/{LOGIN}", {})


class RealVaultTests(TestCase):
    server: Any

    def setUp(self) -> Any:
        address = os.environ.get("VAULT_TEST_ADDR", "")
        self.server = RealServer(address, os.environ["VAULT_TEST_TOKEN"]) if address else StandInServer()
        self.later = 0.0
        return Deferred.fromCoroutine(self.server.start(self))

    def build(self, **changes: Any) -> VaultBackend:
        values: dict[str, Any] = {
            "http": build_http_client(reactor),
            "clock": reactor,
            "monotonic": lambda: self.later,
            "url": self.server.url,
            "auth_id": self.server.role,
            "auth_secret": self.server.secret,
            "path": f"{self.server.mount}/break/glass",
            "vault_map": {},
            **changes,
        }
        return VaultBackend(**values)

    async def failure(self, work: Any) -> str:
        with self.assertRaises(EscrowFailed) as raised:
            await work
        reason: str = raised.exception.reason
        for secret in (PASSWORD, self.server.secret, self.server.token):
            self.assertNotIn(secret, reason)
        return reason

    async def test_round_trip(self) -> None:
        """Stored where a person looks for it, and read back, by the role and by a token."""
        for backend in (self.build(), self.build(auth_id="", auth_secret=self.server.token)):
            await backend.store("web1", "one")
            stored = await backend.store("web1", PASSWORD)
            self.assertEqual(await self.server.stored("break/glass/web1"), {"password": PASSWORD})
            self.assertEqual(await backend.retrieve("web1", stored.item_id, ""), PASSWORD)
            self.assertEqual(await backend.retrieve("web1", "", ""), PASSWORD)

    async def test_mapped(self) -> None:
        """By the map, at another path and without a prefix."""
        backend = self.build(vault_map={"db*": self.server.mount})
        stored = await backend.store("db1", PASSWORD)
        self.assertEqual(await self.server.stored("db1"), {"password": PASSWORD})
        self.assertEqual(await self.build().retrieve("db1", stored.item_id, ""), PASSWORD)

    async def test_missing(self) -> None:
        """What was never stored, and what was deleted."""
        backend = self.build()
        self.assertIn("HTTP 404", await self.failure(backend.retrieve("web2", "", "")))
        stored = await backend.store("web2", PASSWORD)
        await self.server.delete("break/glass/web2")
        self.assertIn("HTTP 404", await self.failure(backend.retrieve("web2", stored.item_id, "")))

    async def test_refused(self) -> None:
        """A wrong secret id, a wrong token, a mount that is not there or not allowed."""
        self.assertIn("HTTP 400", await self.failure(self.build(auth_secret="wrong").store("web1", PASSWORD)))
        token = self.build(auth_id="", auth_secret="hvs.wrong-token-of-the-tests")
        self.assertIn("HTTP 403", await self.failure(token.store("web1", PASSWORD)))
        self.assertIn("HTTP 403", await self.failure(token.check()))
        elsewhere = self.build(path="nowhere/x")
        self.assertRegex(await self.failure(elsewhere.store("web1", PASSWORD)), "HTTP 40[34]")

    async def test_tokens(self) -> None:
        """A login is kept, renewed at half of its time, and replaced when it was revoked."""
        backend = self.build()
        await backend.check()
        assert backend._lease is not None
        first = await backend._lease.current()
        self.assertEqual((first.seconds, first.renewable), (3600, True))
        self.later = 1801
        renewed = await backend._lease.current()
        self.assertEqual((renewed.token, renewed.seconds), (first.token, 3600))
        await self.server.revoke_all()
        await backend.store("web1", PASSWORD)
        self.assertNotEqual((await backend._lease.current()).token, first.token)

    async def test_given_token(self) -> None:
        """A root token is known to have no end."""
        backend = self.build(auth_id="", auth_secret=self.server.token)
        await backend.check()
        await backend.keep()
        self.later = 1e9
        await backend.keep()
        await backend.store("web1", PASSWORD)
