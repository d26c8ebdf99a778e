"""
Answering searches, quickly: what was asked before is answered from memory, what differs from it in one value by one
look into an index, and everything else by a plan; a large answer is made in steps.

Three ways lead to the same bytes:

* The memo: operation bytes to reply. sssd repeats itself byte for byte (design section 3.3).
* A pattern: sssd's questions of one kind differ in the first assertion value alone. The first of a kind is decoded and
  compiled; the rest is recognised by the bytes before and after that value.
* The plan: decode, find candidates or scan the scope, test and encode each entry.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any, TypeVar

from identree.directory import dn, schema
from identree.directory.encoding import (
    ENTRY_HEADERS,
    SEQUENCE_HEADERS,
    TABLED_LENGTHS,
    length,
    partial_attribute,
    sequence_header,
)
from identree.directory.filters import (
    And,
    Equal,
    Filter,
    Holders,
    Steps,
    Test,
    Verdict,
    compile,
    dear,
    dear_bytes,
    passes,
    stepped,
    terms,
)
from identree.directory.schema import AttributeType
from identree.directory.snapshot import (
    BASE,
    NARROWED,
    SUBTREE,
    Entry,
    Index,
    Narrowed,
    NoSuchObject,
    Shape,
    Sight,
    Snapshot,
    View,
)

from . import ber
from .ber import FilterTooLarge, SearchRequest

SUCCESS = 0
OPERATIONS_ERROR = 1
PROTOCOL_ERROR = 2
TIME_LIMIT_EXCEEDED = 3
SIZE_LIMIT_EXCEEDED = 4
COMPARE_FALSE = 5
COMPARE_TRUE = 6
ADMIN_LIMIT_EXCEEDED = 11
NO_SUCH_ATTRIBUTE = 16
UNDEFINED_ATTRIBUTE_TYPE = 17
INVALID_ATTRIBUTE_SYNTAX = 21
NO_SUCH_OBJECT = 32
INVALID_DN_SYNTAX = 34
BUSY = 51

# Seconds of work in one step of a scan, and so the longest that the reactor is held.
STEP_SECONDS = 0.002
# Entries between two looks at the clock, and terms of filters that are evaluated between them: the dearest of a few
# microseconds each.
_TOGETHER = 32
_TERMS_TOGETHER = 256
# Encoded bytes of attributes that are gone through between two looks at the clock, once for each term about them: a
# millisecond at most. An entry with more is evaluated in steps.
LIGHT_BYTES = 8192
# Encoded bytes of an entry that is seen as a host does in one go, without steps.
NARROWED_BYTES = 4096
# A longer request, or one with more terms, takes milliseconds to decode, to find candidates for and to compile for each
# shape of entries: each of it is a step.
LARGE_BYTES = 32 * 1024
LARGE_TERMS = 1000
# And a request that is longer than this takes half a millisecond for each shape.
SLOW_BYTES = 1024
# Bytes of assertion values that take long to normalise, as strings that are not ASCII and DNs with escapes do: 7 ms at
# most for all of a filter, which is done for each shape. No name that is served is longer than a few hundred.
MAX_DEAR_BYTES = 16 * 1024
# Longest name of a base that is not ASCII, of which a byte takes up to three microseconds in all. No DN of ours is as
# long.
MAX_BASE_BYTES = 2048
# Bytes of answers that one step makes at most, so that a slow reader never has more waiting for it.
STEP_BYTES = 256 * 1024
# What a memorised reply costs beside its bytes: objects and its place in a dictionary.
_MEMO_OVERHEAD = 500
# Kinds of questions, attribute lists and hosts' views that are remembered at a time. sssd has about ten kinds.
MAX_PATTERNS = 512
MAX_SELECTIONS = 512
# Longest attribute list that is recognised by its bytes, and longest question, and with the most terms, that is the
# first of a kind. Those of sssd have 600 bytes.
MAX_LISTED_BYTES = 4096
MAX_PATTERN_BYTES = 4096
MAX_PATTERN_TERMS = 64
# What all kinds together may keep, in bytes: of their questions, and about so much for each term and its compiled form.
PATTERNS_BYTES = 16 * 1024 * 1024
_TERM_BYTES = 1000
MAX_LANES = 32
# Lengths that the values in questions of known kinds have had, and such kinds among questions of one length.
MAX_FRAMES = 512
FRAMES_ALIKE = 16
# A filter is asked again with other values for few entries only: blocks up to this size have their encodings kept.
MAX_KEPT = 2000
# Answers to a question of a known kind that are made in one go, in entries and bytes.
MAX_AT_ONCE = 256
# What is no longer remembered is freed in steps: so many things at a time, and some with each that is remembered anew.
FREED_AT_ONCE = 2000
_FREED_BESIDE = 4
# Encoded entries that are kept for the next question with the same attribute list, in bytes per snapshot.
MAX_ENCODED_BYTES = 8 * 1024 * 1024

_DONE = ber.search_done(SUCCESS)


class Reply:
    """
    A whole answer.

    :ivar code: the result code.
    :ivar count: entries in it.
    :ivar base: ``people``, ``groups``, ``sudoers`` or ``root``, for the metric.
    :ivar entries: SearchResultEntry protocolOps.
    :ivar done: the SearchResultDone.
    """

    __slots__ = ("_parts", "base", "code", "count", "done", "entries")

    def __init__(self, entries: Sequence[bytes], done: bytes = _DONE, code: int = SUCCESS, base: str = "root") -> None:
        self.entries = entries
        self.done = done
        self.code = code
        self.base = base
        self.count = len(entries)
        # what stands between the message ids; made for the length of the encoded id, and for what follows the last one
        self._parts: tuple[int, bytes, list[bytes]] | None = None

    @property
    def size(self) -> int:
        """Bytes of the protocolOps."""
        return sum(map(len, self.entries)) + len(self.done)

    def render(self, message_id: int, controls: bytes = b"") -> bytes:
        """
        All messages of the answer.

        :param controls: of the SearchResultDone, their tag included.
        """
        return self.around(ber.message_id(message_id), controls)

    def around(self, encoded: bytes, controls: bytes = b"") -> bytes:
        """The same with the message id as it is sent, an encoded INTEGER."""
        extra = len(encoded)
        done = self.done + controls if controls else self.done
        size = len(done) + extra
        last = SEQUENCE_HEADERS[size] if size < TABLED_LENGTHS else b"\x30" + length(size)
        count = self.count
        if not count:
            return b"".join((last, encoded, done))
        if count == 1:
            [entry] = self.entries
            size = len(entry) + extra
            header = SEQUENCE_HEADERS[size] if size < TABLED_LENGTHS else b"\x30" + length(size)
            return b"".join((header, encoded, entry, last, encoded, done))
        parts = self._parts
        if parts is None or parts[0] != extra or parts[1] != controls:
            headers = [sequence_header(len(entry) + extra) for entry in self.entries]
            headers.append(last)
            between = [headers[0]]
            between += [entry + header for entry, header in zip(self.entries, headers[1:], strict=True)]
            between.append(done)
            parts = self._parts = (extra, controls, between)
        return encoded.join(parts[2])


def failure(code: int, text: str = "", matched: str = "", base: str = "root") -> Reply:
    """An answer without entries."""
    return Reply((), ber.search_done(code, matched.encode(), text.encode()), code, base)


T = TypeVar("T")

# --- selection -------------------------------------------------------------------------------------------------------

Encode = Callable[[Entry], bytes]


class Selection:
    """
    Which attributes are asked for, and entries encoded with just these (RFC 4511 section 4.5.1.8).

    Unknown names, and known ones with options that no value of ours has, select nothing.
    """

    def __init__(self, attributes: tuple[bytes, ...], types_only: bool) -> None:
        names = [attribute.decode("utf-8", "replace").lower() for attribute in attributes]
        # 1.1 counts only when it stands alone
        self._user = not names or "*" in names
        self._operational = "+" in names
        self._named = frozenset(
            type_ for name in names if ";" not in name for type_ in schema.known(name) or () if name not in ("*", "+")
        )
        self._types_only = types_only
        # what it depends on
        self.key: object = (self._user, self._operational, self._named, types_only)
        self._encoders: dict[Shape, Encode] = {}
        # entries encoded so far: the same few rules are asked for by every host, each with a filter of its own
        self.encoded: dict[Entry, bytes] = {}

    def wants(self, type_: AttributeType) -> bool:
        if type_ in self._named:
            return True
        # entryUUID is both: deployed clients find it under *, RFC 4530 has it as operational
        if type_.operational or type_.key == "entryuuid":
            if self._operational:
                return True
            return self._user and not type_.operational
        return self._user

    def encoder(self, shape: Shape) -> Encode:
        """Makes SearchResultEntries of entries of a shape."""
        found = self._encoders.get(shape)
        if found is None:
            found = self._encoders[shape] = self._make(shape)
        return found

    def _make(self, shape: Shape) -> Encode:
        wanted = [(at, type_) for at, type_ in enumerate(shape.types) if self.wants(type_)]
        if self._types_only:
            constant = b"".join(partial_attribute(type_.name.encode(), ()) for _, type_ in wanted)
            return lambda entry: _entry(entry.head, constant)
        places = [at for at, _ in wanted if at < shape.pieces]
        extras = [
            (type_.name.encode(), read)
            for at, type_ in wanted
            if at >= shape.pieces and (read := shape.reader(type_)) is not None
        ]
        if extras:
            return lambda entry: _entry(
                entry.head,
                b"".join(
                    [
                        *(entry.pieces[at] for at in places),
                        *(partial_attribute(name, read(entry)) for name, read in extras),
                    ]
                ),
            )
        if not places:
            return lambda entry: _entry(entry.head, b"")
        if len(places) == 1:
            place = places[0]
            return lambda entry: _entry(entry.head, entry.pieces[place])
        return _encoder(itemgetter(*places))


def _entry(head: bytes, body: bytes) -> bytes:
    size = len(body)
    header = SEQUENCE_HEADERS[size] if size < TABLED_LENGTHS else b"\x30" + length(size)
    size += len(header) + len(head)
    return b"".join((ENTRY_HEADERS[size] if size < TABLED_LENGTHS else b"\x64" + length(size), head, header, body))


def _encoder(pick: Callable[[tuple[bytes, ...]], tuple[bytes, ...]]) -> Encode:
    join = b"".join

    def encode(entry: Entry) -> bytes:
        body = join(pick(entry.pieces))
        head = entry.head
        size = len(body)
        header = SEQUENCE_HEADERS[size] if size < TABLED_LENGTHS else b"\x30" + length(size)
        size += len(header) + len(head)
        return join((ENTRY_HEADERS[size] if size < TABLED_LENGTHS else b"\x64" + length(size), head, header, body))

    return encode


# --- one entry outside of the tree -----------------------------------------------------------------------------------


def entry_answer(entry: Entry, request: SearchRequest) -> Reply:
    """
    A base search of one entry that is in no tree: the root DSE or the subschema.
    """
    if request.scope != BASE:
        return failure(NO_SUCH_OBJECT)
    if _too_dear(request.filter):
        return failure(ADMIN_LIMIT_EXCEEDED, _DEAR)
    plan = _Plan(request.filter, Selection(request.attributes, request.types_only))
    verdict, encode, weigh = plan.of(entry.shape)
    if weigh is not None and weigh(entry) > LIGHT_BYTES:
        # few ask for these entries, and nobody with a filter like that
        return failure(ADMIN_LIMIT_EXCEEDED, "the filter has too many terms for this entry")
    if callable(verdict):
        verdict = verdict(entry)
    if not verdict:
        return Reply(())
    return Reply((encode(entry),))


_DEAR = "the values in the filter are too long"


def _too_dear(filter: Filter) -> bool:
    return dear_bytes(filter) > MAX_DEAR_BYTES


# --- plans -----------------------------------------------------------------------------------------------------------


# What an entry costs a test, in the unit of LIGHT_BYTES.
Weigh = Callable[[Entry], int]
# What a filter and a selection come to for entries of one shape; a test that costs nothing to speak of has no weight.
_Way = tuple[Verdict | Test[Entry], Encode, Weigh | None]


def _weigher(passes: Mapping[AttributeType | None, int], shape: Shape) -> Weigh | None:
    """The encoded length of attributes, each as often as it is gone through."""
    every = passes.get(None, 0)
    places = [
        (place, count)
        for place, type_ in enumerate(shape.types[: shape.pieces])
        if (count := passes.get(type_, 0) + every) and not type_.single
    ]
    if not places:
        return None
    if len(places) == 1:
        [(place, count)] = places
        return lambda entry: count * len(entry.pieces[place])

    def weigh(entry: Entry) -> int:
        pieces = entry.pieces
        return sum([count * len(pieces[place]) for place, count in places])

    return weigh


class _Plan:
    """
    A filter and a selection for every shape that they meet.

    :ivar holders: see :func:`stepped`; None where entries are not those of an index.
    :ivar known: by shapes, see :meth:`of`.
    :ivar slow: it takes a good part of a step to meet a shape.
    """

    __slots__ = ("_passes", "_steps", "filter", "holders", "known", "selection", "slow")

    def __init__(self, filter: Filter, selection: Selection, holders: Holders[Entry] | None = None) -> None:
        self.filter = filter
        self.selection = selection
        self.holders = holders
        self.slow = False
        self.known: dict[Shape, _Way] = {}
        self._passes: dict[AttributeType | None, int] | None = None
        self._steps: dict[Shape, Verdict | Steps[Entry]] = {}

    def of(self, shape: Shape) -> _Way:
        found = self.known.get(shape)
        if found is None:
            verdict = compile(self.filter, shape)
            weigh: Weigh | None = None
            if callable(verdict):
                if self._passes is None:
                    self._passes = passes(self.filter)
                if self._passes:
                    weigh = _weigher(self._passes, shape)
            found = self.known[shape] = (verdict, self.selection.encoder(shape), weigh)
        return found

    def test(self, entry: Entry) -> Generator[None, None, Verdict]:
        """The verdict on an entry of more than :data:`LIGHT_BYTES`."""
        shape = entry.shape
        if shape not in self._steps:
            yield
            self._steps[shape] = stepped(self.filter, shape, self.holders)
            yield
        steps = self._steps[shape]
        return (yield from steps(entry)) if callable(steps) else steps

    def learning(self, shape: Shape) -> Iterator[list[bytes]]:
        """Makes sure that :meth:`of` takes no time; no entries after each step."""
        if shape not in self.known:
            self.of(shape)
            if self.slow:
                yield []


class _Pattern:
    """
    Questions of one kind: an indexed equality, in conjunction with a rest that is always the same.

    :ivar after: bytes of the conjunction behind the equality; -1: the equality is the whole filter.
    :ivar tail: of the question, everything behind the value.
    """

    __slots__ = (
        "after",
        "any_scope",
        "base",
        "empty",
        "index",
        "known",
        "normalise",
        "parent",
        "plan",
        "scope",
        "size_limit",
        "tail",
    )

    def __init__(
        self,
        *,
        index: Index[bytes],
        type_: AttributeType,
        base: Entry,
        any_scope: bool,
        request: SearchRequest,
        after: int,
        tail: bytes,
        plan: _Plan,
        empty: Reply,
    ) -> None:
        self.index = index
        self.normalise = type_.normalise
        self.base = base
        # the parent that a match must have, unless it is the base itself
        self.parent = base.normal
        self.any_scope = any_scope
        self.scope = request.scope
        self.size_limit = request.size_limit
        self.after = after
        self.tail = tail
        self.plan = plan
        self.known = plan.known
        self.empty = empty


# Bytes up to a value, its length included, and behind it; from where to where it goes.
_Frame = tuple[bytes, bytes, int, int, _Pattern]


class _Lane:
    """What was learned about one snapshot, as all see it or as one host does."""

    def __init__(self, snapshot: Snapshot, view: View | None, narrowed: Narrowed | None = None) -> None:
        self.snapshot = snapshot
        self.sight: Sight | None = snapshot.view(view, narrowed) if view is not None else None
        self.patterns: dict[tuple[bytes, bytes, bytes], _Pattern] = {}
        # the same by the length of the whole question, where that and all bytes around the value are known already
        self.frames: dict[int, list[_Frame]] = {}
        self.frame_count = 0

    def forget(self) -> None:
        self.patterns.clear()
        self.frames.clear()
        self.frame_count = 0

    def holders(self) -> Holders[Entry] | None:
        """See :class:`_Plan`: what a host sees of an entry has fewer values than the index says."""
        return self.snapshot.holders if self.sight is None else None

    def visible(self, entry: Entry) -> bool:
        return self.sight is None or self.sight.visible(entry)

    def find(self, text: str) -> Entry:
        """
        The visible entry that a search or comparison is based at.

        :raise ValueError: the text is no DN.
        :raise NoSuchObject: there is none; it names the nearest one above that is visible, as if the others were not.
        """
        snapshot = self.snapshot
        above: Entry | None
        try:
            found = snapshot.find(text)
            if self.visible(found):
                return found
            above = snapshot.by_dn(found.parent)
        except NoSuchObject as problem:
            above = snapshot.find(problem.matched_dn) if problem.matched_dn else None
        while above is not None and not self.visible(above):
            above = snapshot.by_dn(above.parent)
        raise NoSuchObject("" if above is None else above.draft.dn)

    def frame(self, op: bytes, cut: tuple[int, int, int, int, int, int], pattern: _Pattern) -> bool:
        """Recognise questions like this one, with a value of the same length, by two comparisons; unless it is full."""
        if self.frame_count >= MAX_FRAMES:
            self.frames.clear()
            self.frame_count = 0
        alike = self.frames.setdefault(len(op), [])
        if len(alike) >= FRAMES_ALIKE:
            return False
        start, stop = cut[3] + 2, cut[4]
        alike.append((op[:start], pattern.tail, start, stop, pattern))
        self.frame_count += 1
        return True


# --- scans -----------------------------------------------------------------------------------------------------------


class Scan:
    """
    An answer that is made in steps.

    :ivar reply_code: the result code, once :attr:`done`.
    :ivar count: entries given so far.
    :ivar base: see :class:`Reply`.
    """

    def __init__(
        self,
        lane: _Lane,
        request: SearchRequest,
        plan: _Plan,
        base: Entry,
        base_name: str,
        candidates: Callable[[], Sequence[Entry] | None],
        length: int,
        spent: Callable[[], int],
        spend: Callable[[int], None],
        monotonic: Callable[[], float],
    ) -> None:
        self._finished = False
        self.reply_code = SUCCESS
        self.count = 0
        self.base = base_name
        self._lane = lane
        self._scope = request.scope
        self._size_limit = request.size_limit
        self._plan = plan
        self._monotonic = monotonic
        self._spent, self._spend = spent, spend
        self._deadline = monotonic() + request.time_limit if request.time_limit else None
        self._candidates = candidates
        self._base = base
        size = terms(request.filter)
        # whether what comes before the first entry is more than one step
        self.large = length > LARGE_BYTES or size > LARGE_TERMS
        plan.slow = length > SLOW_BYTES
        self._together = max(1, min(_TOGETHER, _TERMS_TOGETHER // size))
        self._entries = self._matches()
        self._unread: list[bytes] = []

    @property
    def done(self) -> bool:
        """Whether there is nothing more."""
        return self._finished and not self._unread

    def step(self, limit: int | None = None) -> list[bytes]:
        """
        More SearchResultEntries: what about 2 ms of work yield, 256 KiB at most, or ``limit`` entries.

        It may be none although there are more to come; :attr:`done` tells. Whether there is more behind the last one
        is known only when it was looked for: a page that is full may be followed by an empty one.
        """
        if self._unread:
            return self._take(limit)
        found: list[bytes] = []
        if self._finished:
            return found
        until = self._monotonic() + STEP_SECONDS
        if self._deadline is not None:
            if self._monotonic() >= self._deadline:
                return self._end(found, TIME_LIMIT_EXCEEDED)
            until = min(until, self._deadline)
        size_limit = self._size_limit
        size = 0
        for some in self._entries:
            if some:
                found += some
                self.count += len(some)
                if size_limit and self.count > size_limit:
                    del found[size_limit - self.count :]
                    self.count = size_limit
                    self._end(found, SIZE_LIMIT_EXCEEDED)
                    break
                size += sum(map(len, some))
                if size >= STEP_BYTES or (limit is not None and len(found) >= limit):
                    break
            if self._monotonic() >= until:
                break
        else:
            self._end(found, SUCCESS)
        if limit is not None and len(found) > limit:
            self.unread(found)
            return self._take(limit)
        return found

    def _end(self, found: list[bytes], code: int) -> list[bytes]:
        self._finished = True
        self.reply_code = code
        self._entries = iter(())
        return found

    def unread(self, ops: list[bytes]) -> None:
        """Put back what the next steps give first."""
        self._unread = ops + self._unread

    def _take(self, limit: int | None) -> list[bytes]:
        taken = self._unread if limit is None else self._unread[:limit]
        self._unread = self._unread[len(taken) :]
        return taken

    def done_op(self) -> bytes:
        """The SearchResultDone, once :attr:`done`."""
        return _DONE if self.reply_code == SUCCESS else ber.search_done(self.reply_code)

    def _matches(self) -> Iterator[list[bytes]]:
        """Encoded matches, after each few entries that were looked at."""
        plan, sight, together = self._plan, self._lane.sight, self._together
        candidates = self._candidates()
        # with it goes the request as it was sent
        del self._candidates
        if plan.slow:
            yield []
        if candidates is not None:
            yield from self._tried(candidates, self._lane.snapshot.in_scope)
            return
        kept = plan.selection.encoded
        for block in self._lane.snapshot.blocks(self._base, self._scope):
            entries = block.entries
            if sight is not None:
                yield from self._tried(entries, None)
                continue
            yield from plan.learning(block.shape)
            verdict, encode, weigh = plan.of(block.shape)
            if verdict is True:
                for at in range(0, len(entries), together):
                    yield [encode(entry) for entry in entries[at : at + together]]
            elif callable(verdict):
                # few rules, many hosts: worth keeping; many people, few questions for all of them: not
                keep = len(entries) <= MAX_KEPT
                for at in range(0, len(entries), together):
                    matches = yield from self._tested(weigh, verdict, entries[at : at + together])
                    if keep:
                        yield [kept.get(entry) or self._keep(entry, encode) for entry in matches]
                    else:
                        yield list(map(encode, matches))
            else:
                yield []

    def _tested(
        self, weigh: Weigh | None, test: Test[Entry], entries: Sequence[Entry]
    ) -> Generator[list[bytes], None, list[Entry]]:
        """Those that pass."""
        if weigh is None or sum(map(weigh, entries)) <= LIGHT_BYTES:
            return [entry for entry in entries if test(entry) is True]
        found = []
        for entry in entries:
            if weigh(entry) <= LIGHT_BYTES:
                verdict = test(entry)
                yield []
            else:
                verdict = yield from _in_steps(self._plan.test(entry))
            if verdict is True:
                found.append(entry)
        return found

    def _tried(
        self, entries: Sequence[Entry], in_scope: Callable[[Entry, Entry, int], bool] | None
    ) -> Iterator[list[bytes]]:
        """
        Those that match, as they are seen, of entries that are of any shape, or not seen by everybody.

        :param in_scope: None: all are.
        """
        plan, sight = self._plan, self._lane.sight
        found: list[bytes] = []
        weight = 0
        for number, entry in enumerate(entries, 1):
            if in_scope is None or in_scope(entry, self._base, self._scope):
                seen: Entry | None = entry
                if sight is not None:
                    own = sight.weight(entry)
                    weight += own
                    if own <= NARROWED_BYTES:
                        seen = sight.see(entry)
                    else:
                        seen = yield from _in_steps(sight.looking(entry))
                if seen is not None:
                    if seen.shape not in plan.known:
                        yield from plan.learning(seen.shape)
                    verdict, encode, weigh = plan.known[seen.shape]
                    if callable(verdict):
                        own = 0 if weigh is None else weigh(seen)
                        weight += own
                        verdict = verdict(seen) if own <= LIGHT_BYTES else (yield from _in_steps(plan.test(seen)))
                    if verdict is True:
                        encoded = encode(seen)
                        found.append(encoded)
                        weight += len(encoded) // 8
            if weight > LIGHT_BYTES or number % self._together == 0:
                yield found
                found, weight = [], 0
        yield found

    def _keep(self, entry: Entry, encode: Encode) -> bytes:
        encoded = encode(entry)
        if self._spent() < MAX_ENCODED_BYTES:
            self._plan.selection.encoded[entry] = encoded
            self._spend(len(encoded))
        return encoded


def _in_steps(steps: Generator[None, None, T]) -> Generator[list[bytes], None, T]:
    """No entries after each step."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        yield []


