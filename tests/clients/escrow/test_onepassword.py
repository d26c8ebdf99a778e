"""Passwords in 1Password, against a stand-in of a Connect server."""

from __future__ import annotations

from typing import Any

from identree.app.escrow import Stored
from identree.clients.escrow.onepassword import OnePasswordBackend
from tests.clients.escrow.case import PASSWORD, URL, BehaviourContract, EscrowTestCase
from tests.clients.escrow.standins import VAULT_ID, OnePassword


class OnePasswordTests(EscrowTestCase, BehaviourContract):
    secrets = (OnePassword.TOKEN,)
    write = f"POST /v1/vaults/{VAULT_ID}/items"

    def setUp(self) -> None:
        super().setUp()
        self.server = OnePassword()
        self.backend = self.build()

    def build(self, **changes: Any) -> OnePasswordBackend:
        values: dict[str, Any] = {
            "http": self.http(self.server),
            "clock": self.clock,
            "url": URL,
            "auth_secret": OnePassword.TOKEN,
            "path": VAULT_ID,
            "vault_map": {},
            **changes,
        }
        return OnePasswordBackend(**values)

    def test_created(self) -> None:
        """A login item with one password field, looked for by its exact title before."""
        stored = self.store()
        self.assertEqual(stored, Stored(item_id="0" * 26, vault_id=VAULT_ID))
        self.assertEqual(
            self.server.asked,
            [
                f"GET /v1/vaults/{VAULT_ID}/items?filter=title+eq+%22breakglass-web1%22",
                f"POST /v1/vaults/{VAULT_ID}/items",
            ],
        )
        field = {"id": "password", "type": "CONCEALED", "purpose": "PASSWORD", "label": "password", "value": PASSWORD}
        self.assertEqual(
            self.server.sent,
            [{"vault": {"id": VAULT_ID}, "title": "breakglass-web1", "category": "LOGIN", "fields": [field]}],
        )

    def test_replaced(self) -> None:
        """The item that is there is replaced, and only the one of exactly this title."""
        self.server.items[VAULT_ID, "x"] = {"title": "Breakglass-WEB1"}
        stored = self.store()
        self.assertEqual(self.store(password="two"), stored)
        self.assertEqual(len(self.server.items), 2)
        self.assertEqual(self.retrieve("web1", stored.item_id, stored.vault_id), "two")

    def test_named_vault(self) -> None:
        """A vault's name is looked up, by whatever case."""
        self.backend = self.build(path="sERVERS")
        self.assertEqual(self.store().vault_id, VAULT_ID)
        self.assertEqual(self.server.asked[0], "GET /v1/vaults")
        self.backend = self.build(path="Nobody's")
        self.assertIn("no vault that is called", self.failed(self.backend.store("web1", PASSWORD)))

    def test_mapped_vault(self) -> None:
        """The map decides; the stored ids lead back, whatever it says later."""
        self.backend = self.build(vault_map={"web*": "Other"})
        stored = self.store()
        self.assertEqual(stored.vault_id, "b" * 26)
        self.backend = self.build()
        self.assertEqual(self.retrieve("web1", stored.item_id, stored.vault_id), PASSWORD)

    def test_no_vault(self) -> None:
        """A host that the map does not know is refused before anything is sent."""
        self.backend = self.build(path="", vault_map={"db*": "Other"})
        self.assertIn("IDENTREE_ESCROW_VAULT_MAP", self.failed(self.backend.store("web1", PASSWORD)))
        self.assertEqual(self.server.asked, [])

    def test_without_ids(self) -> None:
        """A record without ids is looked for by its title."""
        self.store()
        self.assertEqual(self.retrieve("web1"), PASSWORD)
        self.assertIn("no item of this host", self.failed(self.backend.retrieve("web2", "", "")))

    def test_fields(self) -> None:
        """The first field that is a password counts; without one it is a failure."""
        stored = self.store()
        item = self.server.items[VAULT_ID, stored.item_id]
        item["fields"] = [
            {"purpose": "USERNAME", "value": "u"},
            5,
            *item["fields"],
            {"purpose": "PASSWORD", "value": "x"},
        ]
        self.assertEqual(self.retrieve("web1", stored.item_id, stored.vault_id), PASSWORD)
        item["fields"] = [{"purpose": "NOTES", "value": "x"}]
        self.assertIn("no password field", self.failed(self.backend.retrieve("web1", stored.item_id, VAULT_ID)))

    def test_no_id(self) -> None:
        """An answer without an id is a failure: nobody would find the password again."""
        for answer in ({}, {"id": ""}, {"id": 5}, {"id": "a\nb"}, {"id": "x" * 3000}, [], b""):
            self.assertIn("no usable id", self.refused((200, answer)))

    def test_wrong_token(self) -> None:
        """Refused, for the check too."""
        self.backend = self.build(auth_secret="another-token-of-someone")
        self.assertIn("HTTP 401", self.failed(self.backend.store("web1", PASSWORD)))
        self.assertIn("HTTP 401", self.failed(self.backend.check()))

    def test_settings(self) -> None:
        """What cannot work is refused at once, and names the setting."""
        for changes, name in (
            ({"url": ""}, "ESCROW_URL"),
            ({"auth_secret": ""}, "ESCROW_AUTH_SECRET"),
            ({"path": ""}, "ESCROW_PATH"),
        ):
            with self.assertRaises(ValueError) as raised:
                self.build(**changes)
            self.assertIn(name, str(raised.exception))
