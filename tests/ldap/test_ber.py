"""Reading and writing of messages; ldaptor is the second opinion."""

import contextlib

from hypothesis import given
from hypothesis import strategies as st
from ldaptor.protocols import pureber, pureldap
from twisted.trial.unittest import SynchronousTestCase

from identree.directory.filters import And, Equal, Filter, Not, parse_text, to_text
from identree.ldap import ber
from identree.ldap.ber import BerError, FilterTooLarge

from ..directory.test_filters import FILTERS


def request(filter: str = "(uid=alice)", *attributes: str, **more: int) -> bytes:
    from ldaptor import ldapfilter

    fields = {"scope": 2, "derefAliases": 0, "sizeLimit": 0, "timeLimit": 0, "typesOnly": 0} | more
    encoded: bytes = pureldap.LDAPSearchRequest(
        baseObject="dc=example,dc=com", filter=ldapfilter.parseFilter(filter), attributes=attributes, **fields
    ).toWire()
    return encoded


def encode(filter: Filter) -> bytes:
    """A filter in BER, by the standard's table."""
    name = type(filter).__name__
    if name in ("And", "Or"):
        return ber.tlv(0xA0 if name == "And" else 0xA1, b"".join(map(encode, filter.parts)))  # type: ignore[union-attr]
    if isinstance(filter, Not):
        return ber.tlv(0xA2, encode(filter.part))
    if name == "Present":
        return ber.tlv(0x87, filter.attribute.encode())  # type: ignore[union-attr]
    if name == "Substrings":
        parts = b"" if filter.initial is None else ber.tlv(0x80, filter.initial)  # type: ignore[union-attr]
        parts += b"".join(ber.tlv(0x81, part) for part in filter.middle)  # type: ignore[union-attr]
        parts += b"" if filter.final is None else ber.tlv(0x82, filter.final)  # type: ignore[union-attr]
        return ber.tlv(0xA4, ber.octets(filter.attribute.encode()) + ber.tlv(0x30, parts))  # type: ignore[union-attr]
    if name == "Extensible":
        parts = b"" if filter.rule is None else ber.tlv(0x81, filter.rule.encode())  # type: ignore[union-attr]
        parts += b"" if filter.attribute is None else ber.tlv(0x82, filter.attribute.encode())  # type: ignore[union-attr]
        parts += ber.tlv(0x83, filter.value)  # type: ignore[union-attr]
        parts += ber.tlv(0x84, b"\xff") if filter.dn_attributes else b""  # type: ignore[union-attr]
        return ber.tlv(0xA9, parts)
    tag = {"Equal": 0xA3, "GreaterOrEqual": 0xA5, "LessOrEqual": 0xA6, "Approx": 0xA8}[name]
    return ber.tlv(tag, ber.octets(filter.attribute.encode()) + ber.octets(filter.value))  # type: ignore[union-attr]


class StructureTests(SynchronousTestCase):
    def test_sound(self) -> None:
        """A message as clients send it."""
        ber.check_structure(pureldap.LDAPMessage(pureldap.LDAPBindRequest(dn=b"cn=a", auth=b"b"), id=1).toWire())

    def test_unsound(self) -> None:
        """Truncated, followed by more, indefinite, overlong, or of a tag that does not occur."""
        for data in (
            *(
                b"",
                b"\x30",
                b"\x30\x05\x02\x01\x01",
                b"\x30\x00\x00",
                b"\x30\x80\x00\x00",
                b"\x04\x85\x01\x01\x01\x01\x01",
            ),
            *(
                b"\x30\x84\xff\xff\xff\xff",
                b"\x30\x03\x02\x02\x01",
                b"\x30\x82\x01",
                b"\x3f\x20\x00",
                b"\x30\x02\x04\x80",
            ),
        ):
            with self.assertRaises(BerError, msg=data):
                ber.check_structure(data)

    def test_depth(self) -> None:
        """Nesting is bounded, however deep it is."""
        data = b""
        for _ in range(20_000):
            data = ber.tlv(0x30, data)
        with self.assertRaisesRegex(BerError, "deep"):
            ber.check_structure(data)

    @given(st.binary(max_size=60))
    def test_anything(self, data: bytes) -> None:
        """Any bytes are sound or a BerError."""
        for read in (ber.check_structure, ber.decode_filter, ber.decode_search):
            with contextlib.suppress(BerError, FilterTooLarge):
                read(data)  # type: ignore[operator]


