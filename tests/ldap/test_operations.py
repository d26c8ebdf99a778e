"""Messages other than searches: ldaptor as the other side's codec."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from ldaptor.protocols import pureber, pureldap
from twisted.trial.unittest import SynchronousTestCase

from identree.ldap import operations
from identree.ldap.ber import BerError
from identree.ldap.operations import Bind, Code, Compare, Control, Envelope, Extended


def message(op: Any, id: int = 7, controls: Any = None) -> bytes:
    return bytes(pureldap.LDAPMessage(op, id=id, controls=controls).toWire())


def decoded(raw: bytes) -> Any:
    """What ldaptor makes of a whole message of the server's."""
    context = pureldap.LDAPBERDecoderContext_TopLevel(
        inherit=pureldap.LDAPBERDecoderContext_LDAPMessage(
            fallback=pureldap.LDAPBERDecoderContext(fallback=pureber.BERDecoderContext()),
            inherit=pureldap.LDAPBERDecoderContext(fallback=pureber.BERDecoderContext()),
        )
    )
    found, used = pureber.berDecodeObject(context, raw)
    assert used == len(raw)
    return found


class EnvelopeTests(SynchronousTestCase):
    def test_parts(self) -> None:
        """A message is its id, its operation and its controls."""
        op = pureldap.LDAPUnbindRequest()
        self.assertEqual(operations.envelope(message(op, 70_000)), Envelope(70_000, bytes(op.toWire())))

    def test_controls(self) -> None:
        """Controls are read when they are wanted; criticality is false unless it is said."""
        raw = message(pureldap.LDAPUnbindRequest(), controls=[(b"1.2", True, b"x"), (b"1.3", None, None)])
        found = operations.controls(operations.envelope(raw).controls)
        self.assertEqual(found, (Control(b"1.2", True, b"x"), Control(b"1.3", False, None)))

    def test_further_components(self) -> None:
        """A component that a later version of LDAP may add is ignored."""
        raw = b"\x30\x0a\x02\x01\x07\x42\x00\x85\x03abc"
        self.assertEqual(operations.envelope(raw), Envelope(7, b"\x42\x00"))

    def test_ids(self) -> None:
        """0 is the server's, and negative, overlong and missing ids are none."""
        for id in ("020100", "0201ff", "020500800000 00", "02090000000000000000 01", "0400", "0200"):
            content = bytes.fromhex(id.replace(" ", "")) + b"\x42\x00"
            with self.assertRaises(BerError, msg=id):
                operations.envelope(bytes([0x30, len(content)]) + content)

    def test_no_operation(self) -> None:
        """A message without an operation is none."""
        self.assertRaises(BerError, operations.envelope, b"\x30\x03\x02\x01\x07")

    def test_many_controls(self) -> None:
        """The number of controls is bounded."""
        raw = message(pureldap.LDAPUnbindRequest(), controls=[(b"1.2", None, None)] * 33)
        self.assertRaises(BerError, operations.controls, operations.envelope(raw).controls)

    def test_unsupported(self) -> None:
        """A control forbids the operation when it is critical and nobody knows it; sssd's with a bind does not."""
        ppolicy = b"1.3.6.1.4.1.42.2.27.8.5.1"
        self.assertFalse(operations.unsupported((Control(b"1.2", False, None), Control(ppolicy, True, None))))
        self.assertTrue(operations.unsupported((Control(b"1.2", True, None),)))


