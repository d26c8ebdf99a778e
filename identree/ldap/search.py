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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from operator import itemgetter

from identree.directory import dn, schema
from identree.directory.encoding import (
    ENTRY_HEADERS,
    SEQUENCE_HEADERS,
    TABLED_LENGTHS,
    length,
    partial_attribute,
    sequence_header,
)
from identree.directory.filters import And, Equal, Filter, Test, Verdict, compile, terms
from identree.directory.schema import AttributeType
from identree.directory.snapshot import (
    BASE,
    MANY,
    NARROWED,
    SUBTREE,
    Block,
    Entry,
    Index,
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
# Entries between two looks at the clock. An entry costs a few microseconds, and more with a filter of many terms.
_TOGETHER = 32
# Bytes of answers that one step makes at most, so that a slow reader never has more waiting for it.
STEP_BYTES = 256 * 1024
# What a memorised reply costs beside its bytes: objects and its place in a dictionary.
_MEMO_OVERHEAD = 500
# Kinds of questions, attribute lists and hosts' views that are remembered at a time. sssd has about ten kinds.
MAX_PATTERNS = 512
MAX_SELECTIONS = 512
MAX_LANES = 32
# A filter is asked again with other values for few entries only: blocks up to this size have their encodings kept.
MAX_KEPT = 2000
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
        # what stands between the message ids, and the length of the encoded id that it was made for
        self._parts: tuple[int, list[bytes]] | None = None

    @property
    def size(self) -> int:
        """Bytes of the protocolOps."""
        return sum(map(len, self.entries)) + len(self.done)

    def render(self, message_id: int) -> bytes:
        """All messages of the answer, without controls."""
        encoded = ber.message_id(message_id)
        extra = len(encoded)
        done = self.done
        last = sequence_header(len(done) + extra)
        count = self.count
        if not count:
            return b"".join((last, encoded, done))
        if count == 1:
            [entry] = self.entries
            size = len(entry) + extra
            header = SEQUENCE_HEADERS[size] if size < TABLED_LENGTHS else b"\x30" + length(size)
            return b"".join((header, encoded, entry, last, encoded, done))
        parts = self._parts
        if parts is None or parts[0] != extra:
            headers = [sequence_header(len(entry) + extra) for entry in self.entries]
            headers.append(last)
            between = [headers[0]]
            between += [entry + header for entry, header in zip(self.entries, headers[1:], strict=True)]
            between.append(done)
            parts = self._parts = (extra, between)
        return encoded.join(parts[1])


def failure(code: int, text: str = "", matched: str = "", base: str = "root") -> Reply:
    """An answer without entries."""
    return Reply((), ber.search_done(code, matched.encode(), text.encode()), code, base)


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
    verdict = compile(request.filter, entry.shape)
    if callable(verdict):
        verdict = verdict(entry)
    if not verdict:
        return Reply(())
    return Reply((Selection(request.attributes, request.types_only).encoder(entry.shape)(entry),))


# --- plans -----------------------------------------------------------------------------------------------------------


class _Plan:
    """A filter and a selection for every shape that they meet."""

    __slots__ = ("_filter", "_known", "selection")

    def __init__(self, filter: Filter, selection: Selection) -> None:
        self._filter = filter
        self.selection = selection
        self._known: dict[Shape, tuple[Verdict | Test[Entry], Encode]] = {}

    def of(self, shape: Shape) -> tuple[Verdict | Test[Entry], Encode]:
        found = self._known.get(shape)
        if found is None:
            found = self._known[shape] = (compile(self._filter, shape), self.selection.encoder(shape))
        return found


class _Pattern:
    """
    Questions of one kind: an indexed equality, in conjunction with a rest that is always the same.

    :ivar after: bytes of the conjunction behind the equality; -1: the equality is the whole filter.
    """

    __slots__ = ("after", "any_scope", "base", "empty", "index", "normalise", "parent", "plan", "scope", "size_limit")

    def __init__(
        self,
        *,
        index: Index[bytes],
        type_: AttributeType,
        base: Entry,
        any_scope: bool,
        request: SearchRequest,
        after: int,
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
        self.plan = plan
        self.empty = empty


class _Lane:
    """What was learned about one snapshot, as all see it or as one host does."""

    def __init__(self, snapshot: Snapshot, view: View | None) -> None:
        self.snapshot = snapshot
        self.sight: Sight | None = snapshot.view(view) if view is not None else None
        self.patterns: dict[tuple[bytes, bytes, bytes], _Pattern] = {}


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
        candidates: Sequence[Entry] | None,
        spent: Callable[[], int],
        spend: Callable[[int], None],
        monotonic: Callable[[], float],
    ) -> None:
        self._finished = False
        self.reply_code = SUCCESS
        self.count = 0
        self.base = base_name
        self._lane = lane
        self._request = request
        self._plan = plan
        self._monotonic = monotonic
        self._spent, self._spend = spent, spend
        self._deadline = monotonic() + request.time_limit if request.time_limit else None
        if candidates is None:
            self._blocks = lane.snapshot.blocks(base, request.scope)
            self._filtered = False
        else:
            self._blocks = iter((Block("", base.shape, tuple(candidates)),))
            self._filtered = True
        self._base = base
        self._together = max(1, min(_TOGETHER, 1024 // terms(request.filter)))
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
        size_limit = self._request.size_limit
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
        kept = plan.selection.encoded
        for block in self._blocks:
            entries = block.entries
            if self._filtered or sight is not None:
                for at in range(0, len(entries), together):
                    tried = map(self._try, entries[at : at + together])
                    yield [encoded for encoded in tried if encoded is not None]
                continue
            verdict, encode = plan.of(block.shape)
            if verdict is True:
                for at in range(0, len(entries), together):
                    yield [encode(entry) for entry in entries[at : at + together]]
            elif callable(verdict):
                test = verdict
                # few rules, many hosts: worth keeping; many people, few questions for all of them: not
                keep = len(entries) <= MAX_KEPT
                for at in range(0, len(entries), together):
                    matches = [entry for entry in entries[at : at + together] if test(entry) is True]
                    if keep:
                        yield [kept.get(entry) or self._keep(entry, encode) for entry in matches]
                    else:
                        yield list(map(encode, matches))
            else:
                yield []

    def _keep(self, entry: Entry, encode: Encode) -> bytes:
        encoded = encode(entry)
        if self._spent() < MAX_ENCODED_BYTES:
            self._plan.selection.encoded[entry] = encoded
            self._spend(len(encoded))
        return encoded

    def _try(self, entry: Entry) -> bytes | None:
        """The entry as it is seen, if it is in the scope and matches."""
        lane = self._lane
        if self._filtered and not lane.snapshot.in_scope(entry, self._base, self._request.scope):
            return None
        if lane.sight is not None:
            seen = lane.sight.see(entry)
            if seen is None:
                return None
            entry = seen
        verdict, encode = self._plan.of(entry.shape)
        if callable(verdict):
            verdict = verdict(entry)
        return encode(entry) if verdict is True else None


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
        self._reset(None)

    def _reset(self, snapshot: Snapshot | None) -> None:
        self._snapshot = snapshot
        # the memo in two halves: what is asked again moves to the young one, the old one is dropped as a whole
        self._young: dict[object, Reply] = {}
        self._old: dict[object, Reply] = {}
        self._young_bytes = self._old_bytes = 0
        self._encoded_bytes = 0
        self._selections: dict[tuple[tuple[bytes, ...], bool], Selection] = {}
        self._hosts: OrderedDict[View, _Lane] = OrderedDict()
        self._everybody: _Lane | None = _Lane(snapshot, None) if snapshot is not None else None

    def renew(self) -> None:
        """
        Let go of everything that belongs to a snapshot which is not current any more.

        The next search would do so too; to be called after a swap, so that :meth:`Snapshot.retire` frees in steps what
        would else be freed at once with that search.
        """
        snapshot = self._directory()
        if snapshot is not self._snapshot:
            self._reset(snapshot)

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
        The same in steps from the first entry on, as for paged results; a Reply only if there is nothing to step.

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

    def compare(self, dn_text: bytes, attribute: bytes, value: bytes, view: View | None = None) -> tuple[int, str]:
        """
        A Compare (RFC 4511 section 4.10): its result code and matchedDN.
        """
        snapshot = self._directory()
        if snapshot is None:
            return BUSY, ""
        try:
            entry = snapshot.find(dn_text.decode())
        except NoSuchObject as problem:
            return NO_SUCH_OBJECT, problem.matched_dn
        except ValueError:
            return INVALID_DN_SYNTAX, ""
        seen = entry if view is None else snapshot.view(view).see(entry)
        if seen is None:
            return NO_SUCH_OBJECT, ""
        name = attribute.decode("utf-8", "replace")
        types = schema.known(name)
        if types is None:
            return UNDEFINED_ATTRIBUTE_TYPE, ""
        if not any(seen.shape.position(type_) is not None for type_ in types):
            return NO_SUCH_ATTRIBUTE, ""
        verdict = compile(Equal(name, value), seen.shape)
        if callable(verdict):
            verdict = verdict(seen)
        if verdict is None:
            return INVALID_ATTRIBUTE_SYNTAX, ""
        return (COMPARE_TRUE if verdict else COMPARE_FALSE), ""

    # --- remembering ---

    def _lane(self, snapshot: Snapshot, view: View | None) -> _Lane:
        if view is None:
            assert self._everybody is not None
            return self._everybody
        lane = self._hosts.get(view)
        if lane is None:
            lane = self._hosts[view] = _Lane(snapshot, view)
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
        if self._young_bytes + cost > half:
            self._old, self._old_bytes = self._young, self._young_bytes
            self._young, self._young_bytes = {}, 0
        self._young[key] = reply
        self._young_bytes += cost

    def _selection(self, request: SearchRequest) -> Selection:
        key = (request.attributes, request.types_only)
        found = self._selections.get(key)
        if found is None:
            if len(self._selections) >= MAX_SELECTIONS:
                self._selections.clear()
                self._encoded_bytes = 0
            found = self._selections[key] = Selection(request.attributes, request.types_only)
        return found

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
        cut = _cut(op)
        if cut is None:
            return None
        pattern = lane.patterns.get((op[cut[0] : cut[1]], op[cut[2] : cut[3]], op[cut[4] :]))
        if pattern is None or pattern.after != cut[5]:
            return None
        key = pattern.normalise(op[cut[3] + 2 : cut[4]])
        if key is None:
            return pattern.empty
        hit = pattern.index.get(key)
        if hit is None:
            return pattern.empty
        if isinstance(hit, Entry):
            encoded = self._match(lane, pattern, hit)
            return pattern.empty if encoded is None else Reply((encoded,), _DONE, SUCCESS, pattern.empty.base)
        if hit is MANY:
            return None
        found: list[bytes] = []
        limit = pattern.size_limit
        for entry in hit:
            encoded = self._match(lane, pattern, entry)
            if encoded is not None:
                if limit and len(found) == limit:
                    code = SIZE_LIMIT_EXCEEDED
                    return Reply(found, ber.search_done(code), code, pattern.empty.base)
                found.append(encoded)
        return Reply(found, _DONE, SUCCESS, pattern.empty.base)

    def _match(self, lane: _Lane, pattern: _Pattern, entry: Entry) -> bytes | None:
        if not (
            pattern.any_scope
            or (entry.parent == pattern.parent and entry is not pattern.base)
            or lane.snapshot.in_scope(entry, pattern.base, pattern.scope)
        ):
            return None
        if lane.sight is not None:
            seen = lane.sight.see(entry)
            if seen is None:
                return None
            entry = seen
        verdict, encode = pattern.plan.of(entry.shape)
        if verdict is True or (callable(verdict) and verdict(entry) is True):
            return encode(entry)
        return None

    def _learn(self, lane: _Lane, op: bytes, request: SearchRequest, base: Entry, base_name: str) -> None:
        """Take a question that was just answered as the first of its kind, if it is of a kind that has patterns."""
        # a kind of its own for each base would be no kind: only where others are below
        if request.scope == BASE or not base.shape.key[3]:
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
        selection = self._selection(request)
        if lane.sight is not None and types[0].name in NARROWED:
            # the index also has values that the host does not see
            return
        if len(lane.patterns) >= MAX_PATTERNS:
            lane.patterns.clear()
        lane.patterns[(op[cut[0] : cut[1]], op[cut[2] : cut[3]], op[cut[4] :])] = _Pattern(
            index=index,
            type_=types[0],
            base=base,
            any_scope=base.normal == lane.snapshot.base and request.scope == SUBTREE,
            request=request,
            after=cut[5],
            plan=_Plan(rest, selection),
            empty=Reply((), _DONE, SUCCESS, base_name),
        )

    # --- by plan ---

    def _by_plan(self, lane: _Lane, key: object, op: bytes) -> Reply | Scan:
        prepared = self._prepare(lane, op)
        if isinstance(prepared, Reply):
            self._remember(key, op, prepared)
            return prepared
        scan, request, base = prepared
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
            text = request.base.decode()
            base_name = branch(dn.normal(text), snapshot.base)
        except ValueError:
            return failure(INVALID_DN_SYNTAX, "the base is no DN")
        try:
            base = snapshot.find(text)
        except NoSuchObject as problem:
            return failure(NO_SUCH_OBJECT, "", problem.matched_dn, base_name)
        sight = lane.sight
        if sight is not None and sight.see(base) is None:
            above = snapshot.by_dn(base.parent)
            return failure(NO_SUCH_OBJECT, "", above.draft.dn if above is not None else "", base_name)
        plan = _Plan(request.filter, self._selection(request))
        candidates: Sequence[Entry] | None
        if request.scope == BASE:
            candidates = (base,)
        else:
            candidates = snapshot.candidates(request.filter, by_change=sight is None)
        scan = Scan(lane, request, plan, base, base_name, candidates, self._spent, self._spend, self._monotonic)
        return scan, request, base


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
