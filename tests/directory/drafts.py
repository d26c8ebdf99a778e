"""A small company, as drafts and stamps, for the tests of what is served."""

from collections.abc import Iterable, Sequence

from identree.directory.draft import Attributes, Draft, Kind, Stamp
from identree.directory.snapshot import Snapshot, run

BASE = "dc=example,dc=com"


def attributes(**values: bytes | str | Iterable[str]) -> Attributes:
    found: list[tuple[str, tuple[bytes, ...]]] = []
    for name, value in values.items():
        if isinstance(value, (bytes, str)):
            value = [value.decode() if isinstance(value, bytes) else value]
        found.append((name, tuple(each.encode() for each in value)))
    return tuple(found)


def containers(base: str = BASE, names: Sequence[str] = ("people", "groups", "sudoers")) -> list[Draft]:
    root = attributes(objectClass=["top", "dcObject", "organization"], dc="example", o=base)
    return [
        Draft(Kind.ROOT, "root", base, root),
        *(
            Draft(
                Kind.CONTAINER,
                f"container:{name}",
                f"ou={name},{base}",
                attributes(objectClass=["top", "organizationalUnit"], ou=name),
            )
            for name in names
        ),
    ]


def person(number: int, name: str = "", **more: str | list[str]) -> Draft:
    name = name or f"user{number}"
    values: dict[str, str | list[str]] = {
        "objectClass": ["top", "posixAccount", "shadowAccount", "inetOrgPerson"],
        "uid": name,
        "cn": f"User Number {number}",
        "gecos": f"User Number {number}",
        "sn": f"Number {number}",
        "givenName": "User",
        "mail": f"{name}@example.com",
        "uidNumber": str(200000 + number),
        "gidNumber": str(400000 + number),
        "homeDirectory": f"/home/{name}",
        "loginShell": "/bin/bash",
        "shadowMin": "0",
        "shadowMax": "99999",
        "shadowWarning": "7",
        "accountStatus": "active",
        "entryUUID": f"00000000-0000-4000-8000-{number:012d}",
    }
    return Draft(Kind.PERSON, f"person:{number}", f"uid={name},ou=people,{BASE}", attributes(**(values | more)))


def private_group(number: int, name: str = "") -> Draft:
    name = name or f"user{number}"
    return Draft(
        Kind.PRIVATE_GROUP,
        f"private:{number}",
        f"cn={name},ou=groups,{BASE}",
        attributes(
            objectClass=["top", "posixGroup"],
            cn=name,
            gidNumber=str(400000 + number),
            memberUid=name,
            entryUUID=f"00000000-0000-5000-8000-{number:012d}",
        ),
    )


def group(number: int, members: Iterable[str], name: str = "") -> Draft:
    members = list(members)
    name = name or f"group{number}"
    values: dict[str, str | list[str]] = {
        "objectClass": ["top", "posixGroup"],
        "cn": name,
        "description": f"Group {number}",
        "gidNumber": str(300000 + number),
        "entryUUID": f"10000000-0000-4000-8000-{number:012d}",
    }
    if members:
        values["memberUid"] = members
        values["member"] = [f"uid={each},ou=people,{BASE}" for each in members]
    return Draft(Kind.GROUP, f"group:{number}", f"cn={name},ou=groups,{BASE}", attributes(**values))


def role(number: int, users: Iterable[str], hosts: Iterable[str] = ("ALL",), **more: str | list[str]) -> Draft:
    values: dict[str, str | list[str]] = {
        "objectClass": ["top", "sudoRole"],
        "cn": f"role{number}",
        "sudoUser": list(users),
        "sudoHost": list(hosts),
        "sudoCommand": ["/usr/bin/apt", "/usr/bin/systemctl restart nginx"],
        "sudoRunAsUser": "root",
        "sudoOrder": str(number),
    }
    return Draft(Kind.ROLE, f"role:{number}", f"cn=role{number},ou=sudoers,{BASE}", attributes(**(values | more)))


def company(people: int, groups: int, roles: int, members: int = 20) -> list[Draft]:
    """In the order in which a directory is built."""
    root, ou_people, ou_groups, ou_sudoers = containers()
    numbers = range(people)

    def of(number: int) -> list[str]:
        return [f"user{(number * members + each) % people}" for each in range(min(members, people))]

    return [
        root,
        ou_people,
        *map(person, numbers),
        ou_groups,
        *(group(number, of(number)) for number in range(groups)),
        *map(private_group, numbers),
        ou_sudoers,
        *(role(number, of(number), ("ALL",) if number % 2 else (f"web{number}",)) for number in range(roles)),
    ]


FIRST_USN = 1_770_000_000


def stamped(drafts: Iterable[Draft], usn: int = FIRST_USN) -> dict[str, Stamp]:
    return {draft.key: Stamp(usn, FIRST_USN, b"") for draft in drafts}


def snapshot(drafts: Sequence[Draft], previous: Snapshot | None = None) -> Snapshot:
    return run(Snapshot.build(BASE, drafts, stamped(drafts), previous))