class RequestTests(SynchronousTestCase):
    def test_simple_bind(self) -> None:
        """A simple bind, and its password is not in its repr."""
        asked = operations.bind(pureldap.LDAPBindRequest(3, b"cn=x", b"hidden").toWire())
        self.assertEqual(asked, Bind(3, "cn=x", None, b"hidden"))
        self.assertNotIn("hidden", repr(asked))

    def test_nothing_secret_shown(self) -> None:
        """Nor is it in the repr of the message, nor a value in those of controls, comparisons and extensions."""
        op = pureldap.LDAPBindRequest(3, b"cn=x", b"hidden")
        found = operations.envelope(message(op, 7))
        self.assertIn(b"hidden", found.op)
        for shown in (
            found,
            Envelope(7, b"\x60", b"hidden"),
            Control(b"1.2", True, b"hidden"),
            Compare(b"uid=x", b"userPassword", b"hidden"),
            Extended(b"1.2", b"hidden"),
        ):
            self.assertNotIn("hidden", repr(shown))

    def test_sasl_bind(self) -> None:
        """A SASL bind with and without credentials."""
        for credentials in (b"", b"dn:x"):
            wire = pureldap.LDAPBindRequest(3, b"", (b"EXTERNAL", credentials), sasl=True).toWire()
            self.assertEqual(operations.bind(wire), Bind(3, "", b"EXTERNAL", credentials))

    def test_empty_sasl_credentials(self) -> None:
        """OpenLDAP's client sends credentials that are there and empty."""
        wire = bytes.fromhex("6013020103 0400 a30c 0408 45585445524e414c 0400")
        self.assertEqual(operations.bind(wire), Bind(3, "", b"EXTERNAL", b""))

    def test_compare(self) -> None:
        """A comparison."""
        ava = pureldap.LDAPAttributeValueAssertion(
            pureldap.LDAPAttributeDescription(b"cn"), pureldap.LDAPAssertionValue(b"v")
        )
        wire = pureldap.LDAPCompareRequest(b"uid=x", ava).toWire()
        self.assertEqual(operations.compare(wire), Compare(b"uid=x", b"cn", b"v"))

    def test_abandon(self) -> None:
        """What an abandon names."""
        self.assertEqual(operations.abandoned(pureldap.LDAPAbandonRequest(id=700).toWire()), 700)

    def test_extended(self) -> None:
        """An extended request with and without a value."""
        for value in (None, b"", b"x"):
            wire = pureldap.LDAPExtendedRequest(requestName=b"1.2.3", requestValue=value).toWire()
            self.assertEqual(operations.extended(wire), Extended(b"1.2.3", value))

    def test_cancel(self) -> None:
        """What a cancel names; anything else is none."""
        self.assertEqual(operations.cancelled(bytes.fromhex("3003020105")), 5)
        for value in (None, b"", b"\x30\x00", bytes.fromhex("300302010500"), bytes.fromhex("30060201050400")):
            self.assertRaises(BerError, operations.cancelled, value)

    def test_no_text(self) -> None:
        """A DN that is not UTF-8 is none."""
        self.assertRaises(BerError, operations.bind, pureldap.LDAPBindRequest(3, b"\xff", b"x").toWire())

    @given(st.binary(max_size=60), st.sampled_from([0x60, 0x6E, 0x77, 0x50, 0x30, 0]))
    def test_anything(self, raw: bytes, tag: int) -> None:
        """Whatever comes, either it is a request or it is refused as none; nothing else is raised."""
        op = bytes([tag, len(raw)]) + raw if tag else raw
        for read in (
            operations.bind,
            operations.compare,
            operations.abandoned,
            operations.extended,
            operations.envelope,
            operations.controls,
            operations.cancelled,
        ):
            try:
                read(op)
            except BerError as e:
                self.assertTrue(str(e))


class AnswerTests(SynchronousTestCase):
    def test_disconnection(self) -> None:
        """The notice of disconnection has id 0 and its own name."""
        found = decoded(operations.disconnection(Code.UNAVAILABLE, "bye"))
        self.assertEqual((found.id, found.value.resultCode, found.value.errorMessage), (0, 52, b"bye"))
        self.assertEqual(found.value.responseName, b"1.3.6.1.4.1.1466.20036")

    def test_writes(self) -> None:
        """Each operation that writes has its own kind of answer."""
        kinds = {
            operations.MODIFY: pureldap.LDAPModifyResponse,
            operations.ADD: pureldap.LDAPAddResponse,
            operations.DELETE: pureldap.LDAPDelResponse,
            operations.MODIFY_DN: pureldap.LDAPModifyDNResponse,
        }
        for tag, kind in kinds.items():
            op = operations.refused_write(tag)
            found = decoded(b"\x30" + bytes([len(op) + 3]) + b"\x02\x01\x07" + op).value
            self.assertIsInstance(found, kind)
            self.assertEqual((found.resultCode, found.errorMessage), (53, b"read-only directory"))