class SearchRequestTests(SynchronousTestCase):
    def test_fields(self) -> None:
        """Every field is where it belongs."""
        found = ber.decode_search(
            request("(&(uid=a*b)(!(cn>=3)))", "uid", "cn", scope=1, sizeLimit=300, timeLimit=7, typesOnly=1)
        )
        self.assertEqual((found.base, found.scope, found.deref), (b"dc=example,dc=com", 1, 0))
        self.assertEqual((found.size_limit, found.time_limit, found.types_only), (300, 7, True))
        self.assertEqual((found.attributes, to_text(found.filter)), ((b"uid", b"cn"), "(&(uid=a*b)(!(cn>=3)))"))

    def test_long_lengths(self) -> None:
        """Lengths in more octets than needed, as Windows clients write them."""
        op = request()
        padded = bytes((op[0], 0x84)) + (len(op) - 2).to_bytes(4, "big") + op[2:]
        self.assertEqual(ber.decode_search(padded), ber.decode_search(op))

    def test_damaged(self) -> None:
        """A request of which any one byte is lost is none."""
        op = request("(&(uid=a*b)(!(cn>=3)))", "uid")
        for at in range(len(op)):
            with self.assertRaises(BerError):
                ber.decode_search(op[:at] + op[at + 1 :])

    def test_out_of_range(self) -> None:
        """Scopes and limits that the standard does not have."""
        for field, value in (("scope", 4), ("derefAliases", 9), ("sizeLimit", -1), ("timeLimit", 2**31)):
            with self.assertRaises(BerError):
                ber.decode_search(request(**{field: value}))

    def test_too_many_attributes(self) -> None:
        """The attribute list is bounded."""
        with self.assertRaises(BerError):
            ber.decode_search(request("(uid=a)", *["a"] * (ber.MAX_SELECTED + 1)))


class FilterTests(SynchronousTestCase):
    @given(FILTERS)
    def test_decoded(self, filter: Filter) -> None:
        """A filter survives the wire."""
        self.assertEqual(ber.decode_filter(encode(filter)), filter)

    def test_second_opinion(self) -> None:
        """ldaptor's encoding means the same."""
        from ldaptor import ldapfilter

        for text in (
            "(&(uid=alice)(objectclass=posixAccount)(uid=*)(&(uidNumber=*)(!(uidNumber=0))))",
            "(|(cn=a*b*c)(cn=*b)(cn=a*)(x>=1)(x<=2)(x~=3))",
            "(sudoHost=+*)",
        ):
            encoded = ldapfilter.parseFilter(text).toWire()
            self.assertEqual(ber.decode_filter(encoded), parse_text(text))

    def test_malformed(self) -> None:
        """What has the tags of a filter and is none."""
        name = ber.octets(b"a")
        for data in (
            *(b"", b"\xa3\x00", ber.tlv(0xA3, name), ber.tlv(0xA3, name * 3), ber.tlv(0xA2, b""), ber.tlv(0xAA, name)),
            ber.tlv(0xA2, encode(Equal("a", b"b")) * 2),
            ber.tlv(0xA4, name + ber.tlv(0x30, b"")),
            ber.tlv(0xA4, name + ber.tlv(0x30, ber.tlv(0x81, b""))),
            ber.tlv(0xA4, name + ber.tlv(0x30, ber.tlv(0x82, b"x") + ber.tlv(0x81, b"y"))),
            ber.tlv(0xA4, name + ber.tlv(0x30, ber.tlv(0x80, b"x") * 2)),
            ber.tlv(0xA9, ber.tlv(0x83, b"x")),
            ber.tlv(0xA9, ber.tlv(0x82, b"a")),
            ber.tlv(0xA9, ber.tlv(0x83, b"x") + ber.tlv(0x82, b"a")),
        ):
            with self.assertRaises(BerError, msg=data):
                ber.decode_filter(data)

    def test_depth(self) -> None:
        """Nesting is bounded exactly."""
        filter: Filter = Equal("a", b"b")
        for each in range(ber.MAX_FILTER_DEPTH):
            filter = Not(filter) if each % 2 else And((filter,))
        self.assertEqual(ber.decode_filter(encode(filter)), filter)
        for deeper in (And((filter,)), Not(filter)):
            with self.assertRaises(FilterTooLarge):
                ber.decode_filter(encode(deeper))

    def test_terms(self) -> None:
        """The number of terms is bounded exactly."""
        term = encode(Equal("a", b"b"))
        ber.decode_filter(ber.tlv(0xA1, term * (ber.MAX_FILTER_TERMS - 1)))
        with self.assertRaises(FilterTooLarge):
            ber.decode_filter(ber.tlv(0xA1, term * ber.MAX_FILTER_TERMS))
        ber.decode_filter(ber.tlv(0xA0, term * (ber.MAX_SINGLE_TERMS - 1)))
        with self.assertRaises(FilterTooLarge):
            ber.decode_filter(ber.tlv(0xA0, term * ber.MAX_SINGLE_TERMS))
        with self.assertRaises(FilterTooLarge):
            ber.decode_filter(ber.tlv(0xA4, ber.octets(b"a") + ber.tlv(0x30, ber.tlv(0x81, b"x") * 9000)))


