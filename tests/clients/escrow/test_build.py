"""Which back end the settings give, and tokens and limits over real connections."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.server import Site

from identree.app.escrow import EscrowBackend, EscrowFailed
from identree.clients.escrow.build import build_backend
from identree.clients.http import build_http_client
from identree.core.escrow import BACKENDS, COMMAND
from identree.settings.registry import SETTINGS
from tests.clients.escrow.case import PASSWORD
from tests.clients.escrow.standins import Bitwarden, Infisical, OnePassword, StandIn, Vault
from tests.fakes import memory_store
from tests.settings.fakes import loaded

KEY = "0123456789abcdef0123456789abcdef"
FULL = {
    "ESCROW_URL": "https://escrow.example",
    "ESCROW_AUTH_ID": "id",
    "ESCROW_AUTH_SECRET": "a-secret-of-the-tests",
    "ESCROW_PATH": "secret/a",
    "ESCROW_ENCRYPTION_KEY": KEY,
}


class BuildTests(SynchronousTestCase):
    def build(self, **changes: Any) -> EscrowBackend | None:
        clock = MemoryReactorClock()
        built = build_backend(
            loaded(**{**FULL, **changes}),
            http=None,
            reactor=clock,
            monotonic=clock.seconds,
            random_bytes=bytes,
            ciphertexts=memory_store(),
            environment={},
        )
        self.assertEqual(clock.getDelayedCalls(), [])
        return built

    def test_names(self) -> None:
        """Every choice of the setting has its back end, and nothing is started by building it."""
        [setting] = [setting for setting in SETTINGS if setting.name == "ESCROW_BACKEND"]
        self.assertEqual(set(setting.choices), set(BACKENDS))
        for name in BACKENDS:
            backend = self.build(ESCROW_BACKEND=name)
            assert backend is not None
            self.assertEqual((backend.name, backend.revealable), (name, True))

    def test_none(self) -> None:
        """Without either setting nothing is escrowed."""
        self.assertIsNone(self.build())

    def test_command(self) -> None:
        """A command, instead of a back end."""
        backend = self.build(ESCROW_COMMAND="cat")
        assert backend is not None
        self.assertEqual(backend.name, COMMAND)

    def test_live(self) -> None:
        """A switch to local needs nothing but to build again."""
        backend = self.build(ESCROW_BACKEND="local")
        assert backend is not None
        self.successResultOf(Deferred.fromCoroutine(backend.store("web1", PASSWORD)))
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(backend.retrieve("web1", "", ""))), PASSWORD)

    def test_wrong(self) -> None:
        """What changed settings leave incomplete is refused, with the setting's name."""
        for changes, name in (
            ({"ESCROW_BACKEND": "vault", "ESCROW_URL": ""}, "ESCROW_URL"),
            ({"ESCROW_BACKEND": "bitwarden", "ESCROW_PATH": ""}, "ESCROW_PATH"),
        ):
            with self.assertRaises(ValueError) as raised:
                self.build(**changes)
            self.assertIn(name, str(raised.exception))

    def test_unknown(self) -> None:
        """A name that no back end has is refused, whoever let it pass."""

        class Odd:
            escrow_backend, escrow_command, escrow_url, escrow_auth_id = "vualt", "", "", ""
            escrow_auth_secret, escrow_path, escrow_vault_map = "", "", ()

        with self.assertRaises(ValueError) as raised:
            build_backend(
                Odd(),  # type: ignore[arg-type]
                http=None,
                reactor=None,
                monotonic=lambda: 0.0,
                random_bytes=bytes,
                ciphertexts=memory_store(),
                environment={},
            )
        self.assertIn("'vualt' is none of local, vault,", str(raised.exception))


