"""What the fuzz target searches in, and what it starts from."""

from __future__ import annotations

from pathlib import Path

from ldaptor.protocols import pureldap

from tests.ldap.harness import BASE, PEOPLE, SERVICE, message, page_control, search, snapshot

SNAPSHOT = snapshot(5)

_USER = (
    "objectClass uid userPassword uidNumber gidNumber gecos homeDirectory loginShell cn modifyTimestamp mail".split()
)
_EXISTS = "(&(uidNumber=*)(!(uidNumber=0)))"
_HOST = (
    "(|(&(!(sudoHost=*))(cn=defaults))(sudoHost=ALL)(sudoHost=web1)(sudoHost=10.0.0.0/24)(sudoHost=fe80::/64)"
    "(sudoHost=+*))"
)


def seeds() -> list[bytes]:
    """What sssd, nslcd and sudo send, and one of every other operation; the first octet is the size of reads."""
    searches = [
        search("", "(objectclass=*)", ["*", "+", "namingContexts", "lastUSN"], 0),
        search(PEOPLE, f"(&(uid=user1)(objectclass=posixAccount)(uid=*){_EXISTS})", _USER),
        search(PEOPLE, f"(&(uidNumber=200001)(objectclass=posixAccount)(uid=*){_EXISTS})", _USER),
        search(f"ou=groups,{BASE}", "(&(memberuid=user1)(objectClass=posixGroup)(cn=*)(gidNumber=*))", ["cn"]),
        search(f"ou=sudoers,{BASE}", f"(&(&(objectClass=sudoRole)(entryUSN>=1700000001)){_HOST})", ["*"]),
        search(PEOPLE, "(&(objectclass=posixAccount)(uid=us*)(gecos=*ser*1)(uidNumber>=200001)(cn~=user))", ["1.1"]),
        search(f"uid=user1,{PEOPLE}", "(cn:caseExactMatch:=User 1)", ["cn"], 0, 3),
    ]
    ava = pureldap.LDAPAttributeValueAssertion(
        pureldap.LDAPAttributeDescription(b"cn"), pureldap.LDAPAssertionValue(b"x")
    )
    others = [
        pureldap.LDAPBindRequest(3, SERVICE.encode(), b"x"),
        pureldap.LDAPBindRequest(3, b"", (b"EXTERNAL", b"dn:x"), sasl=True),
        pureldap.LDAPUnbindRequest(),
        pureldap.LDAPCompareRequest(f"uid=user1,{PEOPLE}".encode(), ava),
        pureldap.LDAPAbandonRequest(id=3),
        pureldap.LDAPExtendedRequest(requestName=b"1.3.6.1.1.8", requestValue=b"\x30\x03\x02\x01\x05"),
        pureldap.LDAPDelRequest(b"cn=x"),
    ]
    whole = [message(op, 300, [page_control(100, b"cookie", True)] if op in searches else None) for op in searches]
    whole += [message(op, i + 1) for i, op in enumerate([*searches, *others])]
    filters = [bytes(op.filter.toWire()) for op in searches]
    return [b"\x00" + raw for raw in (*whole, *filters)] + [b"\x07" + b"".join(whole[-4:])]


def write_seeds(directory: Path) -> None:
    for number, raw in enumerate(seeds()):
        (directory / f"{number:02}").write_bytes(raw)