def decode(data: bytes) -> list[pureldap.LDAPMessage]:
    """All messages in ``data``, by ldaptor."""
    context = pureldap.LDAPBERDecoderContext_TopLevel(
        inherit=pureldap.LDAPBERDecoderContext_LDAPMessage(
            fallback=pureldap.LDAPBERDecoderContext(fallback=pureber.BERDecoderContext()),
            inherit=pureldap.LDAPBERDecoderContext(fallback=pureber.BERDecoderContext()),
        )
    )
    found = []
    while data:
        message, used = pureber.berDecodeObject(context, data)
        found.append(message)
        data = data[used:]
    return found


def plain(value: object) -> bytes:
    """ldaptor has some strings as objects and some as they are."""
    found: bytes = getattr(value, "value", value)  # type: ignore[assignment]
    return found


class WritingTests(SynchronousTestCase):
    def test_entry(self) -> None:
        """An entry as ldaptor reads it, also one that needs long lengths."""
        for size in (1, 127, 128, 255, 256, 3000, 70000):
            value = b"x" * size
            [found] = decode(ber.message(70000, ber.search_entry(b"cn=a", [(b"cn", [b"a", value]), (b"sn", [])])))
            self.assertEqual((found.id, found.value.objectName), (70000, b"cn=a"))
            [cn, sn] = found.value.attributes
            self.assertEqual([plain(each) for each in cn[1]], [b"a", value])
            self.assertEqual((plain(sn[0]), list(sn[1])), (b"sn", []))

    def test_result(self) -> None:
        """A result with all its parts, and a control."""
        control = ber.control(b"1.2.840.113556.1.4.319", b"\x30\x05\x02\x01\x00\x04\x00")
        [found] = decode(ber.message(5, ber.search_done(32, b"dc=x", b"text"), [control]))
        self.assertEqual(
            (found.value.resultCode, found.value.matchedDN, found.value.errorMessage), (32, b"dc=x", b"text")
        )
        self.assertEqual(found.controls, [(b"1.2.840.113556.1.4.319", None, b"\x30\x05\x02\x01\x00\x04\x00")])

    def test_many(self) -> None:
        """Many operations of one request, each a message of its own."""
        ops = [ber.search_entry(b"cn=%d" % each, [(b"cn", [b"x" * each * 30])]) for each in range(100)]
        self.assertEqual(ber.messages(300, ops), b"".join(ber.message(300, op) for op in ops))

    @given(st.integers(0, 2**31 - 1))
    def test_ids(self, value: int) -> None:
        """Message ids in the fewest octets."""
        self.assertEqual(ber.message_id(value), ber.integer(value))
        self.assertEqual(pureber.BERInteger(value).toWire() if value else ber.message_id(0), ber.message_id(value))

    @given(st.integers(-(2**40), 2**40))
    def test_integers(self, value: int) -> None:
        """Two's complement, as short as it can be."""
        raw = ber.integer(value)[2:]
        self.assertEqual(int.from_bytes(raw, "big", signed=True), value)
        self.assertFalse(len(raw) > 1 and raw[0] in (0, 0xFF) and raw[0] >> 7 == raw[1] >> 7)
