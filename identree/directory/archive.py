"""
The published directory as it is kept in the database: pieces of lines, named by their content, and a manifest.

The source is cut into blocks at places that the ids themselves choose, so that a person who comes, goes or changes
touches one block and leaves all others, with their names, as they are. Stamps are dealt into buckets by their keys for
the same reason. What is written for a small change is small, and what another replica has to read for it too.

Work over everything is a generator that yields often; compression is for a thread.
"""

from __future__ import annotations

import binascii
import json
import operator
import zlib
from base64 import b64decode, b64encode
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Generic, TypeVar

from identree.directory.draft import Stamp
from identree.directory.source import Claims, Source, SourceGroup, SourceUser
from identree.directory.stamps import Stamps, bucket

T = TypeVar("T", SourceUser, SourceGroup)

# Of the form below; another one is another program's.
FORM = 1
# A block ends with an item whose hash has these bits set: every 128th person, every 16th group on average; and at the
# latest after this many items.
_USER_MASK, _MOST_USERS = 0x7F, 1024
_GROUP_MASK, _MOST_GROUPS = 0x0F, 128
# Member ids on one line: what is decoded at once.
_MEMBERS_PER_LINE = 500
# Items between two yields: about a millisecond.
_ITEMS = 250
# A piece that claims to be larger than this, in bytes, is not one of ours.
LARGEST_PIECE = 256 << 20
# Bytes of an id; PocketID's have 36.
LONGEST_ID = 256


class BadArchive(ValueError):
    """A piece or manifest that is damaged, or of another program's form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Names of pieces: of people and of groups in their order, of stamps by bucket (empty: none in that bucket)."""

    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    stamps: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """Each once."""
        return list(dict.fromkeys(name for part in (self.users, self.groups, self.stamps) for name in part if name))

    def dump(self) -> str:
        return json.dumps(
            {"form": FORM, "users": self.users, "groups": self.groups, "stamps": self.stamps}, separators=(",", ":")
        )

    @classmethod
    def parse(cls, text: str) -> Manifest:
        """:raise BadArchive: it is none, or of another form."""
        try:
            value = json.loads(text)
            if value["form"] != FORM:
                raise BadArchive(f"the saved directory has form {value['form']!r}; this program knows {FORM}")
            parts = [tuple(map(str, value[part])) for part in ("users", "groups", "stamps")]
        except BadArchive:
            raise
        except (ValueError, KeyError, TypeError) as e:
            raise BadArchive("the manifest of the saved directory is damaged") from e
        return cls(users=parts[0], groups=parts[1], stamps=parts[2])


# -- one piece --------------------------------------------------------------------------------------------------------
def pack(raw: bytes) -> tuple[str, str]:
    """Its name and its text. For a thread: a large piece takes long."""
    return blake2b(raw, digest_size=16).hexdigest(), b64encode(zlib.compress(raw)).decode("ascii")


def unpack(name: str, text: str) -> bytes:
    """
    For a thread.

    :raise BadArchive: it is not what its name says.
    """
    try:
        machine = zlib.decompressobj()
        raw = machine.decompress(b64decode(text, validate=True), LARGEST_PIECE)
    except (zlib.error, binascii.Error, ValueError) as e:
        raise BadArchive(f"piece {name} of the saved directory is damaged") from e
    if not machine.eof or blake2b(raw, digest_size=16).hexdigest() != name:
        raise BadArchive(f"piece {name} of the saved directory is damaged")
    return raw


# -- the source -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, eq=False)
class Block(Generic[T]):
    """
    :ivar name: of the piece that holds these items; empty while nobody has written them.
    """

    items: tuple[T, ...]
    name: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Divided:
    """
    :ivar source: everything; items that are as they were before are the same objects as before.
    :ivar rejected: ids that cannot be kept, and so cannot be served; in pieces fit for a log.
    """

    source: Source
    users: tuple[Block[SourceUser], ...]
    groups: tuple[Block[SourceGroup], ...]
    rejected: tuple[str, ...] = ()

    def same(self, other: Divided) -> bool:
        """Whether both have the same content; only for one that was divided with the other as its predecessor."""
        return _identical(self.users, other.users) and _identical(self.groups, other.groups)


def _identical(one: Sequence[object], other: Sequence[object]) -> bool:
    return len(one) == len(other) and all(map(operator.is_, one, other))