class Comparison:
    """
    A Compare that takes more than one step: a search of one entry.

    :ivar code: the result code, once :attr:`done`.
    """

    def __init__(self, lane: _Lane, entry: Entry, filter: Equal) -> None:
        self.code = SUCCESS
        self.done = False
        self._steps = self._compare(lane, entry, filter)

    def step(self) -> None:
        """A millisecond of work at most."""
        try:
            next(self._steps)
        except StopIteration as end:
            self.code, self.done = end.value, True

    @staticmethod
    def _compare(lane: _Lane, entry: Entry, filter: Equal) -> Generator[None, None, int]:
        seen: Entry | None = entry
        if lane.sight is not None:
            seen = yield from lane.sight.looking(entry)
        if seen is None:
            return NO_SUCH_OBJECT
        if not any(seen.shape.position(type_) is not None for type_ in schema.known(filter.attribute) or ()):
            return NO_SUCH_ATTRIBUTE
        verdict = stepped(filter, seen.shape, lane.holders())
        if callable(verdict):
            verdict = yield from verdict(seen)
        if verdict is None:
            return INVALID_ATTRIBUTE_SYNTAX
        return COMPARE_TRUE if verdict else COMPARE_FALSE


# --- the searcher ----------------------------------------------------------------------------------------------------


