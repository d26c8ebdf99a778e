"""Passwords in Infisical, against a stand-in that refuses what the real one refuses."""

from __future__ import annotations

from typing import Any

from identree.app.escrow import Stored
from identree.clients.escrow.infisical import InfisicalBackend
from tests.clients.escrow.case import PASSWORD, URL, BehaviourContract, EscrowTestCase
from tests.clients.escrow.standins import Infisical

RAW = "/api/v3/secrets/raw/BREAKGLASS_WEB1"


class InfisicalTests(EscrowTestCase, BehaviourContract):
    secrets = (Infisical.SECRET, "access-")
    write = f"POST {RAW}"

    def setUp(self) -> None:
        super().setUp()
        self.server = Infisical()
        self.backend = self.build()

    def build(self, **changes: Any) -> InfisicalBackend:
        values: dict[str, Any] = {
            "http": self.http(self.server),
            "clock": self.clock,
            "monotonic": self.clock.seconds,
            "url": URL,
            "auth_id": Infisical.CLIENT_ID,
            "auth_secret": Infisical.SECRET,
            "path": "ws-1",
            "vault_map": {},
            **changes,
        }
        return InfisicalBackend(**values)

    def test_created(self) -> None:
        """In the environment prod, at the root, by the name made of the host's."""
        stored = self.store("web-1.example.com")
        self.assertEqual(stored, Stored(item_id="ws-1/prod/BREAKGLASS_WEB_1_EXAMPLE_COM"))
        self.assertEqual(
            self.server.asked[1:],
            [
                "GET /api/v3/secrets/raw/BREAKGLASS_WEB_1_EXAMPLE_COM?workspaceId=ws-1&environment=prod&secretPath=%2F",
                "POST /api/v3/secrets/raw/BREAKGLASS_WEB_1_EXAMPLE_COM",
            ],
        )
        self.assertEqual(self.server.sent[-1]["secretValue"], PASSWORD)
        self.assertEqual(self.retrieve("web-1.example.com", stored.item_id), PASSWORD)

    def test_updated(self) -> None:
        """One that is there is changed; also one of an old server, which has no comment."""
        self.server.secrets["ws-1", "prod", "BREAKGLASS_WEB1"] = {"secretValue": "old", "secretComment": ""}
        self.store()
        self.assertEqual(self.server.asked[-1], f"PATCH {RAW}")
        self.assertEqual(self.retrieve(), PASSWORD)

    def test_similar_names(self) -> None:
        """Two hosts whose names become the same do not overwrite each other's passwords."""
        stored = self.store("web-1", "one")
        self.assertIn("taken by the host 'web-1'", self.failed(self.backend.store("web.1", PASSWORD)))
        self.assertEqual(self.retrieve("web-1", stored.item_id), "one")
        self.assertIn("another host", self.failed(self.backend.retrieve("web.1", stored.item_id, "")))

    def test_write_only(self) -> None:
        """An identity that may not read can store, also for the first time."""
        self.server.readable = False
        self.store()
        self.store(password="two")
        self.assertEqual([secret["secretValue"] for secret in self.server.secrets.values()], ["two"])

    def test_vanished(self) -> None:
        """What vanishes between the question and the change is made anew."""
        self.store()
        self.server.replies[f"PATCH {RAW}"] = [(404, {"message": "not found"})]
        self.server.secrets.clear()
        self.server.replies[f"GET {RAW}"] = [(200, {"secret": {}})]
        self.store()
        self.assertEqual(self.retrieve(), PASSWORD)

    def test_mapped(self) -> None:
        """What the map has led elsewhere is found, with the stored id and without one."""
        self.backend = self.build(vault_map={"web*": "ws-2/dev"})
        stored = self.store()
        self.assertEqual(stored.item_id, "ws-2/dev/BREAKGLASS_WEB1")
        self.assertEqual(self.retrieve("web1", ""), PASSWORD)
        self.backend = self.build()
        self.assertEqual(self.retrieve("web1", stored.item_id), PASSWORD)

    def test_foreign_id(self) -> None:
        """An id that names another secret is not followed."""
        self.server.secrets["ws-1", "prod", "OTHER"] = {"secretValue": "no"}
        self.store()
        for item in ("ws-1/prod/OTHER", "//BREAKGLASS_WEB1", "x"):
            self.assertEqual(self.retrieve("web1", item), PASSWORD)

    def test_places(self) -> None:
        """A workspace, perhaps with an environment, and nothing else."""
        for place in ("", "/", "a/b/c"):
            self.backend = self.build(vault_map={"web1": place})
            self.assertIn("WORKSPACE", self.failed(self.backend.store("web1", PASSWORD)))

    def test_token(self) -> None:
        """One login serves until its token ends, or is refused."""
        self.store()
        self.clock.advance(7000)
        self.store()
        self.assertEqual(self.server.logins, 1)
        self.clock.advance(195)
        self.store()
        self.assertEqual(self.server.logins, 2)
        self.server.tokens.clear()
        self.store()
        self.assertEqual(self.server.logins, 3)

    def test_wrong_secret(self) -> None:
        """Refused, for the check too."""
        self.backend = self.build(auth_secret="another-secret")
        self.assertIn("HTTP 401", self.failed(self.backend.store("web1", PASSWORD)))
        self.assertIn("HTTP 401", self.failed(self.backend.check()))

    def test_empty(self) -> None:
        """An empty value is no password."""
        self.server.secrets["ws-1", "prod", "BREAKGLASS_WEB1"] = {"secretValue": ""}
        self.assertIn("no password", self.failed(self.backend.retrieve("web1", "", "")))

    def test_settings(self) -> None:
        """What cannot work is refused at once, and names the setting."""
        for changes, name in (
            ({"url": ""}, "ESCROW_URL"),
            ({"auth_id": ""}, "ESCROW_AUTH_ID"),
            ({"auth_secret": ""}, "ESCROW_AUTH_SECRET"),
            ({"path": ""}, "ESCROW_PATH"),
        ):
            with self.assertRaises(ValueError) as raised:
                self.build(**changes)
            self.assertIn(name, str(raised.exception))
