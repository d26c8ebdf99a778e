"""The published directory as pieces: nothing lost on the way, and little to write for a small change."""

import zlib
from collections.abc import Generator
from dataclasses import replace
from typing import Any, TypeVar

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.directory import archive
from identree.directory.archive import BadArchive, Block, Divided, Manifest
from identree.directory.draft import Stamp
from identree.directory.source import Source, SourceGroup, SourceUser
from identree.directory.stamps import BUCKETS

T = TypeVar("T")

# also what JSON and engines find difficult
TEXT = st.text(st.characters(), max_size=6)
IDS = st.text("abc-\u00e9", min_size=1, max_size=4)
CLAIMS = st.lists(st.tuples(TEXT, TEXT), max_size=2).map(tuple)
USERS = st.lists(
    st.builds(
        SourceUser,
        id=IDS,
        username=TEXT,
        email=TEXT,
        first_name=TEXT,
        last_name=TEXT,
        disabled=st.booleans(),
        claims=CLAIMS,
        created_at=TEXT,
    ),
    unique_by=lambda user: user.id,
).map(tuple)
GROUPS = st.lists(
    st.builds(
        SourceGroup,
        id=IDS,
        name=TEXT,
        friendly_name=TEXT,
        claims=CLAIMS,
        member_ids=st.lists(TEXT).map(tuple),
        created_at=TEXT,
    ),
    unique_by=lambda group: group.id,
).map(tuple)
SOURCES = st.builds(Source, users=USERS, groups=GROUPS)


def end(work: Generator[None, None, T]) -> T:
    while True:
        try:
            next(work)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]


def user(number: int, **fields: Any) -> SourceUser:
    return SourceUser(id=f"id-{number}", username=f"u{number}", **fields)


class SourceTests(SynchronousTestCase):
    @given(SOURCES)
    def test_there_and_back(self, source: Source) -> None:
        """A source that is divided, written and read is the same."""
        divided = end(archive.divide(source, None))
        self.assertEqual(divided.source, source)
        users, groups = [], []
        for block in divided.users:
            name, text = archive.pack(end(archive.encode_users(block.items)))
            users.append(Block(end(archive.decode_users(archive.unpack(name, text))), name))
        for group_block in divided.groups:
            name, text = archive.pack(end(archive.encode_groups(group_block.items)))
            groups.append(Block(end(archive.decode_groups(archive.unpack(name, text))), name))
        self.assertEqual(end(archive.assemble(users, groups)).source, source)

    @given(SOURCES, SOURCES)
    def test_predecessor(self, before: Source, after: Source) -> None:
        """Whatever was there before, the content is that of the source, and it is the same only if it is."""
        old = end(archive.divide(before, None))
        new = end(archive.divide(after, old))
        self.assertEqual(new.source, after)
        self.assertEqual(new.same(old), before == after)

    def test_large_group(self) -> None:
        """A group of many members comes back in order."""
        group = SourceGroup(id="g", name="g", member_ids=tuple(str(n) for n in range(5001)))
        self.assertEqual(end(archive.decode_groups(end(archive.encode_groups([group, group])))), (group, group))

    def _divided(self, users: list[SourceUser], before: Divided | None = None) -> Divided:
        return end(archive.divide(Source(users=tuple(users)), before))

    def test_small_change(self) -> None:
        """One who changes, comes or goes touches one block; everybody else stays the same object."""
        users = [user(n) for n in range(3000)]
        before = self._divided(users)
        self.assertGreater(len(before.users), 10)
        copies = [replace(one) for one in users]
        changes = (
            [*copies[:1500], replace(copies[1500], email="x"), *copies[1501:]],
            [*copies[:1500], user(9999), *copies[1500:]],
            [*copies[:1500], *copies[1501:]],
        )
        for changed in changes:
            after = self._divided(changed, before)
            fresh = [block for block in after.users if block not in before.users]
            self.assertLessEqual(len(fresh), 2)
            known = {id(one) for one in before.source.users}
            self.assertLessEqual(sum(id(one) not in known for one in after.source.users), 1)

    def test_whole(self) -> None:
        """A source of which all objects are kept is kept itself, and is not held twice."""
        users = [user(n) for n in range(3000)]
        before = self._divided(users)
        changed = Source(users=(*users[:7], replace(users[7], email="x"), *users[8:]))
        self.assertIs(end(archive.divide(changed, before)).source, changed)

    def test_moved(self) -> None:
        """Two who change places are a change, though everybody is there."""
        users = [user(n) for n in range(3000)]
        before = self._divided(users)
        after = self._divided([users[1], users[0], *users[2:]], before)
        self.assertEqual([one.id for one in after.source.users[:3]], ["id-1", "id-0", "id-2"])
        self.assertFalse(after.same(before))

    def test_block_bound(self) -> None:
        """A block is bounded whatever the ids choose."""
        ids = [one for n in range(400_000) if zlib.crc32((one := f"{n}").encode()) & 0x7F != 0x7F][:3000]
        divided = self._divided([SourceUser(id=one, username=one) for one in ids])
        self.assertEqual([len(block.items) for block in divided.users], [1024, 1024, 952])

    def test_rejected(self) -> None:
        """Ids that no engine keeps, and second ones, are left out and named."""
        divided = self._divided([user(1), SourceUser(id="a\0", username="x"), user(1), SourceUser(id="", username="y")])
        self.assertEqual((divided.source.users, divided.rejected), ((user(1),), ("'a\\x00'", "'id-1'", "''")))