class Searcher:
    """
    Answers SearchRequests from whatever snapshot is current.

    :ivar memo_hits: searches answered from the memo.
    :ivar memo_bytes_used: what the memo holds, at most ``memo_bytes``.
    :param directory: the current snapshot; None: there is none yet, and searches are answered with busy.
    :param memo_bytes: bound of the memo; 0: no memo.
    :param monotonic: seconds, for the length of steps and for time limits.
    :param size_limit: most entries of one answer, whatever a client asks for; 0: as many as there are.
    """

    def __init__(
        self,
        directory: Callable[[], Snapshot | None],
        memo_bytes: int,
        monotonic: Callable[[], float],
        size_limit: int = 0,
    ) -> None:
        self._directory = directory
        self._memo_bytes = memo_bytes
        self._size_limit = size_limit
        self._monotonic = monotonic
        self.memo_hits = 0
        self._snapshot: Snapshot | None = None
        # dictionaries that nobody looks into any more
        self._freeing: list[dict[Any, Any]] = []
        self._begin(None)

    def _reset(self, snapshot: Snapshot | None) -> None:
        self._freeing += (self._young, self._old, *self._narrowed.values())
        self._freeing += (selection.encoded for selection in self._selections.values())
        self._freeing = [each for each in self._freeing if each]
        self._begin(snapshot)

    def _begin(self, snapshot: Snapshot | None) -> None:
        self._snapshot = snapshot
        # the memo in two halves: what is asked again moves to the young one, the old one is dropped as a whole
        self._young: dict[object, Reply] = {}
        self._old: dict[object, Reply] = {}
        self._young_bytes = self._old_bytes = 0
        self._encoded_bytes = 0
        # by what is selected, and the same by the bytes of short lists
        self._selections: dict[object, Selection] = {}
        self._listed: dict[tuple[tuple[bytes, ...], bool], Selection] = {}
        self._pattern_bytes = 0
        # what hosts with the same people see is the same but for rules of other hosts
        self._narrowed: OrderedDict[frozenset[str], Narrowed] = OrderedDict()
        self._hosts: OrderedDict[View, _Lane] = OrderedDict()
        self._everybody: _Lane | None = _Lane(snapshot, None) if snapshot is not None else None

    def renew(self) -> None:
        """
        Let go of everything that belongs to a snapshot which is not current any more.

        The next search would do so too; to be called after a swap, so that :meth:`Snapshot.retire` frees in steps what
        would else be freed at once with that search. :meth:`free` is to be called next.
        """
        snapshot = self._directory()
        if snapshot is not self._snapshot:
            self._reset(snapshot)

    def free(self) -> bool:
        """
        Free a part of what was let go of, in a millisecond; whether there is more.

        A memo of a gigabyte, freed at once, would hold up everything else.
        """
        self._free(FREED_AT_ONCE)
        return bool(self._freeing)

    def _free(self, count: int) -> None:
        while count > 0 and self._freeing:
            last = self._freeing[-1]
            if last:
                last.popitem()
                count -= 1
            else:
                self._freeing.pop()

    @property
    def memo_bytes_used(self) -> int:
        return self._young_bytes + self._old_bytes

    # --- the three ways ---

    def answer(self, op: bytes, view: View | None = None) -> Reply | Scan:
        """
        Answer a SearchRequest protocolOp (tag and length included) whose base is in the tree.

        :raise identree.ldap.ber.BerError: these bytes are no SearchRequest.
        """
        snapshot = self._directory()
        if snapshot is not self._snapshot:
            self._reset(snapshot)
        key: object = op if view is None else (view, op)
        reply = self._young.get(key)
        if reply is not None:
            self.memo_hits += 1
            return reply
        if self._old:
            reply = self._old.get(key)
            if reply is not None:
                self.memo_hits += 1
                self._remember(key, op, reply)
                return reply
        if snapshot is None:
            return failure(BUSY, "the directory is not loaded yet")
        lane = self._lane(snapshot, view)
        reply = self._by_pattern(lane, op)
        if reply is not None:
            if reply.count:
                self._remember(key, op, reply)
            return reply
        return self._by_plan(lane, key, op)

    def scan(self, op: bytes, view: View | None = None) -> Reply | Scan:
        """
        The same in steps from the first entry on, without memo and patterns; a Reply only if there is nothing to step.

        The scan stays with the snapshot that it began with.

        :raise identree.ldap.ber.BerError: these bytes are no SearchRequest.
        """
        snapshot = self._directory()
        if snapshot is not self._snapshot:
            self._reset(snapshot)
        if snapshot is None:
            return failure(BUSY, "the directory is not loaded yet")
        prepared = self._prepare(self._lane(snapshot, view), op)
        return prepared if isinstance(prepared, Reply) else prepared[0]

    def compare(
        self, dn_text: bytes, attribute: bytes, value: bytes, view: View | None = None
    ) -> tuple[int, str] | Comparison:
        """
        A Compare (RFC 4511 section 4.10): its result code and matchedDN, or the steps that lead to a result code.
        """
        snapshot = self._directory()
        if snapshot is not self._snapshot:
            self._reset(snapshot)
        if snapshot is None:
            return BUSY, ""
        lane = self._lane(snapshot, view)
        try:
            entry = lane.find(_base(dn_text))
        except NoSuchObject as problem:
            return NO_SUCH_OBJECT, problem.matched_dn
        except ValueError:
            return INVALID_DN_SYNTAX, ""
        name = attribute.decode("utf-8", "replace")
        if schema.known(name) is None:
            return UNDEFINED_ATTRIBUTE_TYPE, ""
        if len(value) > MAX_DEAR_BYTES and dear(value):
            return ADMIN_LIMIT_EXCEEDED, ""
        comparison = Comparison(lane, entry, Equal(name, value))
        if sum(map(len, entry.pieces)) > LIGHT_BYTES:
            return comparison
        while not comparison.done:
            comparison.step()
        return comparison.code, ""

    # --- remembering ---

    def _lane(self, snapshot: Snapshot, view: View | None) -> _Lane:
        if view is None:
            assert self._everybody is not None
            return self._everybody
        lane = self._hosts.get(view)
        if lane is None:
            lane = self._hosts[view] = _Lane(snapshot, view, self._narrowing(view))
            if len(self._hosts) > MAX_LANES:
                self._hosts.popitem(last=False)
        else:
            self._hosts.move_to_end(view)
        return lane

    def _remember(self, key: object, op: bytes, reply: Reply) -> None:
        if reply.count == 1:
            cost = len(op) + len(reply.entries[0]) + _MEMO_OVERHEAD
        else:
            # the answer is kept twice: as it is, and as it stands between the message ids
            cost = len(op) + 2 * reply.size + _MEMO_OVERHEAD
        half = self._memo_bytes // 2
        if cost > half // 4:
            return
        if self._freeing:
            self._free(_FREED_BESIDE)
        if self._young_bytes + cost > half:
            if self._old:
                self._freeing.append(self._old)
            self._old, self._old_bytes = self._young, self._young_bytes
            self._young, self._young_bytes = {}, 0
        self._young[key] = reply
        self._young_bytes += cost

    def _narrowing(self, view: View) -> Narrowed:
        """What hosts with the same people share."""
        if view.people is None:
            return {}
        found = self._narrowed.get(view.people)
        if found is None:
            found = self._narrowed[view.people] = {}
            if len(self._narrowed) > MAX_LANES:
                self._narrowed.popitem(last=False)
        else:
            self._narrowed.move_to_end(view.people)
        return found

    def _selection(self, request: SearchRequest) -> Selection:
        listed = (request.attributes, request.types_only)
        found = self._listed.get(listed)
        if found is None:
            made = Selection(request.attributes, request.types_only)
            found = self._selections.get(made.key)
            if found is None:
                if len(self._selections) >= MAX_SELECTIONS:
                    self._freeing += (each.encoded for each in self._selections.values() if each.encoded)
                    self._selections.clear()
                    self._listed.clear()
                    self._encoded_bytes = 0
                found = self._selections[made.key] = made
            if sum(map(len, request.attributes)) <= MAX_LISTED_BYTES:
                if len(self._listed) >= MAX_SELECTIONS:
                    self._listed.clear()
                self._listed[listed] = found
        return found

    def _kept(self, size: int) -> None:
        """Count what a kind of questions keeps; too much of it, and all kinds are learned anew."""
        self._pattern_bytes += size
        if self._pattern_bytes > PATTERNS_BYTES:
            self._pattern_bytes = size
            for lane in (self._everybody, *self._hosts.values()):
                if lane is not None:
                    lane.forget()

    def _spent(self) -> int:
        return self._encoded_bytes

    def _spend(self, size: int) -> None:
        self._encoded_bytes += size

    # --- by pattern ---

    def _by_pattern(self, lane: _Lane, op: bytes) -> Reply | None:
        """
        The answer to a question of a known kind; None: it is of none, and nothing is said about it.

        Only two lengths and the equality itself are read here. Everything else is compared with the bytes of a question
        that was read completely, so nothing malformed is ever taken for a known one.
        """
        for head, tail, start, stop, known in lane.frames.get(len(op), ()):
            if op.startswith(head) and op.endswith(tail):
                pattern, value = known, op[start:stop]
                break
        else:
            cut = _cut(op)
            if cut is None:
                return None
            found = lane.patterns.get((op[cut[0] : cut[1]], op[cut[2] : cut[3]], op[cut[4] :]))
            if found is None or found.after != cut[5]:
                return None
            pattern, value = found, op[cut[3] + 2 : cut[4]]
            if lane.frame(op, cut, pattern):
                self._kept(cut[3])
        key = pattern.normalise(value)
        if key is None:
            return pattern.empty
        hit = pattern.index.get(key)
        if hit is None:
            return pattern.empty
        if isinstance(hit, Entry):
            if lane.sight is None and pattern.parent == hit.parent:
                # nearly always: somebody right below the base
                verdict, encode, weigh = pattern.known.get(hit.shape) or pattern.plan.of(hit.shape)
                if weigh is not None and weigh(hit) > LIGHT_BYTES:
                    return None
                if verdict is True or (callable(verdict) and verdict(hit) is True):
                    return Reply((encode(hit),), _DONE, SUCCESS, pattern.empty.base)
                return pattern.empty
            hit = (hit,)
        # many, or not selective at all: that is to be done in steps
        if not 0 < len(hit) <= MAX_AT_ONCE:
            return None
        entries: list[bytes] = []
        limit, sight, size = pattern.size_limit, lane.sight, 0
        plan, known_ways, any_scope, base, parent = (
            pattern.plan,
            pattern.known,
            pattern.any_scope,
            pattern.base,
            pattern.parent,
        )
        for entry in hit:
            if not (
                any_scope
                or (entry.parent == parent and entry is not base)
                or lane.snapshot.in_scope(entry, base, pattern.scope)
            ):
                continue
            if sight is not None:
                own = sight.weight(entry)
                size += 16 * own
                if own > NARROWED_BYTES or size > STEP_BYTES:
                    return None
                narrowed = sight.see(entry)
                if narrowed is None:
                    continue
                entry = narrowed
            verdict, encode, weigh = known_ways.get(entry.shape) or plan.of(entry.shape)
            if weigh is not None:
                size += 8 * weigh(entry)
                if size > STEP_BYTES:
                    return None
            if verdict is True or (callable(verdict) and verdict(entry) is True):
                if limit and len(entries) == limit:
                    code = SIZE_LIMIT_EXCEEDED
                    return Reply(entries, ber.search_done(code), code, pattern.empty.base)
                encoded = encode(entry)
                size += len(encoded)
                entries.append(encoded)
            if size > STEP_BYTES:
                return None
        return Reply(entries, _DONE, SUCCESS, pattern.empty.base) if entries else pattern.empty

    def _learn(self, lane: _Lane, op: bytes, request: SearchRequest, base: Entry, base_name: str) -> None:
        """Take a question that was just answered as the first of its kind, if it is of a kind that has patterns."""
        # a kind of its own for each base would be no kind: only where others are below
        if request.scope == BASE or not base.shape.key[3]:
            return
        if len(op) > MAX_PATTERN_BYTES:
            return
        cut = _cut(op)
        if cut is None:
            return
        filter = request.filter
        rest: Filter
        if isinstance(filter, And) and filter.parts and isinstance(filter.parts[0], Equal):
            first, rest = filter.parts[0], And(filter.parts[1:])
        elif isinstance(filter, Equal):
            first, rest = filter, And(())
        else:
            return
        types = schema.known(first.attribute)
        if types is None or len(types) != 1:
            return
        index = lane.snapshot.index(types[0])
        if index is None:
            return
        if lane.sight is not None and types[0].name in NARROWED:
            # the index also has values that the host does not see
            return
        size = terms(filter)
        if size > MAX_PATTERN_TERMS:
            return
        if len(lane.patterns) >= MAX_PATTERNS:
            lane.forget()
        self._kept(2 * len(op) + size * _TERM_BYTES)
        tail = op[cut[4] :]
        lane.patterns[(op[cut[0] : cut[1]], op[cut[2] : cut[3]], tail)] = _Pattern(
            index=index,
            type_=types[0],
            base=base,
            any_scope=base.normal == lane.snapshot.base and request.scope == SUBTREE,
            request=request,
            after=cut[5],
            tail=tail,
            plan=_Plan(rest, self._selection(request), lane.holders()),
            empty=Reply((), _DONE, SUCCESS, base_name),
        )

    # --- by plan ---

    def _by_plan(self, lane: _Lane, key: object, op: bytes) -> Reply | Scan:
        prepared = self._prepare(lane, op)
        if isinstance(prepared, Reply):
            self._remember(key, op, prepared)
            return prepared
        scan, request, base = prepared
        if scan.large:
            return scan
        found = scan.step()
        if not scan.done:
            scan.unread(found)
            return scan
        reply = Reply(found, scan.done_op(), scan.reply_code, scan.base)
        if scan.reply_code != TIME_LIMIT_EXCEEDED:
            self._remember(key, op, reply)
        self._learn(lane, op, request, base, scan.base)
        return reply

    def _prepare(self, lane: _Lane, op: bytes) -> Reply | tuple[Scan, SearchRequest, Entry]:
        snapshot = lane.snapshot
        try:
            request = ber.decode_search(op)
        except FilterTooLarge as problem:
            return failure(ADMIN_LIMIT_EXCEEDED, str(problem))
        if self._size_limit and not 0 < request.size_limit <= self._size_limit:
            request = replace(request, size_limit=self._size_limit)
        try:
            text = _base(request.base)
            base_name = branch(dn.normal(text), snapshot.base)
        except ValueError:
            return failure(INVALID_DN_SYNTAX, "the base is no DN")
        try:
            base = lane.find(text)
        except NoSuchObject as problem:
            return failure(NO_SUCH_OBJECT, "", problem.matched_dn, base_name)
        # what is small cannot be so dear: a look at every term is spared
        if len(op) > MAX_DEAR_BYTES and _too_dear(request.filter):
            return failure(ADMIN_LIMIT_EXCEEDED, _DEAR, "", base_name)
        plan = _Plan(request.filter, self._selection(request), lane.holders())

        def candidates() -> Sequence[Entry] | None:
            if request.scope == BASE:
                return (base,)
            return snapshot.candidates(request.filter, by_change=lane.sight is None)

        scan = Scan(
            lane, request, plan, base, base_name, candidates, len(op), self._spent, self._spend, self._monotonic
        )
        return scan, request, base


