"""The root DSE and the subschema, as clients ask for them (spec/ldap section 11)."""

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from identree.ldap.rootdse import RootDSE
from tests.ldap.harness import BASE, Client, World, code, search, snapshot

SSSD = (
    "* altServer namingContexts supportedControl supportedExtension supportedFeatures supportedLDAPVersion"
    " supportedSASLMechanisms domainControllerFunctionality defaultNamingContext lastUSN highestCommittedUSN"
).split()


class RootDSETests(SynchronousTestCase):
    def ask(self, client: Client, attributes: Any = SSSD, filter: str = "(objectclass=*)") -> dict[str, list[bytes]]:
        entry, done = client.ask(search("", filter, attributes, 0))
        self.assertEqual((entry.value.objectName, done.value.resultCode), (b"", 0))
        return {name.decode(): list(values) for name, values in entry.value.attributes}

    def test_as_sssd(self) -> None:
        """sssd's own question, before it binds."""
        found = self.ask(World().connect())
        self.assertEqual(found["namingContexts"], [BASE.encode()])
        self.assertEqual(found["defaultNamingContext"], [BASE.encode()])
        self.assertEqual(found["supportedLDAPVersion"], [b"3"])
        self.assertEqual(found["supportedControl"], [b"1.2.840.113556.1.4.319"])
        self.assertEqual(found["lastUSN"], [b"1700000000"])
        self.assertIn(b"1.3.6.1.4.1.4203.1.5.1", found["supportedFeatures"])
        # what sssd would use if it were listed
        self.assertNotIn("highestCommittedUSN", found)
        self.assertNotIn("supportedSASLMechanisms", found)

    def test_as_nslcd(self) -> None:
        """All operational attributes, with a filter on the class."""
        found = self.ask(World().connect(), ["+"], "(objectClass=*)")
        self.assertEqual(found["defaultNamingContext"], [BASE.encode()])
        self.assertEqual(found["subschemaSubentry"], [b"cn=Subschema"])
        self.assertEqual((found["vendorName"], found["vendorVersion"]), ([b"identree"], [b"1.2.3"]))
        self.assertNotIn("objectClass", found)

    def test_user_attributes(self) -> None:
        """Without a list there are no operational attributes."""
        self.assertEqual(list(self.ask(World().connect(), [])), ["objectClass"])

    def test_follows(self) -> None:
        """lastUSN is that of the snapshot that is served now."""
        world = World()
        client = world.connect()
        self.ask(client)
        world.snapshot = snapshot(usn=1_800_000_000)
        self.assertEqual(self.ask(client)["lastUSN"], [b"1800000000"])

    def test_not_loaded(self) -> None:
        """Without a snapshot there is no number: a smaller one would make sssd start from nothing."""
        world = World()
        world.snapshot = None
        self.assertNotIn("lastUSN", self.ask(world.connect()))

    def test_external(self) -> None:
        """EXTERNAL is offered where it can succeed: to who showed a certificate."""
        world = World()
        world.certificate = "web1"
        client = world.connect(tls=True)
        client.connection.handshakeCompleted()
        self.assertEqual(self.ask(client)["supportedSASLMechanisms"], [b"EXTERNAL"])

    def test_start_tls(self) -> None:
        """StartTLS is listed where there is a certificate."""
        found = self.ask(World(start_tls=lambda transport: None).connect())
        self.assertIn(b"1.3.6.1.4.1.1466.20037", found["supportedExtension"])

    def test_filter(self) -> None:
        """A filter that it does not match finds nothing."""
        self.assertEqual(len(World().connect().ask(search("", "(objectClass=person)", ["+"], 0))), 1)

    def test_scope(self) -> None:
        """Below the empty DN there is nothing that could be searched."""
        for scope in (1, 2):
            self.assertEqual(code(World().bound().ask(search("", "(objectClass=*)", [], scope))), 32)

    def test_kept(self) -> None:
        """The entry is made once for a change number."""
        served = snapshot()
        root = RootDSE(base_dn=BASE, version="1", directory=lambda: served, start_tls=False)
        self.assertIs(root._entry(False), root._entry(False))


class SubschemaTests(SynchronousTestCase):
    def test_read(self) -> None:
        """The schema is where the root DSE says, however its name is spelled, and before a bind."""
        for name in ("cn=Subschema", "CN = subschema"):
            answers = World().connect().ask(search(name, "(objectClass=subschema)", ["attributeTypes"], 0))
            [(attribute, values)] = answers[0].value.attributes
            self.assertEqual(attribute, b"attributeTypes")
            self.assertTrue(any(b"NAME 'uidNumber'" in value for value in values))
