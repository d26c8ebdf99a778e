"""
The same searches on slapd with the same data: the same entries, the same values, the same result code.

Filters, bases, scopes and attribute lists are generated; a disagreement is a mistake of ours, unless
:data:`DIFFERENCES` says why it is meant.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from identree.directory.draft import Draft
from tests.e2e import directory
from tests.e2e.ldaptools import BASE, ONE, SUB, Client, Filter, Found, parse_filter
from tests.e2e.pocketid import Control, PocketIdServer
from tests.e2e.provider import Provider
from tests.e2e.server import Server, free_port
from tests.e2e.slapd import BASE_DN, NOT_IN_ENTRIES, Slapd

pytestmark = pytest.mark.e2e

USERS, GROUPS, RULES = 24, 8, 5
EXAMPLES, COMPARISONS = 1500, 600

# What differs, and why it is meant.
DIFFERENCES = {
    "namingContexts": "the deployed base entry has it as a user attribute; slapd keeps it for the root DSE",
    "entryUUID": "slapd makes one up for what comes from no source with ids, and orders them as 128 bits: it is "
    "only asked for by its value",
    "entryUUID under *": "clients of the deployed server read it among the user attributes (spec/ldap section 14.11)",
    "spaces at the ends of substrings": "prepared as RFC 4518 section 2.6.1 says; slapd drops them",
    "spaces around an object class": "forgiven here; to slapd it is no value, so that not even its negation finds any",
    "rules by name": "a rule for strings applies to all strings here, in slapd only to those of its syntax",
    "~=": "equality here (spec/ldap section 14.18); slapd compares the sound of words",
    "errors of Compare": "the entry is looked for first, then its attribute, and the value last; slapd looks at type "
    "and value before the entry, and takes the name of a class that it does not know for no value",
    "matched DN": "slapd writes it as the client did, we as it is stored",
}
_UNKNOWN = "unknownAttribute"
SIZE_LIMIT_EXCEEDED, COMPARE_FALSE, COMPARE_TRUE = 4, 5, 6
NO_SUCH_ATTRIBUTE, UNDEFINED_ATTRIBUTE_TYPE, INVALID_ATTRIBUTE_SYNTAX, NO_SUCH_OBJECT = 16, 17, 21, 32
# By what slapd says, what we may have found before we came to that.
_EARLIER_ERRORS = {
    UNDEFINED_ATTRIBUTE_TYPE: (NO_SUCH_OBJECT,),
    INVALID_ATTRIBUTE_SYNTAX: (NO_SUCH_OBJECT, NO_SUCH_ATTRIBUTE),
}
# Matching rules that can be asked for by name, for the attributes of their syntax.
_STRINGS = ("uid", "cn", "sn", "givenName", "ou", "o", "description", "host", "accountStatus")
_NUMBERS = ("uidNumber", "gidNumber", "shadowMax", "shadowWarning", "sudoOrder")
_RULES = {
    **dict.fromkeys(_STRINGS, ("caseExactMatch", "caseIgnoreMatch", "2.5.13.5")),
    **dict.fromkeys(_NUMBERS, ("integerMatch", "1.2.840.113556.1.4.803", "1.2.840.113556.1.4.804")),
    **dict.fromkeys(
        ("mail", "gecos", "homeDirectory", "loginShell", "memberUid", "sudoUser", "sudoCommand"),
        ("caseExactIA5Match", "caseIgnoreIA5Match"),
    ),
    "member": ("distinguishedNameMatch",),
}


@dataclass(frozen=True)
class Pair:
    ours: Client
    theirs: Client


def people(control: Control | PocketIdServer) -> None:
    """More than the usual ones: names and rules with everything in them that is compared by a rule."""

    def change(do: str, **arguments: object) -> None:
        if isinstance(control, PocketIdServer):
            control.change(do, **arguments)
        else:
            getattr(control, do)(**arguments)

    change("add_user", username="Mixed.Case", first_name="Ada  ", last_name="Love lace", email="Ada@Example.com")
    change("add_user", username="umlaut", first_name="Jürgen", last_name="Groß", email="j@example.com")
    change("add_user", username="gone", first_name="Gone", last_name="Away", disabled=True)
    change("add_user", username="bare", first_name="", last_name="")
    change("add_group", name="mixed", friendly_name="Mixed, with=signs", members=["Mixed.Case", "umlaut", "gone"])
    change("add_group", name="empty", friendly_name="Nobody")
    change(
        "add_group",
        name="timed",
        members=["umlaut"],
        claims={
            "sudoCommands": "/usr/bin/id",
            "sudoHosts": "Web1.example.com,+servers,10.0.0.0/8",
            "sudoNotBefore": "20260101000000Z",
            "sudoNotAfter": "20371231235959Z",
            "sudoOrder": "50",
        },
    )


@pytest.fixture(scope="module")
def drafts() -> tuple[Draft, ...]:
    made = directory.stand_in(USERS, GROUPS, RULES)
    people(Control(made))
    return directory.entries(directory.source(made))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, drafts: tuple[Draft, ...]) -> Iterator[Pair]:
    with ExitStack() as stack:
        port = free_port()
        pocketid = stack.enter_context(PocketIdServer(USERS, GROUPS, RULES))
        people(pocketid)
        oidc = stack.enter_context(Provider(free_port(), ["http://127.0.0.1:8090/callback"], {"alice": ["users"]}))
        place = tmp_path_factory.mktemp("identree")
        stack.enter_context(Server(place, {**oidc.settings, **directory.settings(place, pocketid, port)}))
        directory.until(lambda: directory.served(port, "cn=timed", "sudoers"), "the directory")
        slapd = stack.enter_context(Slapd(tmp_path_factory.mktemp("slapd"), drafts))
        yield Pair(stack.enter_context(directory.bound(port)), stack.enter_context(directory.bound(slapd.port)))


# -- what is asked ----------------------------------------------------------------------------------------------------
def vocabulary() -> tuple[tuple[str, ...], dict[str, tuple[bytes, ...]], frozenset[str]]:
    """The DNs, for each attribute the values that some entry has, and the DNs of those with an ``entryUUID``."""
    made = directory.stand_in(USERS, GROUPS, RULES)
    people(Control(made))
    values: dict[str, set[bytes]] = {}
    dns, with_uuid = [], set()
    for draft in directory.entries(directory.source(made)):
        dns.append(draft.dn)
        if "entryUUID" in dict(draft.attributes):
            with_uuid.add(draft.dn.lower())
        for name, some in draft.attributes:
            if name not in NOT_IN_ENTRIES:
                values.setdefault(name, set()).update(some)
    return tuple(dns), {name: tuple(sorted(some)) for name, some in sorted(values.items())}, frozenset(with_uuid)


DNS, VALUES, HAVE_UUID = vocabulary()


@st.composite
def assertions(draw: st.DrawFn, attribute: str) -> bytes:
    """Mostly a value that somebody has, as it is or a little changed."""
    value = draw(st.sampled_from(VALUES.get(attribute, (b"value",))))
    match draw(st.integers(0, 9)):
        case 0:
            return value.swapcase()
        case 1 if attribute != "objectClass":
            return b" " + value.replace(b" ", b"  ") + b" "
        case 2 if value.isdigit():
            return b"%d" % (int(value) + draw(st.sampled_from((-1, 1))))
        case 3 if value.isdigit():
            return b"0" + value
        case 4:
            return draw(st.sampled_from((b"x", b"*", b"\\", b"0", b"-1", b"ALL", b"caf\xc3\xa9", b"20260101000000Z")))
        case _:
            return value


@st.composite
def items(draw: st.DrawFn) -> Filter:
    attribute = draw(st.sampled_from((*VALUES, _UNKNOWN)))
    written = draw(st.sampled_from((attribute, attribute, attribute.lower(), attribute.upper())))
    if attribute == "entryUUID":
        return ("=", written, draw(st.sampled_from(VALUES[attribute])))
    match draw(st.sampled_from(("=", "=", "=", "*", ">=", "<=", "sub", "ext"))):
        case "*":
            return ("*", written)
        case "sub":
            value = draw(assertions(attribute)).strip(b" ")
            assume(value)
            cut = sorted(draw(st.lists(st.integers(0, len(value)), min_size=2, max_size=4)))
            pieces = [value[a:b] for a, b in zip([0, *cut], [*cut, len(value)], strict=True)]
            keep = [piece for piece in pieces[1:-1:2] if piece]
            filter = ("sub", written, pieces[0], tuple(keep), pieces[-1])
            assume(pieces[0] or keep or pieces[-1])
            return filter
        case "ext":
            return (
                "ext",
                draw(st.sampled_from(("", *_RULES.get(attribute, ())))),
                written,
                draw(assertions(attribute)),
                False,
            )
        case kind:
            return (kind, written, draw(assertions(attribute)))


@st.composite
def comparisons(draw: st.DrawFn) -> tuple[str, bytes]:
    """Attribute and value."""
    attribute = draw(st.sampled_from((*VALUES, _UNKNOWN)))
    written = draw(st.sampled_from((attribute, attribute.lower(), attribute.upper())))
    if attribute == "entryUUID":
        return written, draw(st.sampled_from(VALUES[attribute]))
    return written, draw(assertions(attribute))


FILTERS: st.SearchStrategy[Filter] = st.recursive(
    items(),
    lambda inner: st.one_of(
        st.tuples(st.just("!"), inner),
        st.tuples(st.sampled_from("&|"), inner, inner),
        st.tuples(st.sampled_from("&|"), inner, inner, inner),
    ),
    max_leaves=6,
)
BASES = st.one_of(
    st.just(BASE_DN),
    st.sampled_from((BASE_DN, f"ou=people,{BASE_DN}", f"ou=groups,{BASE_DN}", f"ou=sudoers,{BASE_DN}")),
    st.sampled_from(DNS),
    st.sampled_from(DNS).map(lambda dn: dn.upper().replace(",", " , ")),
    st.sampled_from((f"uid=nobody,ou=people,{BASE_DN}", f"ou=nowhere,{BASE_DN}", "dc=other")),
)
_WANTED = st.one_of(
    st.sampled_from((*VALUES, _UNKNOWN, "userCertificate;binary")),
    st.sampled_from(("UID", "commonname", "commonName", "2.5.4.3", "SURNAME", "1.1", "*", "1.2.3.4", "cn;lang-de")),
)
SELECTIONS: st.SearchStrategy[list[str]] = st.one_of(
    st.just([]),
    st.just(["*"]),
    st.just(["1.1"]),
    st.lists(_WANTED, min_size=1, max_size=4),
)
SIZE_LIMITS = st.sampled_from((0, 0, 0, 0, 1, 2, 5, 1000))


# -- what must be the same --------------------------------------------------------------------------------------------
def comparable(found: Found, selection: list[str]) -> dict[str, dict[str, list[bytes]]]:
    """The entries, without what differs on purpose."""
    all_of_them = not selection or "*" in selection
    entries = {}
    for dn, attributes in found.entries.items():
        entries[dn.lower()] = {
            name: sorted(values)
            for name, values in attributes.items()
            if name not in NOT_IN_ENTRIES and not (name == "entryUUID" and (all_of_them or dn.lower() not in HAVE_UUID))
        }
    return entries


def same(
    pair: Pair,
    base: str,
    scope: int,
    filter: Filter,
    selection: list[str],
    size_limit: int = 0,
    types_only: bool = False,
) -> None:
    ours = pair.ours.search(base, scope, filter, selection, size_limit=size_limit, types_only=types_only)
    theirs = pair.theirs.search(base, scope, filter, selection, size_limit=size_limit, types_only=types_only)
    assert ours.code == theirs.code, (ours, theirs)
    mine, its = comparable(ours, selection), comparable(theirs, selection)
    if ours.code == SIZE_LIMIT_EXCEEDED:
        # which ones come is the server's choice, and so is their order: each is one that comes without a limit
        assert len(mine) == len(its) == size_limit
        unlimited = pair.theirs.search(base, scope, filter, selection, types_only=types_only)
        its = {dn: entry for dn, entry in comparable(unlimited, selection).items() if dn in mine}
    assert mine == its
    if ours.code == NO_SUCH_OBJECT:
        assert ours.matched_dn.lower().replace(" ", "") == theirs.matched_dn.lower().replace(" ", "")


class TestSameAnswers:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(
        base=BASES,
        scope=st.sampled_from((BASE, ONE, SUB, SUB)),
        filter=FILTERS,
        selection=SELECTIONS,
        size_limit=SIZE_LIMITS,
        types_only=st.sampled_from((False, False, False, True)),
    )
    @example(base=BASE_DN, scope=SUB, filter=("*", "objectClass"), selection=["*"], size_limit=0, types_only=False)
    @example(
        base=BASE_DN, scope=SUB, filter=("!", ("=", "uid", b"bare")), selection=["1.1"], size_limit=0, types_only=False
    )
    @example(
        base=BASE_DN, scope=SUB, filter=("!", ("=", _UNKNOWN, b"x")), selection=["1.1"], size_limit=0, types_only=False
    )
    @example(base=BASE_DN, scope=SUB, filter=("&",), selection=["1.1"], size_limit=0, types_only=False)
    @example(base=BASE_DN, scope=SUB, filter=("|",), selection=["1.1"], size_limit=0, types_only=False)
    @example(
        base=BASE_DN,
        scope=SUB,
        filter=("sub", "cn", b"caf\xc3", (), b"\xa9"),
        selection=["1.1"],
        size_limit=0,
        types_only=False,
    )
    @example(base="", scope=SUB, filter=("*", "objectClass"), selection=["1.1"], size_limit=0, types_only=False)
    def test_generated(
        self,
        pair: Pair,
        base: str,
        scope: int,
        filter: Filter,
        selection: list[str],
        size_limit: int,
        types_only: bool,
    ) -> None:
        """The same result code, the same DNs, the same values; or types alone, or as many as were wanted."""
        same(pair, base, scope, filter, selection, size_limit, types_only)

    @settings(
        max_examples=COMPARISONS,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(dn=BASES, compared=comparisons())
    def test_compare(self, pair: Pair, dn: str, compared: tuple[str, bytes]) -> None:
        """The same answer to whether an entry has a value."""
        attribute, value = compared
        # where slapd has made one up
        assume(attribute.lower() != "entryuuid" or dn.lower().replace(" , ", ",") in HAVE_UUID)
        ours, theirs = pair.ours.compare(dn, attribute, value), pair.theirs.compare(dn, attribute, value)
        assert (
            ours == theirs
            or ours in _EARLIER_ERRORS.get(theirs, ())
            or (attribute.lower() == "objectclass" and (ours, theirs) == (COMPARE_FALSE, INVALID_ATTRIBUTE_SYNTAX))
        )

    def test_compare_what_is_there(self, pair: Pair, drafts: tuple[Draft, ...]) -> None:
        """Every value of every entry is found in it by both, except what the table names."""
        for draft in drafts:
            for name, values in draft.attributes:
                if name in NOT_IN_ENTRIES or (name == "entryUUID" and draft.dn.lower() not in HAVE_UUID):
                    continue
                for value in values[:3]:
                    assert pair.ours.compare(draft.dn, name, value) == COMPARE_TRUE, (draft.dn, name, value)
                    assert pair.theirs.compare(draft.dn, name, value) == COMPARE_TRUE, (draft.dn, name, value)

    @pytest.mark.parametrize(
        ("base", "written"),
        [
            ("ou=people", "(&(uid=mixed.case)(objectclass=posixAccount)(uid=*)(&(uidNumber=*)(!(uidNumber=0))))"),
            ("ou=people", "(&(uidNumber=200003)(objectclass=posixAccount)(uid=*)(&(uidNumber=*)(!(uidNumber=0))))"),
            ("ou=people", "(&(uid=user00000*)(objectclass=posixAccount)(uid=*)(&(uidNumber=*)(!(uidNumber=0))))"),
            ("ou=people", "(&(|(krbPrincipalName=ada@example.com)(mail=ada@example.com))(objectclass=posixAccount))"),
            ("ou=people", "(objectClass=person)"),
            ("ou=groups", "(&(memberuid=user000003)(objectClass=posixGroup)(cn=*)(&(gidNumber=*)(!(gidNumber=0))))"),
            ("ou=groups", f"(member=uid=MIXED.CASE, ou=people,{BASE_DN})"),
            ("ou=sudoers", "(&(|(!(sudoNotAfter=*))(sudoNotAfter>=20260601120000Z))(objectClass=sudoRole))"),
            ("ou=sudoers", "(&(objectClass=sudoRole)(|(sudoHost=ALL)(sudoHost=web1)(sudoHost=+*)))"),
            ("ou=sudoers", "(&(objectClass=sudoRole)(sudoOrder>=2)(!(sudoOrder>=4)))"),
        ],
    )
    def test_what_clients_ask(self, pair: Pair, base: str, written: str) -> None:
        """Filters of sssd, nslcd and sudo."""
        same(pair, f"{base},{BASE_DN}", SUB, parse_filter(written), ["*"])
