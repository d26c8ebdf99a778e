"""Sources and drives that tests of the directory share."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TypeVar

from hypothesis import strategies as st

from identree.directory.draft import Draft
from identree.directory.ids import IdMap
from identree.directory.layout import Layout
from identree.directory.source import Claims, Source, SourceGroup, SourceUser

T = TypeVar("T")

BASE = "dc=example,dc=com"
LAYOUT = Layout(base_dn=BASE)


def run(steps: Generator[None, None, T]) -> T:
    """The result of sliced work, done at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def user(name: str, *, id: str = "", created: int = 1, claims: Claims = (), **rest: object) -> SourceUser:
    return SourceUser(
        id=id or f"u-{name}",
        username=name,
        claims=claims,
        created_at=f"2024-01-01T00:00:{created:02}Z",
        **rest,  # type: ignore[arg-type]
    )


def group(name: str, *members: str, id: str = "", created: int = 1, claims: Claims = ()) -> SourceGroup:
    """``members`` are user names, whose ids are those of :func:`user`."""
    return SourceGroup(
        id=id or f"g-{name}",
        name=name,
        claims=claims,
        member_ids=tuple(f"u-{member}" for member in members),
        created_at=f"2024-01-01T00:00:{created:02}Z",
    )


def source(*items: SourceUser | SourceGroup) -> Source:
    return Source(
        users=tuple(item for item in items if isinstance(item, SourceUser)),
        groups=tuple(item for item in items if isinstance(item, SourceGroup)),
    )


def numbered(known: IdMap, of: Source) -> IdMap:
    return known.with_allocation(run(known.allocate(of)))


def fresh_map() -> IdMap:
    return IdMap.of(uids={}, gids={}, next_uid=200_000, next_gid=200_000)


def attributes(draft: Draft) -> dict[str, list[str]]:
    """Attributes of an entry, as text."""
    return {name: [value.decode() for value in values] for name, values in draft.attributes}


def by_dn(drafts: Iterable[Draft]) -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = {}
    for draft in drafts:
        assert draft.dn not in found, f"two entries are called {draft.dn}"
        found[draft.dn] = attributes(draft)
    return found


# Few names and ids, so that collisions, repetitions and renames happen often.
USERNAMES = st.sampled_from(["alice", "Alice", "bob", "ops", "docker", "root", "www-data", "a@b", "", "web", ".."])
GROUP_NAMES = st.sampled_from(["ops", "web", "bob", "alice", "docker", "defaults", "Ops", "db"])
_CLAIMS = st.lists(
    st.tuples(
        st.sampled_from(
            ["sudoCommands", "sudoCommands1", "sudoHosts", "sudoOptions", "accessHosts", "memberGroups", "sudoOrder"]
        ),
        st.sampled_from(["/bin/ls", "/bin/ls,!/bin/su", "web1,db1", "ALL", "noexec", "ops,web", "db", "7", ""]),
    ),
    max_size=3,
).map(tuple)
_TIMES = st.sampled_from(["2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z", ""])
USER_IDS = [f"u{number}" for number in range(6)]


def _users() -> st.SearchStrategy[SourceUser]:
    return st.builds(
        SourceUser,
        id=st.sampled_from(USER_IDS),
        username=USERNAMES,
        first_name=st.sampled_from(["", "Ann", "Zoë"]),
        disabled=st.booleans(),
        claims=st.sampled_from([(), (("loginShell", "/bin/zsh"),), (("sshPublicKey", "ssh-ed25519 AAAA"),)]),
        created_at=_TIMES,
    )


def _groups() -> st.SearchStrategy[SourceGroup]:
    return st.builds(
        SourceGroup,
        id=st.sampled_from([f"g{number}" for number in range(5)]),
        name=GROUP_NAMES,
        claims=_CLAIMS,
        member_ids=st.lists(st.sampled_from([*USER_IDS, "nobody"]), max_size=5).map(tuple),
        created_at=_TIMES,
    )


def sources() -> st.SearchStrategy[Source]:
    return st.builds(
        Source,
        users=st.lists(_users(), max_size=6, unique_by=lambda user: user.id).map(tuple),
        groups=st.lists(_groups(), max_size=5, unique_by=lambda group: group.id).map(tuple),
    )


def layouts() -> st.SearchStrategy[Layout]:
    return st.builds(
        Layout,
        base_dn=st.just(BASE),
        sudo_no_authenticate=st.sampled_from(["false", "true", "claims"]),
        schema=st.sampled_from(["rfc2307", "rfc2307bis"]),
        nested_groups=st.booleans(),
    )