class PieceTests(SynchronousTestCase):
    def test_damage(self) -> None:
        """What is not what its name says is not used."""
        name, text = archive.pack(b"content")
        other = archive.pack(b"other")[1]
        for damaged in (other, text[:-4], "", "=", "no base64!"):
            self.assertRaises(BadArchive, archive.unpack, name, damaged)
        self.assertEqual(archive.unpack(name, text), b"content")

    def test_other_form(self) -> None:
        """A piece or manifest of another form is refused, and does not crash."""
        for raw in (b"5", b"[1]", b"nonsense", b'["a","b"]\n'):
            self.assertRaises(BadArchive, end, archive.decode_users(raw))
            self.assertRaises(BadArchive, end, archive.decode_groups(raw))
            self.assertRaises(BadArchive, end, archive.decode_stamps(raw))
        for text in ("", "5", "{}", '{"form":2}', '{"form":1,"users":5}'):
            self.assertRaises(BadArchive, Manifest.parse, text)

    def test_manifest(self) -> None:
        """A manifest comes back, and names each piece once."""
        manifest = Manifest(users=("a", "b"), groups=("a",), stamps=("", "c"))
        self.assertEqual(Manifest.parse(manifest.dump()), manifest)
        self.assertEqual(manifest.names(), ["a", "b", "c"])


class StampTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.stamps = {f"person:{n}": Stamp(usn=n, created=1, digest=bytes([n % 256] * 16)) for n in range(3000)}

    def test_all(self) -> None:
        """Dealt, written and read, all stamps are there."""
        found: dict[str, Stamp] = {}
        for bucket in end(archive.dealt(self.stamps, None)).values():
            found |= end(archive.decode_stamps(archive.encode_stamps(bucket)))
        self.assertEqual(found, self.stamps)

    def test_touched(self) -> None:
        """Only the buckets of touched keys are written, whole; also those of keys that are gone."""
        buckets = end(archive.dealt(self.stamps, {"person:5", "gone"}))
        self.assertEqual(set(buckets), {archive.bucket("person:5"), archive.bucket("gone")})
        for number, bucket in buckets.items():
            self.assertEqual(
                bucket, {key: stamp for key, stamp in self.stamps.items() if archive.bucket(key) == number}
            )

    def test_numbers(self) -> None:
        """Every key has a place, also a strange one."""
        self.assertIn(archive.bucket("person:\ud800"), range(BUCKETS))