def divide(source: Source, before: Divided | None) -> Generator[None, None, Divided]:
    """Cut it into blocks; those that ``before`` has too are taken from there, with their names."""
    rejected: list[str] = []
    old_users, old_groups = (before.users, before.groups) if before else ((), ())
    users = yield from _same_blocks(source.users, old_users)
    if users is None:
        users = yield from _blocks(source.users, old_users, _USER_MASK, _MOST_USERS, rejected)
    groups = yield from _same_blocks(source.groups, old_groups)
    if groups is None:
        groups = yield from _blocks(source.groups, old_groups, _GROUP_MASK, _MOST_GROUPS, rejected)
    if before is not None and _identical(users, before.users) and _identical(groups, before.groups):
        whole = before.source
    else:
        whole = yield from _whole(source, users, groups)
    return Divided(whole, users, groups, tuple(rejected))


def _whole(
    source: Source, users: Sequence[Block[SourceUser]], groups: Sequence[Block[SourceGroup]]
) -> Generator[None, None, Source]:
    """All that is in the blocks: the source itself, if that is made of the same objects."""
    start = 0
    for number, block in enumerate(users):
        if number % 50 == 0:
            yield
        end = start + len(block.items)
        if not _identical(block.items, source.users[start:end]):
            break
        start = end
    all_groups = tuple(group for block in groups for group in block.items)
    yield
    if start == len(source.users):
        return source if _identical(all_groups, source.groups) else Source(users=source.users, groups=all_groups)
    return Source(users=tuple(user for block in users for user in block.items), groups=all_groups)


def assemble(
    users: Sequence[Block[SourceUser]], groups: Sequence[Block[SourceGroup]]
) -> Generator[None, None, Divided]:
    """The whole of blocks that were read."""
    yield
    source = Source(
        users=tuple(user for block in users for user in block.items),
        groups=tuple(group for block in groups for group in block.items),
    )
    return Divided(source, tuple(users), tuple(groups))


def _blocks(
    items: Sequence[T], before: Sequence[Block[T]], mask: int, most: int, rejected: list[str]
) -> Generator[None, None, tuple[Block[T], ...]]:
    known = {block.items[0].id: block for block in before if block.items}
    blocks: list[Block[T]] = []
    block: list[T] = []
    seen: set[str] = set()
    for number, item in enumerate(items):
        if number % _ITEMS == 0:
            yield
        if not keepable(item.id) or item.id in seen:
            rejected.append(ascii(item.id[:LONGEST_ID]))
            continue
        seen.add(item.id)
        block.append(item)
        if zlib.crc32(item.id.encode()) & mask == mask or len(block) >= most:
            blocks.append(_block(block, known))
            block = []
    if block:
        blocks.append(_block(block, known))
    return tuple(blocks)


def _same_blocks(items: Sequence[T], before: Sequence[Block[T]]) -> Generator[None, None, tuple[Block[T], ...] | None]:
    """The blocks of items of which none came, went or moved since; None: some did."""
    if len(items) != sum(len(block.items) for block in before):
        return None
    blocks: list[Block[T]] = []
    start = 0
    for number, block in enumerate(before):
        if number % 20 == 0:
            yield
        some = tuple(items[start : start + len(block.items)])
        start += len(some)
        if some != block.items:
            if any(item.id != old.id for item, old in zip(some, block.items, strict=True)):
                return None
            yield
            block = Block(tuple(old if item == old else item for item, old in zip(some, block.items, strict=True)))
        blocks.append(block)
    return tuple(blocks)


def _block(items: list[T], known: Mapping[str, Block[T]]) -> Block[T]:
    before = known.get(items[0].id)
    if before is None:
        return Block(tuple(items))
    if before.items == tuple(items):
        return before
    old = {item.id: item for item in before.items}
    return Block(tuple(was if (was := old.get(item.id)) == item and was is not None else item for item in items))


def keepable(id: str) -> bool:
    """Whether every engine stores it as it is: printable, so without NUL, lone surrogates or line ends."""
    return 0 < len(id) <= LONGEST_ID and id.isprintable()


