"""Passwords in Bitwarden Secrets Manager: the service itself, which sees only sealed values, and compatible ones."""

from __future__ import annotations

import base64
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from identree.app.escrow import Stored
from identree.clients.escrow.bitwarden import BitwardenBackend, SymmetricKey, Unreadable
from tests.clients.escrow.case import PASSWORD, URL, BehaviourContract, EscrowTestCase
from tests.clients.escrow.standins import ORG, PROJECT, Bitwarden, PlainBitwarden

# The key that Bitwarden's own tests derive from the access token that the stand-in takes.
TOKEN_KEY = "H9/oIRLtL9nGCQOVDjSMoEbJsjWXSOCb3qeyDt6ckzS3FhyboEDWyTP/CQfbIszNmAVg2ExFganG1FVFGXO/Jg=="


class KeyTests(SynchronousTestCase):
    def test_access_token(self) -> None:
        """The published key of the published access token."""
        self.assertEqual(base64.b64encode(SymmetricKey.of_access_token(Bitwarden.SEED).raw).decode(), TOKEN_KEY)

    def test_round_trip(self) -> None:
        """What was sealed is opened; every length has its padding."""
        key = SymmetricKey(bytes(range(64)))
        for length in range(40):
            self.assertEqual(key.open(key.seal("ä" * length, b"i" * 16)), "ä" * length)

    def test_unreadable(self) -> None:
        """Another key's, another type, cut off, changed anywhere."""
        key = SymmetricKey(bytes(range(64)))
        text = key.seal("secret", b"i" * 16)
        iv, sealed, mac = text.removeprefix("2.").split("|")
        flipped = base64.b64encode(bytes([base64.b64decode(sealed)[0] ^ 1]) + base64.b64decode(sealed)[1:]).decode()
        for other in (
            "",
            "secret",
            "0." + text[2:],
            text[:-1],
            f"2.{iv}|{flipped}|{mac}",
            f"2.{iv}|{sealed[:8]}|{mac}",
            f"2.{iv}|{sealed}|{base64.b64encode(bytes(32)).decode()}",
            SymmetricKey(bytes(64)).seal("secret", b"i" * 16),
        ):
            self.assertRaises(Unreadable, key.open, other)


class BitwardenTestCase(EscrowTestCase):
    secrets = (Bitwarden.SECRET, Bitwarden.ACCESS_TOKEN, "bearer-")

    def build(self, **changes: Any) -> BitwardenBackend:
        values: dict[str, Any] = {
            "http": self.http(self.server),
            "clock": self.clock,
            "monotonic": self.clock.seconds,
            "random_bytes": self.random_bytes,
            "url": URL + "/api",
            "auth_id": "",
            "auth_secret": Bitwarden.ACCESS_TOKEN,
            "path": f"{ORG}/{PROJECT}",
            "vault_map": {},
            **changes,
        }
        return BitwardenBackend(**values)

    def random_bytes(self, count: int) -> bytes:
        self.count = getattr(self, "count", 0) + 1
        return self.count.to_bytes(count, "big")


