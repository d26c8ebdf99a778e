"""
The schema: attribute types with their matching rules, object classes, and both as a client reads them (RFC 4512).

Sources: RFC 4512, 4519, 4524 and 2798 for people and organisations, RFC 2307 for accounts and groups, the schema that
sudo publishes, openssh-lpk for keys. What differs from them is said where it does.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import dn
from .draft import Attributes

# A value as two values are compared; None: the value does not fit the rule, so the comparison is Undefined.
Normaliser = Callable[[bytes], bytes | None]
# A normalised value as values are ordered; keys of one rule compare with each other.
Order = Callable[[bytes], Any]

_SPACES = re.compile(rb" {2,}")
_INTEGER = re.compile(rb"-?[1-9][0-9]*|0")
_OID = re.compile(rb"[0-9]+(?:\.[0-9]+)+|[A-Za-z][A-Za-z0-9-]*")
_TIME = re.compile(rb"(\d{10})(\d{2})?(?(2)(\d{2})?)(?:[.,](\d{1,9}))?(?:Z|([+-])(\d{2})(\d{2})?)")
# RFC 4511 bounds no integer; a longer one costs more than any number here is worth.
MAX_DIGITS = 64


def _spaces(value: bytes) -> bytes:
    """Insignificant spaces folded (RFC 4518 section 2.6.1)."""
    if b"  " in value:
        value = _SPACES.sub(b" ", value)
    if value[:1] == b" " or value[-1:] == b" ":
        value = value.strip(b" ")
    return value


def case_ignore(value: bytes) -> bytes | None:
    if value.isascii():
        return _spaces(value.lower()) or None
    try:
        return dn.fold(value.decode()).encode() or None
    except UnicodeDecodeError:
        return None


def case_exact(value: bytes) -> bytes | None:
    if value.isascii():
        return _spaces(value) or None
    try:
        return _spaces(unicodedata.normalize("NFKC", value.decode()).encode()) or None
    except UnicodeDecodeError:
        return None


def case_ignore_ia5(value: bytes) -> bytes | None:
    return _spaces(value.lower()) if value.isascii() else None


def case_exact_ia5(value: bytes) -> bytes | None:
    return _spaces(value) if value.isascii() else None


def integer(value: bytes) -> bytes | None:
    # almost every number asked for is one of plain digits
    if value.isdigit() and value[0] != 48 and len(value) <= MAX_DIGITS:
        return value
    return value if len(value) <= MAX_DIGITS and _INTEGER.fullmatch(value) else None


def _time_parts(value: bytes) -> tuple[bytes, bytes] | None:
    """The fourteen digits of a time in UTC, and its fraction without trailing zeros; None: no time."""
    found = _TIME.fullmatch(value)
    if found is None:
        return None
    hour, minute, second, fraction, sign, hours, minutes = found.groups()
    if fraction and not second:
        return None  # fractions of hours and minutes: legal, and nobody's
    digits = hour + (minute or b"00") + (second or b"00")
    if sign and (int(hours) or int(minutes or b"0")):
        offset = int(hours) * 60 + int(minutes or b"0")
        moved = _moved(digits, -offset if sign == b"+" else offset)
        if moved is None:
            return None
        digits = moved
    return digits, (fraction or b"").rstrip(b"0")


_MONTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def _moved(digits: bytes, minutes: int) -> bytes | None:
    """
    A time moved by less than a day or so. Only times with an offset come here, and those must be possible ones.
    """
    year, month, day = int(digits[:4]), int(digits[4:6]), int(digits[6:8])
    total = int(digits[8:10]) * 60 + int(digits[10:12]) + minutes
    if not (1 <= month <= 12 and 1 <= day <= 31 and 1 <= year <= 9998):
        return None
    days, total = divmod(total, 1440)
    day += days
    for _ in range(6):  # an offset of 99 hours is four days
        leap = month == 2 and year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
        size = _MONTHS[month - 1] + leap
        if day < 1:
            year, month = (year - 1, 12) if month == 1 else (year, month - 1)
            leap = month == 2 and year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
            day += _MONTHS[month - 1] + leap
        elif day > size:
            day -= size
            year, month = (year + 1, 1) if month == 12 else (year, month + 1)
    return b"%04d%02d%02d%02d%02d" % (year, month, day, total // 60, total % 60) + digits[12:14]


def generalized_time(value: bytes) -> bytes | None:
    """
    Digits, never a date: sssd counts ``20260101123059Z`` up to ``20260101123060Z``, an impossible time, and asks for
    what is later (spec/ldap section 11.1, traps). With constant width the bytes order as the times do.
    """
    parts = _time_parts(value)
    if parts is None:
        return None
    digits, fraction = parts
    return digits + b"." + fraction if fraction else digits


def distinguished_name(value: bytes) -> bytes | None:
    try:
        return dn.normal(value.decode()).encode()
    except ValueError:
        return None


def object_identifier(value: bytes) -> bytes | None:
    value = value.strip(b" ")
    if not _OID.fullmatch(value):
        return None
    known = CLASSES.get(value.decode().lower())
    return known.name.lower().encode() if known else value.lower()


def octet_string(value: bytes) -> bytes | None:
    return value


def boolean(value: bytes) -> bytes | None:
    return value if value in (b"TRUE", b"FALSE") else None


def uuid(value: bytes) -> bytes | None:
    """As text without regard to case: ids of PocketID are UUIDs, but nothing says that they must be."""
    return case_ignore_ia5(value)


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """
    A matching rule.

    :ivar family: rules of one family can be applied to each other's attributes in an extensible match.
    """

    name: str
    oid: str
    syntax: str
    family: str
    normalise: Normaliser | None = None
    order: Order | None = None
    description: str = ""


_DIRECTORY_STRING = "1.3.6.1.4.1.1466.115.121.1.15"
_IA5 = "1.3.6.1.4.1.1466.115.121.1.26"
_INT = "1.3.6.1.4.1.1466.115.121.1.27"
_GENERALIZED_TIME = "1.3.6.1.4.1.1466.115.121.1.24"
_DN = "1.3.6.1.4.1.1466.115.121.1.12"
_OID_SYNTAX = "1.3.6.1.4.1.1466.115.121.1.38"
_OCTETS = "1.3.6.1.4.1.1466.115.121.1.40"
_BOOLEAN = "1.3.6.1.4.1.1466.115.121.1.7"
_UUID = "1.3.6.1.1.16.1"
_SUBSTRING = "1.3.6.1.4.1.1466.115.121.1.58"

_SYNTAXES = (
    (_BOOLEAN, "Boolean"),
    (_DN, "DN"),
    (_DIRECTORY_STRING, "Directory String"),
    (_GENERALIZED_TIME, "Generalized Time"),
    (_IA5, "IA5 String"),
    (_INT, "INTEGER"),
    (_OID_SYNTAX, "OID"),
    (_OCTETS, "Octet String"),
    (_SUBSTRING, "Substring Assertion"),
    (_UUID, "UUID"),
    ("1.3.6.1.4.1.1466.115.121.1.3", "Attribute Type Description"),
    ("1.3.6.1.4.1.1466.115.121.1.30", "Matching Rule Description"),
    ("1.3.6.1.4.1.1466.115.121.1.37", "Object Class Description"),
    ("1.3.6.1.4.1.1466.115.121.1.54", "LDAP Syntax Description"),
)

_RULES = (
    Rule("objectIdentifierMatch", "2.5.13.0", _OID_SYNTAX, "oid", object_identifier),
    Rule("distinguishedNameMatch", "2.5.13.1", _DN, "dn", distinguished_name),
    Rule("caseIgnoreMatch", "2.5.13.2", _DIRECTORY_STRING, "string", case_ignore),
    Rule("caseIgnoreOrderingMatch", "2.5.13.3", _DIRECTORY_STRING, "string", None, case_ignore),
    Rule("caseIgnoreSubstringsMatch", "2.5.13.4", _SUBSTRING, "string"),
    Rule("caseExactMatch", "2.5.13.5", _DIRECTORY_STRING, "string", case_exact),
    Rule("caseExactOrderingMatch", "2.5.13.6", _DIRECTORY_STRING, "string", None, case_exact),
    Rule("caseExactSubstringsMatch", "2.5.13.7", _SUBSTRING, "string"),
    Rule("booleanMatch", "2.5.13.13", _BOOLEAN, "boolean", boolean),
    Rule("integerMatch", "2.5.13.14", _INT, "integer", integer),
    Rule("integerOrderingMatch", "2.5.13.15", _INT, "integer", None, int),
    Rule("octetStringMatch", "2.5.13.17", _OCTETS, "octets", octet_string),
    Rule("generalizedTimeMatch", "2.5.13.27", _GENERALIZED_TIME, "time", generalized_time),
    Rule("generalizedTimeOrderingMatch", "2.5.13.28", _GENERALIZED_TIME, "time", None, octet_string),
    Rule("caseExactIA5Match", "1.3.6.1.4.1.1466.109.114.1", _IA5, "string", case_exact_ia5),
    Rule("caseIgnoreIA5Match", "1.3.6.1.4.1.1466.109.114.2", _IA5, "string", case_ignore_ia5),
    Rule("caseIgnoreIA5SubstringsMatch", "1.3.6.1.4.1.1466.109.114.3", _SUBSTRING, "string"),
    Rule("caseExactIA5SubstringsMatch", "1.3.6.1.4.1.4203.1.2.1", _SUBSTRING, "string"),
    Rule("uuidMatch", "1.3.6.1.1.16.2", _UUID, "string", uuid),
    Rule("integerBitAndMatch", "1.2.840.113556.1.4.803", _INT, "bits"),
    Rule("integerBitOrMatch", "1.2.840.113556.1.4.804", _INT, "bits"),
)

# by name in lower case, and by OID
RULES: dict[str, Rule] = {key: rule for rule in _RULES for key in (rule.name.lower(), rule.oid)}


@dataclass(frozen=True, slots=True, eq=False)
class AttributeType:
    """
    One attribute type; there is one object for each, so they are compared by identity.

    :ivar name: canonical, as it is sent.
    :ivar key: the canonical name in lower case.
    :ivar normalise: the equality rule.
    :ivar order: the ordering rule; None: there is none, and ordering matches are Undefined.
    :ivar substrings: whether substring matches are defined.
    """

    name: str
    oid: str
    equality: Rule
    ordering: Rule | None = None
    substrings: Rule | None = None
    syntax: str = ""
    aliases: tuple[str, ...] = ()
    single: bool = False
    operational: bool = False
    sup: str = ""
    usage: str = ""

    @property
    def key(self) -> str:
        return self.name.lower()

    @property
    def normalise(self) -> Normaliser:
        assert self.equality.normalise is not None
        return self.equality.normalise

    @property
    def order(self) -> Order | None:
        return self.ordering.order if self.ordering is not None else None

    def describe(self) -> str:
        """RFC 4512 section 4.1.2."""
        names = (self.name, *self.aliases)
        quoted = f"'{names[0]}'" if len(names) == 1 else "( " + " ".join(f"'{name}'" for name in names) + " )"
        parts = [f"( {self.oid} NAME {quoted}"]
        if self.sup:
            parts.append(f"SUP {self.sup}")
        parts.append(f"EQUALITY {self.equality.name}")
        if self.ordering is not None:
            parts.append(f"ORDERING {self.ordering.name}")
        if self.substrings is not None:
            parts.append(f"SUBSTR {self.substrings.name}")
        parts.append(f"SYNTAX {self.syntax}")
        if self.single:
            parts.append("SINGLE-VALUE")
        if self.operational:
            parts.append("NO-USER-MODIFICATION")
            parts.append(f"USAGE {self.usage}")
        return " ".join((*parts, ")"))


@dataclass(frozen=True, slots=True, eq=False)
class ObjectClass:
    name: str
    oid: str
    kind: str
    sup: str = ""
    must: tuple[str, ...] = ()
    may: tuple[str, ...] = ()

    def describe(self) -> str:
        """RFC 4512 section 4.1.1."""
        parts = [f"( {self.oid} NAME '{self.name}'"]
        if self.sup:
            parts.append(f"SUP {self.sup}")
        parts.append(self.kind)
        for word, names in (("MUST", self.must), ("MAY", self.may)):
            if names:
                parts.append(f"{word} ( " + " $ ".join(names) + " )")
        return " ".join((*parts, ")"))


def _type(
    name: str,
    oid: str,
    equality: str,
    *aliases: str,
    ordering: str = "",
    substrings: str = "",
    single: bool = False,
    usage: str = "",
    sup: str = "",
) -> AttributeType:
    rule = RULES[equality.lower()]
    return AttributeType(
        name,
        oid,
        rule,
        RULES[ordering.lower()] if ordering else None,
        RULES[substrings.lower()] if substrings else None,
        rule.syntax,
        aliases,
        single,
        bool(usage),
        sup,
        usage,
    )


def _string(name: str, oid: str, *aliases: str, single: bool = False, sup: str = "") -> AttributeType:
    sub = "caseIgnoreSubstringsMatch"
    return _type(name, oid, "caseIgnoreMatch", *aliases, substrings=sub, single=single, sup=sup)


def _ia5(name: str, oid: str, *aliases: str, single: bool = False) -> AttributeType:
    sub = "caseIgnoreIA5SubstringsMatch"
    return _type(name, oid, "caseIgnoreIA5Match", *aliases, substrings=sub, single=single)


def _exact(name: str, oid: str, *, single: bool = False) -> AttributeType:
    return _type(name, oid, "caseExactIA5Match", substrings="caseExactIA5SubstringsMatch", single=single)


def _number(name: str, oid: str, *, usage: str = "") -> AttributeType:
    return _type(name, oid, "integerMatch", ordering="integerOrderingMatch", single=True, usage=usage)


def _time(name: str, oid: str, *, usage: str = "", single: bool = False) -> AttributeType:
    ordering = "generalizedTimeOrderingMatch"
    return _type(name, oid, "generalizedTimeMatch", ordering=ordering, single=single, usage=usage)


_NIS = "1.3.6.1.1.1.1."
_SUDO = "1.3.6.1.4.1.15953.9.1."
_OPERATION = "directoryOperation"
_SERVER = "dSAOperation"
# for definitions that nobody else has: beneath the UUID arc (ITU-T X.667), from one random UUID
_OURS = "2.25.128264357271446843137541872031906107539."

_TYPES = (
    _type("objectClass", "2.5.4.0", "objectIdentifierMatch"),
    _string("name", "2.5.4.41"),
    _string("cn", "2.5.4.3", "commonName", sup="name"),
    _string("sn", "2.5.4.4", "surname", sup="name"),
    _string("givenName", "2.5.4.42", "gn", sup="name"),
    _string("o", "2.5.4.10", "organizationName", sup="name"),
    _string("ou", "2.5.4.11", "organizationalUnitName", sup="name"),
    _ia5("dc", "0.9.2342.19200300.100.1.25", "domainComponent", single=True),
    _string("description", "2.5.4.13"),
    _string("displayName", "2.16.840.1.113730.3.1.241", single=True),
    # account names stay without regard to case, as they are deployed (spec/ldap sections 6.4 and 14.18)
    _string("uid", "0.9.2342.19200300.100.1.1", "userid"),
    _ia5("mail", "0.9.2342.19200300.100.1.3", "rfc822Mailbox"),
    _string("host", "0.9.2342.19200300.100.1.9"),
    _type("userPassword", "2.5.4.35", "octetStringMatch"),
    _type("distinguishedName", "2.5.4.49", "distinguishedNameMatch"),
    _type("member", "2.5.4.31", "distinguishedNameMatch", sup="distinguishedName"),
    _type("owner", "2.5.4.32", "distinguishedNameMatch", sup="distinguishedName"),
    _type("seeAlso", "2.5.4.34", "distinguishedNameMatch", sup="distinguishedName"),
    # Microsoft's OID, under which it is known everywhere; a user attribute here, so that ``*`` shows it
    _type("memberOf", "1.2.840.113556.1.2.102", "distinguishedNameMatch"),
    # RFC 2307
    _number("uidNumber", _NIS + "0"),
    _number("gidNumber", _NIS + "1"),
    _ia5("gecos", _NIS + "2", single=True),
    _exact("homeDirectory", _NIS + "3", single=True),
    _exact("loginShell", _NIS + "4", single=True),
    _number("shadowLastChange", _NIS + "5"),
    _number("shadowMin", _NIS + "6"),
    _number("shadowMax", _NIS + "7"),
    _number("shadowWarning", _NIS + "8"),
    _number("shadowInactive", _NIS + "9"),
    _number("shadowExpire", _NIS + "10"),
    _number("shadowFlag", _NIS + "11"),
    _exact("memberUid", _NIS + "12"),
    _type("sshPublicKey", "1.3.6.1.4.1.24552.500.1.1.1.13", "octetStringMatch"),
    _ia5("accountStatus", _OURS + "1.1", single=True),
    # sudo's own schema
    _exact("sudoUser", _SUDO + "1"),
    # Exact in sudo's schema, without regard to case as deployed. Host names have no case, and sssd asks with the name
    # that the host gives itself: exact matching could only hide rules that sssd, which compares again, would apply.
    _ia5("sudoHost", _SUDO + "2"),
    _exact("sudoCommand", _SUDO + "3"),
    _exact("sudoRunAs", _SUDO + "4"),
    _exact("sudoOption", _SUDO + "5"),
    _exact("sudoRunAsUser", _SUDO + "6"),
    _exact("sudoRunAsGroup", _SUDO + "7"),
    _time("sudoNotBefore", _SUDO + "8"),
    _time("sudoNotAfter", _SUDO + "9"),
    _number("sudoOrder", _SUDO + "10"),
    # A user attribute, since deployed clients find it under ``*`` (spec/ldap section 14.11); ``+`` has it too.
    _type("entryUUID", "1.3.6.1.1.16.4", "uuidMatch", single=True),
    # operational ones
    _time("modifyTimestamp", "2.5.18.2", usage=_OPERATION, single=True),
    _time("createTimestamp", "2.5.18.1", usage=_OPERATION, single=True),
    _number("entryUSN", _OURS + "1.2", usage=_OPERATION),
    _type("entryDN", "1.3.6.1.1.20", "distinguishedNameMatch", single=True, usage=_OPERATION),
    _type("structuralObjectClass", "2.5.21.9", "objectIdentifierMatch", single=True, usage=_OPERATION),
    _type("hasSubordinates", "2.5.18.9", "booleanMatch", single=True, usage=_OPERATION),
    _type("subschemaSubentry", "2.5.18.10", "distinguishedNameMatch", single=True, usage=_OPERATION),
    # the root DSE's and the subschema's
    _type("namingContexts", "1.3.6.1.4.1.1466.101.120.5", "distinguishedNameMatch", usage=_SERVER),
    _type("defaultNamingContext", _OURS + "1.3", "distinguishedNameMatch", single=True, usage=_SERVER),
    _number("lastUSN", _OURS + "1.4", usage=_SERVER),
    _type("altServer", "1.3.6.1.4.1.1466.101.120.6", "caseExactIA5Match", usage=_SERVER),
    _type("supportedExtension", "1.3.6.1.4.1.1466.101.120.7", "objectIdentifierMatch", usage=_SERVER),
    _type("supportedControl", "1.3.6.1.4.1.1466.101.120.13", "objectIdentifierMatch", usage=_SERVER),
    _type("supportedSASLMechanisms", "1.3.6.1.4.1.1466.101.120.14", "caseExactMatch", usage=_SERVER),
    _type("supportedLDAPVersion", "1.3.6.1.4.1.1466.101.120.15", "integerMatch", usage=_SERVER),
    _type("supportedFeatures", "1.3.6.1.4.1.4203.1.3.5", "objectIdentifierMatch", usage=_SERVER),
    _type("vendorName", "1.3.6.1.1.4", "caseExactMatch", single=True, usage=_SERVER),
    _type("vendorVersion", "1.3.6.1.1.5", "caseExactMatch", single=True, usage=_SERVER),
    _type("attributeTypes", "2.5.21.5", "caseIgnoreMatch", usage=_OPERATION),
    _type("objectClasses", "2.5.21.6", "caseIgnoreMatch", usage=_OPERATION),
    _type("matchingRules", "2.5.21.4", "caseIgnoreMatch", usage=_OPERATION),
    _type("ldapSyntaxes", "1.3.6.1.4.1.1466.101.120.16", "caseIgnoreMatch", usage=_OPERATION),
)

# by canonical name, alias and OID, all in lower case
BY_NAME: dict[str, AttributeType] = {
    key.lower(): type_ for type_ in _TYPES for key in (type_.name, type_.oid, *type_.aliases)
}

# A type and those derived from it: a filter or selection that names ``name`` means ``cn`` too (RFC 4512 section 2.5.1).
SUBTYPES: dict[str, tuple[AttributeType, ...]] = {
    type_.key: (type_, *(other for other in _TYPES if other.sup == type_.name)) for type_ in _TYPES
}

_SHADOW = (
    "userPassword shadowLastChange shadowMin shadowMax shadowWarning shadowInactive shadowExpire shadowFlag description"
)
_CLASSES = (
    ObjectClass("top", "2.5.6.0", "ABSTRACT", "", ("objectClass",)),
    ObjectClass("dcObject", "1.3.6.1.4.1.1466.344", "AUXILIARY", "top", ("dc",)),
    ObjectClass("organization", "2.5.6.4", "STRUCTURAL", "top", ("o",), ("description", "userPassword", "seeAlso")),
    ObjectClass("domain", "0.9.2342.19200300.100.4.13", "STRUCTURAL", "top", ("dc",), ("description", "o", "seeAlso")),
    ObjectClass("organizationalUnit", "2.5.6.5", "STRUCTURAL", "top", ("ou",), ("description", "seeAlso")),
    ObjectClass("person", "2.5.6.6", "STRUCTURAL", "top", ("sn", "cn"), ("userPassword", "seeAlso", "description")),
    ObjectClass("organizationalPerson", "2.5.6.7", "STRUCTURAL", "person", (), ("ou",)),
    ObjectClass(
        "inetOrgPerson",
        "2.16.840.1.113730.3.2.2",
        "STRUCTURAL",
        "organizationalPerson",
        (),
        ("displayName", "givenName", "mail", "o", "uid"),
    ),
    ObjectClass(
        "posixAccount",
        "1.3.6.1.1.1.2.0",
        "AUXILIARY",
        "top",
        ("cn", "uid", "uidNumber", "gidNumber", "homeDirectory"),
        ("userPassword", "loginShell", "gecos", "description", "host", "accountStatus", "memberOf"),
    ),
    ObjectClass("shadowAccount", "1.3.6.1.1.1.2.1", "AUXILIARY", "top", ("uid",), tuple(_SHADOW.split())),
    # STRUCTURAL in RFC 2307, AUXILIARY in rfc2307bis; entries of ours may have it beside groupOfNames
    ObjectClass(
        "posixGroup",
        "1.3.6.1.1.1.2.2",
        "STRUCTURAL",
        "top",
        ("cn", "gidNumber"),
        ("userPassword", "memberUid", "member", "description"),
    ),
    ObjectClass("groupOfNames", "2.5.6.9", "STRUCTURAL", "top", ("cn",), ("member", "owner", "seeAlso", "description")),
    ObjectClass("ldapPublicKey", "1.3.6.1.4.1.24552.500.1.1.2.0", "AUXILIARY", "top", (), ("sshPublicKey", "uid")),
    ObjectClass(
        "sudoRole",
        "1.3.6.1.4.1.15953.9.2.1",
        "STRUCTURAL",
        "top",
        ("cn",),
        (
            *("sudoUser", "sudoHost", "sudoCommand", "sudoRunAs", "sudoRunAsUser", "sudoRunAsGroup", "sudoOption"),
            *("sudoOrder", "sudoNotBefore", "sudoNotAfter", "description"),
        ),
    ),
    ObjectClass("subentry", "2.5.17.0", "STRUCTURAL", "top", ("cn",)),
    ObjectClass(
        "subschema",
        "2.5.20.1",
        "AUXILIARY",
        "",
        (),
        ("attributeTypes", "objectClasses", "matchingRules", "ldapSyntaxes"),
    ),
    ObjectClass("extensibleObject", "1.3.6.1.4.1.1466.101.120.111", "AUXILIARY", "top"),
)

# by name and OID, in lower case
CLASSES: dict[str, ObjectClass] = {key.lower(): class_ for class_ in _CLASSES for key in (class_.name, class_.oid)}


def with_superclasses(values: tuple[bytes, ...]) -> frozenset[bytes]:
    """Normalised object classes, and all that they are derived from (RFC 4512 section 2.4.1)."""
    found: set[bytes] = set()
    for value in values:
        normal = object_identifier(value)
        while normal is not None and normal not in found:
            found.add(normal)
            known = CLASSES.get(normal.decode())
            normal = known.sup.lower().encode() if known and known.sup else None
    return frozenset(found)


def structural_class(values: tuple[bytes, ...]) -> bytes | None:
    """The most derived structural class among ``values``, under its canonical name."""
    known = [CLASSES[key] for value in values if (key := value.decode("ascii", "replace").lower()) in CLASSES]
    structural = [class_ for class_ in known if class_.kind == "STRUCTURAL"]
    above = {class_.sup for class_ in structural}
    # posixGroup beside groupOfNames, as in rfc2307bis: the later one of the two is the one that names the entry
    for class_ in reversed(structural):
        if class_.name not in above:
            return class_.name.encode()
    return None


def known(description: str) -> tuple[AttributeType, ...] | None:
    """
    What an attribute description in a filter or selection means: a type and its subtypes.

    Empty: a type that we know with a language tag (RFC 3866), which no value of ours has. None: nothing that we know.
    """
    type_ = BY_NAME.get(description.lower())
    if type_ is not None:
        return SUBTYPES[type_.key]
    name, _, options = description.partition(";")
    if options and name.lower() in BY_NAME:
        return () if all(option.lower().startswith("lang-") for option in options.split(";")) else None
    return None


SUBSCHEMA_DN = "cn=Subschema"


def subschema() -> Attributes:
    """
    The attributes of the subschema subentry, the operational ones included (RFC 4512 section 4.2).
    """
    return (
        ("objectClass", (b"top", b"subentry", b"subschema", b"extensibleObject")),
        ("cn", (b"Subschema",)),
        ("ldapSyntaxes", tuple(f"( {oid} DESC '{text}' )".encode() for oid, text in sorted(_SYNTAXES))),
        (
            "matchingRules",
            tuple(f"( {rule.oid} NAME '{rule.name}' SYNTAX {rule.syntax} )".encode() for rule in _RULES),
        ),
        ("attributeTypes", tuple(type_.describe().encode() for type_ in _TYPES)),
        ("objectClasses", tuple(class_.describe().encode() for class_ in _CLASSES)),
    )