# -- lines ------------------------------------------------------------------------------------------------------------
def _line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def encode_users(users: Sequence[SourceUser]) -> Generator[None, None, bytes]:
    lines: list[bytes] = []
    for number, user in enumerate(users):
        if number % _ITEMS == 0:
            yield
        lines.append(
            _line(
                [
                    user.id,
                    user.username,
                    user.email,
                    user.first_name,
                    user.last_name,
                    user.disabled,
                    user.claims,
                    user.created_at,
                ]
            )
        )
    return b"\n".join(lines)


def encode_groups(groups: Sequence[SourceGroup]) -> Generator[None, None, bytes]:
    """A line for each group, followed by lines of its members."""
    lines: list[bytes] = []
    for group in groups:
        yield
        members = group.member_ids
        starts = range(0, len(members), _MEMBERS_PER_LINE)
        head = [group.id, group.name, group.friendly_name, group.claims, group.created_at, len(starts)]
        lines.append(_line(head))
        for number, start in enumerate(starts):
            if number % 4 == 3:
                yield
            lines.append(_line(members[start : start + _MEMBERS_PER_LINE]))
    return b"\n".join(lines)


def encode_stamps(stamps: Mapping[str, Stamp]) -> bytes:
    """One bucket; by key, so that equal stamps make an equal piece."""
    return b"\n".join(
        _line([key, stamp.usn, stamp.created, stamp.digest.hex()]) for key, stamp in sorted(stamps.items())
    )


def _decoding(raw: bytes) -> Iterator[Any]:
    return (json.loads(line) for line in raw.split(b"\n")) if raw else iter(())


def _claims(value: Any) -> Claims:
    return tuple((str(key), str(text)) for key, text in value)


def decode_users(raw: bytes) -> Generator[None, None, tuple[SourceUser, ...]]:
    """:raise BadArchive: it is of another form."""
    users: list[SourceUser] = []
    try:
        for number, line in enumerate(_decoding(raw)):
            if number % _ITEMS == 0:
                yield
            id, username, email, first_name, last_name, disabled, claims, created_at = line
            users.append(
                SourceUser(
                    id=id,
                    username=username,
                    email=email,
                    first_name=first_name,
                    last_name=last_name,
                    disabled=disabled,
                    claims=_claims(claims),
                    created_at=created_at,
                )
            )
    except (ValueError, TypeError) as e:
        raise BadArchive("a piece of people in the saved directory is of another form") from e
    return tuple(users)


def decode_groups(raw: bytes) -> Generator[None, None, tuple[SourceGroup, ...]]:
    """:raise BadArchive: it is of another form."""
    groups: list[SourceGroup] = []
    lines = _decoding(raw)
    try:
        for id, name, friendly_name, claims, created_at, count in lines:
            yield
            members: list[str] = []
            for number in range(count):
                if number % 4 == 3:
                    yield
                members.extend(next(lines, ()))
            groups.append(
                SourceGroup(
                    id=id,
                    name=name,
                    friendly_name=friendly_name,
                    claims=_claims(claims),
                    member_ids=tuple(members),
                    created_at=created_at,
                )
            )
    except (ValueError, TypeError) as e:
        raise BadArchive("a piece of groups in the saved directory is of another form") from e
    return tuple(groups)


def decode_stamps(raw: bytes) -> Generator[None, None, dict[str, Stamp]]:
    """:raise BadArchive: it is of another form."""
    stamps: dict[str, Stamp] = {}
    try:
        for number, (key, usn, created, digest) in enumerate(_decoding(raw)):
            if number % _ITEMS == 0:
                yield
            stamps[key] = Stamp(usn=usn, created=created, digest=bytes.fromhex(digest))
    except (ValueError, TypeError) as e:
        raise BadArchive("a piece of stamps in the saved directory is of another form") from e
    return stamps


# -- stamps -----------------------------------------------------------------------------------------------------------
def dealt(
    stamps: Mapping[str, Stamp], touched: Collection[str] | None
) -> Generator[None, None, dict[int, Mapping[str, Stamp]]]:
    """
    The buckets that have to be written, whole.

    :param touched: keys that came, changed or went; None: everything.
    """
    buckets = (yield from Stamps.of(stamps)).buckets
    if touched is None:
        return dict(enumerate(buckets))
    wanted: set[int] = set()
    for number, key in enumerate(touched):
        if number % 2000 == 0:
            yield
        wanted.add(bucket(key))
    return {number: buckets[number] for number in wanted}