def _base(name: bytes) -> str:
    """
    The text of a base DN.

    :raise ValueError: it is none.
    """
    if len(name) > MAX_BASE_BYTES and not name.isascii():
        raise ValueError("the DN is too long")
    return name.decode()


def _cut(op: bytes) -> tuple[int, int, int, int, int, int] | None:
    """
    Where a search that begins with an equality can be cut: the fields before its filter (from, to), the attribute
    (from, to), the end of the value (whose element begins where the attribute ends), and the bytes that the conjunction
    still has behind it, -1 if there is no conjunction. None: it cannot be.
    """
    try:
        if op[0] != ber.SEARCH_REQUEST:
            return None
        size = op[1]
        at = 2
        if size >= 0x80:
            if size == 0x81:
                size, at = op[2], 3
            elif size == 0x82:
                size, at = op[2] << 8 | op[3], 4
            else:
                return None
        end = len(op)
        if at + size != end or op[at + 1] >= 0x80:
            return None
        # the base; scope and derefAliases, three bytes each; both limits; typesOnly, three bytes
        filter_at = at + op[at + 1] + 8
        filter_at += op[filter_at + 1] + 2
        filter_at += op[filter_at + 1] + 5
        equal_at = filter_at
        and_end = -1
        if op[filter_at] == 0xA0:
            size = op[filter_at + 1]
            equal_at += 2
            if size >= 0x80:
                if size == 0x81:
                    size = op[equal_at]
                    equal_at += 1
                elif size == 0x82:
                    size = op[equal_at] << 8 | op[equal_at + 1]
                    equal_at += 2
                else:
                    return None
            and_end = equal_at + size
        if op[equal_at] != 0xA3 or op[equal_at + 2] != 4:
            return None
        value_at = equal_at + 4 + op[equal_at + 3]
        value_end = value_at + 2 + op[value_at + 1]
        # lengths of 128 and more do not add up here
        if op[value_at] != 4 or op[equal_at + 1] >= 0x80 or equal_at + 2 + op[equal_at + 1] != value_end:
            return None
        if value_end > end:
            return None
        if and_end < 0:
            return at, filter_at, equal_at + 4, value_at, value_end, -1
        if and_end < value_end or and_end > end:
            return None
        return at, filter_at, equal_at + 4, value_at, value_end, and_end - value_end
    except IndexError:
        return None


def branch(normal: str, base: str) -> str:
    """The part of the tree that a search is based in, as the metric names it (spec/ldap section 10)."""
    for name in ("people", "groups", "sudoers"):
        container = f"ou={name},{base}"
        if normal == container or normal.endswith("," + container):
            return name
    return "root"