class ConnectionTests(TestCase):
    """The same requests through the server's own HTTP client and a real socket."""

    def serve(self, server: StandIn) -> str:
        # a client that gives up leaves its request to the site
        site = Site(server)
        port: Any = reactor.listenTCP(0, site, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        return f"http://127.0.0.1:{port.getHost().port}"

    def build(self, url: str, **changes: Any) -> EscrowBackend:
        built = build_backend(
            loaded(**{**FULL, "ESCROW_URL": url, **changes}),
            http=build_http_client(reactor),
            reactor=reactor,
            monotonic=reactor.seconds,  # type: ignore[attr-defined]
            random_bytes=bytes,
            ciphertexts=memory_store(),
            environment={},
        )
        assert built is not None
        return built

    async def round_trip(self, backend: EscrowBackend) -> None:
        for password in ("one", PASSWORD):
            stored = await backend.store("web-1", password)
            self.assertEqual(await backend.retrieve("web-1", stored.item_id, stored.vault_id), password)

    async def test_vault(self) -> None:
        """Paths and bodies arrive as the stand-in wants them, a slash in the prefix as %2F."""
        server = Vault()
        url = self.serve(server)
        secret = {"ESCROW_AUTH_ID": server.role, "ESCROW_AUTH_SECRET": server.secret_id}
        await self.round_trip(self.build(url, ESCROW_BACKEND="vault", ESCROW_PATH="secret/a/b", **secret))
        self.assertIn("POST /v1/secret/data/a%2Fb/web-1", server.asked)

    async def test_one_login(self) -> None:
        """Hosts that come while a login is under way wait for it instead of beginning others."""
        server = Vault()
        secret = {"ESCROW_AUTH_ID": server.role, "ESCROW_AUTH_SECRET": server.secret_id}
        backend = self.build(self.serve(server), ESCROW_BACKEND="vault", **secret)
        await gatherResults([Deferred.fromCoroutine(backend.store(f"web{number}", PASSWORD)) for number in range(5)])
        self.assertEqual((server.logins, len(server.secrets)), (1, 5))

    async def test_onepassword(self) -> None:
        """The filter arrives as it was escaped."""
        server = OnePassword()
        changes = {"ESCROW_AUTH_SECRET": OnePassword.TOKEN, "ESCROW_PATH": "servers"}
        await self.round_trip(self.build(self.serve(server), ESCROW_BACKEND="1password-connect", **changes))
        self.assertIn("filter=title+eq+%22breakglass-web-1%22", " ".join(server.asked))

    async def test_bitwarden(self) -> None:
        """The login's form arrives."""
        changes = {"ESCROW_AUTH_SECRET": Bitwarden.ACCESS_TOKEN, "ESCROW_PATH": "5688da1f-cc25-41d7-bb9f-b0740144ef1d"}
        await self.round_trip(self.build(self.serve(Bitwarden()) + "/api", ESCROW_BACKEND="bitwarden", **changes))

    async def test_infisical(self) -> None:
        """The query arrives."""
        changes = {"ESCROW_AUTH_ID": Infisical.CLIENT_ID, "ESCROW_AUTH_SECRET": Infisical.SECRET, "ESCROW_PATH": "w"}
        await self.round_trip(self.build(self.serve(Infisical()), ESCROW_BACKEND="infisical", **changes))

    async def test_nobody(self) -> None:
        """A server that is not there is a failure that names the product."""
        port: Any = reactor.listenTCP(0, Site(Vault()), interface="127.0.0.1")  # type: ignore[attr-defined]
        url = f"http://127.0.0.1:{port.getHost().port}"
        await port.stopListening()
        with self.assertRaises(EscrowFailed) as raised:
            await self.build(url, ESCROW_BACKEND="vault").store("web1", PASSWORD)
        self.assertIn("Vault: ConnectionRefused", raised.exception.reason)

    async def test_redirect(self) -> None:
        """A redirection to a server that would take it is not followed: neither token nor password goes there."""
        server, other = OnePassword(), OnePassword()
        server.location = self.serve(other) + "/v1/vaults"
        changes = {"ESCROW_AUTH_SECRET": OnePassword.TOKEN, "ESCROW_PATH": "servers"}
        backend = self.build(self.serve(server), ESCROW_BACKEND="1password-connect", **changes)
        server.replies["GET /v1/vaults"] = [(307, {})]
        with self.assertRaises(EscrowFailed) as raised:
            await backend.store("web1", PASSWORD)
        self.assertIn("HTTP 307", raised.exception.reason)
        self.assertEqual(other.asked, [])