class ServiceTests(BitwardenTestCase, BehaviourContract):
    write = f"POST /api/organizations/{ORG}/secrets"

    def setUp(self) -> None:
        super().setUp()
        self.server = Bitwarden()
        self.backend = self.build()

    def test_created(self) -> None:
        """Key, value and note are sealed, each with an IV of its own; the project is named."""
        stored = self.store()
        self.assertEqual(
            self.server.asked,
            [
                "POST /identity/connect/token",
                f"GET /api/projects/{PROJECT}/secrets",
                f"POST /api/organizations/{ORG}/secrets",
            ],
        )
        sent = self.server.sent[-1]
        opened = {name: self.server.organisation_key.open(sent[name]) for name in ("key", "value", "note")}
        self.assertEqual(opened, {"key": "breakglass-web1", "value": PASSWORD, "note": ""})
        self.assertEqual((sent["organizationId"], sent["projectIds"]), (ORG, [PROJECT]))
        self.assertEqual(len({sent[name].split("|")[0] for name in ("key", "value", "note")}), 3)
        self.assertEqual(stored, Stored(item_id="00000000-0000-0000-0000-000000000001"))

    def test_updated(self) -> None:
        """The host's secret is found among those that can be opened."""
        self.server.secrets["x"] = {"id": "x", "key": "not sealed", "projectIds": [PROJECT]}
        first = self.store()
        self.assertEqual(self.store(password="two"), first)
        self.assertEqual(self.server.asked[-1], f"PUT /api/secrets/{first.item_id}")
        self.assertEqual(self.retrieve("web1", first.item_id), "two")

    def test_many(self) -> None:
        """A large project is gone through in pieces, between which others have their turn."""
        key = self.server.organisation_key
        for number in range(250):
            sealed = key.seal(f"breakglass-db{number}", b"i" * 16)
            self.server.secrets[f"{number}"] = {"id": f"{number}", "key": sealed, "projectIds": [PROJECT]}
        self.server.secrets["249"]["key"] = key.seal("breakglass-web1", b"i" * 16)
        waiting = Deferred.fromCoroutine(self.backend.store("web1", "two"))
        self.assertNoResult(waiting)
        self.clock.pump([0, 0, 0])
        self.assertEqual(self.successResultOf(waiting), Stored(item_id="249"))

    def test_without_project(self) -> None:
        """Then in the whole organisation."""
        self.backend = self.build(path=ORG)
        stored = self.store()
        self.assertNotIn("projectIds", self.server.sent[-1])
        self.assertEqual(self.store(), stored)

    def test_without_id(self) -> None:
        """A record without an id is looked for by its key."""
        self.store()
        self.assertEqual(self.retrieve("web1"), PASSWORD)
        self.assertIn("no secret of this host", self.failed(self.backend.retrieve("web2", "", "")))

    def test_foreign_key(self) -> None:
        """A login whose key does not open is a failure that says what to do."""
        for payload in (None, "2.x", SymmetricKey(bytes(64)).seal("{}", b"i" * 16)):
            self.server.replies["POST /identity/connect/token"] = [
                (200, {"access_token": "t", "expires_in": 5, "encrypted_payload": payload})
            ]
            self.assertIn("IDENTREE_ESCROW_AUTH_SECRET", self.failed(self.backend.store("web1", PASSWORD)))

    def test_token(self) -> None:
        """One login serves until its token ends, or is refused."""
        self.store()
        self.clock.advance(3500)
        self.store()
        self.assertEqual(self.server.logins, 1)
        self.clock.advance(95)
        self.store()
        self.assertEqual(self.server.logins, 2)
        self.server.tokens.clear()
        self.store()
        self.assertEqual(self.server.logins, 3)

    def test_wrong_secret(self) -> None:
        """Refused, for the check too; the secret inside the access token is not told."""
        self.backend = self.build(auth_secret=Bitwarden.ACCESS_TOKEN.replace("C2Ig", "D3Jh"))
        token = "POST /identity/connect/token"
        self.server.replies[token] = [(400, {"error": Bitwarden.SECRET.replace("C2Ig", "D3Jh")})]
        said = self.failed(self.backend.check())
        self.assertIn("HTTP 400", said)
        self.assertNotIn("D3Jh", said)

    def test_places(self) -> None:
        """An organisation, perhaps with a project, and nothing else."""
        for place in ("", "/", "a/b/c"):
            self.backend = self.build(vault_map={"web1": place})
            self.assertIn("ORGANISATION", self.failed(self.backend.store("web1", PASSWORD)))

    def test_settings(self) -> None:
        """What cannot work is refused at once, and names the setting."""
        for changes, name in (
            ({"url": ""}, "ESCROW_URL"),
            ({"auth_secret": "secret"}, "ESCROW_AUTH_ID"),
            ({"auth_secret": ""}, "ESCROW_AUTH_SECRET"),
            ({"path": ""}, "ESCROW_PATH"),
        ):
            with self.assertRaises(ValueError) as raised:
                self.build(**changes)
            self.assertIn(name, str(raised.exception))


class CompatibleTests(BitwardenTestCase, BehaviourContract):
    write = "POST /api/secrets"

    def setUp(self) -> None:
        super().setUp()
        self.server = PlainBitwarden()
        self.backend = self.plain()

    def plain(self, **changes: Any) -> BitwardenBackend:
        return self.build(**{"auth_id": Bitwarden.CLIENT_ID, "auth_secret": Bitwarden.SECRET, **changes})

    def test_created(self) -> None:
        """Searched by its key, then made, as it is."""
        self.store()
        self.assertEqual(
            self.server.asked[1:],
            [f"GET /api/organizations/{ORG}/secrets?search=breakglass-web1", "POST /api/secrets"],
        )
        wanted = {"key": "breakglass-web1", "value": PASSWORD, "organizationId": ORG, "projectIds": [PROJECT]}
        self.assertEqual(self.server.sent[-1], wanted)

    def test_exact_key(self) -> None:
        """A search that finds longer names too does not change those."""
        longer = self.store("web11", "eleven")
        self.store("web1", "one")
        self.assertEqual(self.retrieve("web11", longer.item_id), "eleven")

    def test_against_the_service(self) -> None:
        """The service itself refuses such values; the message says what to set."""
        self.server = Bitwarden()
        self.server.routes += PlainBitwarden().routes
        self.server.route("POST", r"/api/secrets", self.server.authorised(self.server.create))
        self.server.routes = [route for route in self.server.routes if "projects" not in route[1].pattern]
        self.backend = self.plain()
        self.server.replies["POST /api/secrets"] = [(400, {"message": "The model state is invalid."})]
        self.assertIn("access token of a machine account", self.failed(self.backend.store("web1", PASSWORD)))
