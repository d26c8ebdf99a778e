"""
``identree audit verify FILE...``: check that audit logs hold unbroken chains, and that what signed checkpoints vouch
for is still there (spec/audit-and-metrics sections 1 to 3 and 15.2).

The files, JSON logs or exports (identree.sinks.exports), are streamed. A stretch of records that follow each other
takes the memory of one entry, whatever its length, and grows at both ends; so files may be given in any order, run
backwards as searches do, overlap, and mix the chains of several replicas. Only the last record of a chain cannot be
checked against a later one: its hash is printed, to be compared with a copy kept elsewhere.

A chain alone is no proof against somebody who rewrites the log and computes all hashes anew. Checkpoints are: those in
the logs bear signatures, and those that were kept elsewhere say what the logs must hold.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple, TextIO

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from identree.core import checkpoints, durations
from identree.core.audit import Link, Malformed, read, timestamp
from identree.core.checkpoints import KIND, BadStatement, Statement
from identree.sinks.exports import Export, Unreadable

VERIFIED, BAD, UNREADABLE = 0, 1, 2
# Problems that are printed; all are counted.
MAX_PRINTED = 20
# Lines that are no records, of which the place is remembered; beyond it they are only counted.
MAX_REMEMBERED = 10_000
# Stretches at a time, at some 800 bytes each. Files that follow the chains, forwards or backwards, need a handful.
MAX_STRETCHES = 250_000
# Checkpoints that must be looked up in the logs, at some 500 bytes each: more than twenty years of hourly ones.
MAX_CHECKPOINTS = 200_000
# Numbers of an overlap that are compared in one reading.
COMPARED_AT_ONCE = 250_000
# A public key in PEM is a hundred bytes; nothing larger is one.
KEY_FILE_BYTES = 64 << 10

_ROTATED = re.compile(r"(?P<base>.*?)(?:\.(?P<number>[0-9]{1,6}))?(?P<gz>\.gz)?", re.DOTALL)
_KEY_ID = re.compile(f"[0-9a-f]{{{checkpoints.KEY_ID_DIGITS}}}")
_CHECKPOINT_MARK = f'"event":"{KIND}"'.encode()


class Place(NamedTuple):
    """Where a record stands: the file's position in reading order, and the line, from 1."""

    file: int
    line: int


class Problem(NamedTuple):
    place: Place
    seq: int | None
    what: str


@dataclass(slots=True, kw_only=True, eq=False)
class Stretch:
    """Records that follow each other without a break, each naming the hash of the one before."""

    instance: str
    first: Place
    first_seq: int
    first_prev: str
    first_hash: str
    started: str
    last: Place
    last_seq: int
    last_hash: str
    ended: str
    count: int = 1

    def follows(self, other: Stretch) -> bool:
        return self.first_seq == other.last_seq + 1 and self.first_prev == other.last_hash


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """
    A record that vouches for others.

    :ivar seq, hash: its own.
    """

    place: Place
    seq: int
    hash: str
    statement: Statement

    @property
    def instance(self) -> str:
        return self.statement.standing.instance

    @property
    def covers(self) -> tuple[int, str]:
        """The record that it vouches for, and so all before it."""
        return self.statement.standing.seq, self.statement.standing.hash


def verify(
    paths: Sequence[str | Path],
    out: TextIO,
    *,
    kept: Sequence[str | Path] = (),
    keys: Sequence[str | Path] = (),
    max_age: timedelta | None = None,
    now: datetime | None = None,
) -> int:
    """
    Check the logs and say what they hold, naming the first bad record with its file, line and number.

    :param paths: JSON logs or exports, in any order, rotated and compressed ones too.
    :param kept: files with checkpoints that were kept elsewhere; other records in them are passed over.
    :param keys: public keys, PEM. With at least one, checkpoints that none of them has signed are bad.
    :param max_age: how much younger than its last checkpoint a chain's last record may be; None: any.
    :param now: to say how old the last checkpoint is; None: not said.
    :returns: 0 verified, 1 something is bad, 2 a file cannot be read.
    """
    try:
        logs = _in_order([Export(Path(path)) for path in paths])
        check = _Check(logs, [Export(Path(path)) for path in kept], public_keys(keys), max_age)
        check.run()
    except (OSError, EOFError, zlib.error, Unreadable) as e:
        _say(f"cannot read: {e}", out)
        return UNREADABLE
    return check.report(out, now)


def public_keys(paths: Iterable[str | Path]) -> dict[str, Ed25519PublicKey]:
    """
    Keys by their id.

    :raise Unreadable, OSError: a file holds none.
    """
    keys: dict[str, Ed25519PublicKey] = {}
    for path in paths:
        with open(path, "rb") as file:
            raw = file.read(KEY_FILE_BYTES)
        if b"PRIVATE KEY" in raw:
            raise Unreadable(
                f"{path}: it is a private key, which nobody but the server should have; give the public one"
            )
        try:
            key = load_pem_public_key(raw)
        except ValueError:
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise Unreadable(f"{path}: it is no Ed25519 public key in PEM form (IDENTREE_AUDIT_VERIFY_KEY names one)")
        keys[checkpoints.key_id(key.public_bytes_raw())] = key
    return keys


# -- files ------------------------------------------------------------------------------------------------------------
def _in_order(files: Sequence[Export]) -> list[Export]:
    """Each file once, the oldest first: PATH.2, PATH.1, PATH; different logs by their oldest record."""
    groups: defaultdict[str, list[tuple[int, int, Export]]] = defaultdict(list)
    seen: set[tuple[int, int]] = set()
    for position, file in enumerate(files):
        if file.identity in seen:
            continue
        seen.add(file.identity)
        match = _ROTATED.fullmatch(str(file.path))
        assert match is not None
        groups[match["base"]].append((int(match["number"] or 0), position, file))
    logs = [[file for _, _, file in sorted(group, reverse=True)] for group in groups.values()]
    return [file for log in sorted(logs, key=_oldest) for file in log]


def _oldest(log: Sequence[Export]) -> str:
    for file in log:
        for entry in file.entries():
            try:
                return read(entry.record).timestamp
            except Malformed:
                continue
    return ""


# -- the check --------------------------------------------------------------------------------------------------------
Key = tuple[str, int, str]


class _Check:
    def __init__(
        self,
        logs: Sequence[Export],
        kept: Sequence[Export],
        keys: Mapping[str, Ed25519PublicKey],
        max_age: timedelta | None,
    ) -> None:
        self._files = [*logs, *kept]
        self._logs = range(len(logs))
        self._kept_files = range(len(logs), len(self._files))
        self._keys = keys
        self._max_age = max_age
        self._stretches: dict[Stretch, None] = {}
        # where stretches can grow: by their last record, their first one, and the one that is wanted before that
        self._tails: dict[Key, Stretch] = {}
        self._firsts: dict[Key, Stretch] = {}
        self._wanting: dict[Key, Stretch] = {}
        # per file, how many records stood behind the one that they follow, less those that stood before it
        self._direction: Counter[int] = Counter()
        self._problems: list[Problem] = []
        self._told: set[Place] = set()
        self._not_remembered = 0
        self._notes: list[str] = []
        self._summary: list[str] = []
        self._hashes: defaultdict[tuple[str, int], Counter[str]] = defaultdict(Counter)
        self._places: dict[Key, Place] = {}
        self._compared = False
        self._records = 0
        self._repeated = 0
        # checkpoints: in the logs and not proven at once, those kept elsewhere, the last good one of each chain
        self._claims: list[Checkpoint] = []
        self._kept: list[Checkpoint] = []
        self._latest: dict[str, Checkpoint] = {}
        self._checked = 0
        self._unchecked = 0
        self._wanted: set[str] = set()

    def run(self) -> None:
        for place, link, raw in self._links(self._logs, tell=True):
            self._add(place, link)
            if _CHECKPOINT_MARK in raw:
                self._checkpoint(place, link, raw, kept=False)
        for file in self._kept_files:
            self._read_kept(file)
        by_instance: defaultdict[str, list[Stretch]] = defaultdict(list)
        for stretch in self._stretches:
            by_instance[stretch.instance].append(stretch)
        self._look_again(by_instance)
        for instance, stretches in sorted(by_instance.items()):
            if instance:
                self._check_chain(instance, stretches)
            else:
                self._check_runs(stretches)
        self._check_kept(by_instance)
        self._check_claims(by_instance)

    def _look_again(self, by_instance: Mapping[str, list[Stretch]]) -> None:
        """
        Where stretches overlap, one more reading collects the hashes at the number where the overlap ends. A record's
        hash covers all before it, so they tell whether the overlapping records are the same. The same reading looks up
        what checkpoints vouch for.
        """
        wanted: set[tuple[str, int]] = set()
        for instance, stretches in by_instance.items():
            if instance:
                stretches.sort(key=lambda s: (s.first_seq, self._rank(s.first)))
                reached = stretches[0].last_seq
                for stretch in stretches[1:]:
                    if stretch.first_seq <= reached:
                        wanted.add((instance, min(reached, stretch.last_seq)))
                    reached = max(reached, stretch.last_seq)
            else:
                stretches.sort(key=lambda s: self._rank(s.first))
                for before, stretch in zip([None, *stretches], stretches, strict=False):
                    if stretch.first_seq:
                        wanted.add((instance, stretch.last_seq))
                    if stretch.first_seq and before is not None and before.last_seq < stretch.last_seq:
                        wanted.add((instance, before.last_seq))
        vouched = {(one.instance, one.covers[0]) for one in (*self._claims, *self._kept)}
        vouched.update((one.instance, one.seq) for one in self._kept)
        wanted |= vouched
        if wanted:
            for place, link, _ in self._links(self._logs, tell=False):
                if (link.instance, link.seq) in wanted:
                    self._hashes[link.instance, link.seq][link.hash] += 1
                    if (link.instance, link.seq) in vouched:
                        self._places.setdefault((link.instance, link.seq, link.hash), place)

    def _links(self, files: Iterable[int], *, tell: bool) -> Iterator[tuple[Place, Link, bytes]]:
        for number in files:
            for entry in self._files[number].entries():
                try:
                    if entry.trouble is not None:
                        raise entry.trouble
                    try:
                        link = read(entry.record)
                    except Malformed:
                        if not entry.torn:
                            raise
                        raise Malformed("it is incomplete: the line has no end, as after a crash or a cut") from None
                except Malformed as e:
                    if tell:
                        self._remember(Problem(Place(number, entry.line), None, f"this is no audit record: {e}"))
                    continue
                yield Place(number, entry.line), link, entry.record

    def _tell(self, problem: Problem) -> None:
        self._problems.append(problem)
        self._told.add(problem.place)

    def _remember(self, problem: Problem) -> None:
        if len(self._problems) < MAX_REMEMBERED:
            self._tell(problem)
        else:
            self._not_remembered += 1

    def _add(self, place: Place, link: Link) -> None:
        """Join the record to the stretch that it continues, to the one that continues it, or both with each other."""
        self._records += 1
        key = (link.instance, link.seq, link.hash)
        if key in self._tails or key in self._firsts:
            self._repeated += 1
            return
        before = (link.instance, link.seq - 1, link.prev_hash)
        left = self._tails.pop(before, None) if link.seq else None
        right = self._wanting.pop(key, None)
        if left is not None:
            self._direction[place.file] += 1
            left.last, left.last_seq, left.last_hash, left.ended = place, link.seq, link.hash, link.timestamp
            left.count += 1
            if right is not None:
                left.last, left.last_seq, left.last_hash = right.last, right.last_seq, right.last_hash
                left.ended = right.ended
                left.count += right.count
                del self._stretches[right], self._firsts[right.instance, right.first_seq, right.first_hash]
            self._tails[left.instance, left.last_seq, left.last_hash] = left
            return
        if right is not None:
            self._direction[place.file] -= 1
            del self._firsts[right.instance, right.first_seq, right.first_hash]
            right.first, right.first_seq, right.first_prev = place, link.seq, link.prev_hash
            right.first_hash, right.started = link.hash, link.timestamp
            right.count += 1
            stretch = right
        else:
            stretch = Stretch(
                instance=link.instance,
                first=place,
                first_seq=link.seq,
                first_prev=link.prev_hash,
                first_hash=link.hash,
                started=link.timestamp,
                last=place,
                last_seq=link.seq,
                last_hash=link.hash,
                ended=link.timestamp,
            )
            self._stretches[stretch] = None
            self._tails[key] = stretch
            if len(self._stretches) > MAX_STRETCHES:
                raise Unreadable(
                    f"{self._at(place)}: the records stand in too wild an order to be followed in bounded memory; "
                    "export them sorted by time, or in parts"
                )
        self._firsts[key] = stretch
        if link.seq:
            self._wanting[before] = stretch

    def _rank(self, place: Place) -> Place:
        """The order in which records came to be, as far as their places tell: many exports begin with the newest."""
        return Place(place.file, -place.line) if self._direction[place.file] < 0 else place

    # -- a chain with an identity: one sequence from 0 on, across restarts ------------------------------------------
    def _check_chain(self, instance: str, stretches: list[Stretch]) -> None:
        first = tip = stretches[0]
        if first.first_seq:
            self._note_beginning(f"chain {instance}", first)
        for position, stretch in enumerate(stretches[1:], start=1):
            if stretch.follows(tip):
                tip = stretch
                continue
            if stretch.first_seq > tip.last_seq:
                after = stretches[position + 1] if position + 1 < len(stretches) else None
                self._break(tip, stretch, after)
                tip = stretch
                continue
            end = min(tip.last_seq, stretch.last_seq)
            if len(self._hashes[instance, end]) == 1:
                self._repeated += end - stretch.first_seq + 1
            else:
                self._tell(self._difference(stretch, until=end))
            if stretch.last_seq > tip.last_seq:
                tip = stretch
        reach = f"seq {first.first_seq} to {tip.last_seq}, last hash {tip.last_hash}"
        self._summary.append(f"chain {instance}: {reach} at {self._at(tip.last)}")

    def _break(self, tip: Stretch, stretch: Stretch, after: Stretch | None) -> None:
        """``stretch`` should follow ``tip`` and does not: a changed record lost the hash that the next one names."""
        missing = stretch.first_seq - tip.last_seq - 1
        if missing:
            numbers = f"seq {tip.last_seq + 1}" + (f" to {stretch.first_seq - 1}" if missing > 1 else "")
            what = f"{missing} before this one missing ({numbers}): the last before it is at {self._at(tip.last)}"
            self._tell(Problem(stretch.first, stretch.first_seq, what))
            return
        itself = stretch.count == 1 and after is not None and after.first_seq == stretch.last_seq + 1
        if itself and not (after is not None and after.follows(stretch)):
            what = f"it was changed: it does not fit the record before it ({self._at(tip.last)}) nor the one after it"
            self._tell(Problem(stretch.first, stretch.first_seq, what))
        elif tip.last in self._told:
            pass  # the same changed record, seen from its other side
        elif stretch.count == 1 and after is None:
            where = self._at(stretch.first)
            what = f"this record or the next, seq {stretch.first_seq} at {where}, was changed: they do not fit"
            self._tell(Problem(tip.last, tip.last_seq, what))
        else:
            what = f"it was changed: seq {stretch.first_seq} at {self._at(stretch.first)} names another hash for it"
            self._tell(Problem(tip.last, tip.last_seq, what))

    def _difference(self, stretch: Stretch, *, until: int) -> Problem:
        """
        Two different records bear one number. The first such place is looked up, by more reading that remembers the
        overlap; for further ones a coarser answer must do.
        """
        coarse = Problem(
            stretch.first,
            stretch.first_seq,
            f"this and the following up to seq {until} differ from others of the same numbers",
        )
        if self._compared:
            return coarse
        self._compared = True
        different: dict[int, tuple[Place, Place]] = {}
        # in pieces, each with a reading of its own, so that memory stays bounded; the first one is nearly always enough
        for start in range(stretch.first_seq, until + 1, COMPARED_AT_ONCE):
            piece = range(start, min(start + COMPARED_AT_ONCE, until + 1))
            seen: dict[int, tuple[str, Place]] = {}
            for place, link, _ in self._links(self._logs, tell=False):
                if link.instance == stretch.instance and link.seq in piece:
                    known, where = seen.setdefault(link.seq, (link.hash, place))
                    if known != link.hash:
                        different.setdefault(link.seq, (where, place))
            if different:
                break
        if not different:  # the files are not what they were a moment ago: somebody writes to them, or rotates them
            return coarse
        seq = min(different)
        one, other = sorted(different[seq], key=self._rank)
        what = f"another record of this number stands at {self._at(other)}, and differs: one was changed or inserted"
        return Problem(one, seq, what)

    # -- records without an identity: deployed versions begin anew at every start; identree goes on ------------------
    def _check_runs(self, stretches: list[Stretch]) -> None:
        runs = [stretch for stretch in stretches if stretch.first_seq == 0]
        heads = {(stretch.last_seq, stretch.last_hash) for stretch in stretches}
        for position, stretch in enumerate(stretches):
            if stretch.first_seq == 0 or (stretch.first_seq - 1, stretch.first_prev) in heads:
                continue
            if position == 0:
                self._note_beginning("the oldest run", stretch)
                continue
            before = stretches[position - 1]
            after = stretches[position + 1] if position + 1 < len(stretches) else None
            if self._stands_twice(stretch):
                self._repeated += stretch.count
            elif before.first_seq <= stretch.first_seq <= before.last_seq < stretch.last_seq:
                if self._stands_twice(before):  # a crash repeated the end of the one, and the other goes on from there
                    self._repeated += before.last_seq - stretch.first_seq + 1
                else:
                    self._tell(self._difference(stretch, until=before.last_seq))
            elif before.last_seq < stretch.first_seq:
                self._break(before, stretch, after)
            else:
                what = "it follows no record of these files: it was inserted, or changed, or those before it removed"
                self._tell(Problem(stretch.first, stretch.first_seq, what))
        if self._keys or self._max_age is not None:
            count = _count(sum(stretch.count for stretch in stretches), "record")
            self._notes.append(
                f"note: {count} {'has' if count.startswith('1 ') else 'have'} no identity, as those of deployed "
                "versions; no checkpoint vouches for them"
            )
        for run in runs[:MAX_PRINTED]:
            self._summary.append(f"run from {run.started}: begins at {self._at(run.first)}")
        if len(runs) > MAX_PRINTED:
            self._summary.append(f"and {len(runs) - MAX_PRINTED} more runs")

    def _stands_twice(self, stretch: Stretch) -> bool:
        """Whether its end stands elsewhere too, and so all that leads there."""
        return self._hashes[stretch.instance, stretch.last_seq][stretch.last_hash] > 1

    # -- checkpoints --------------------------------------------------------------------------------------------------
    def _checkpoint(self, place: Place, link: Link, raw: bytes, *, kept: bool) -> None:
        """Check a checkpoint's signature, and note what it vouches for unless that is proven already."""
        values = json.loads(raw)
        try:
            statement = checkpoints.parse(values.get("reason", ""))
            if statement.standing.instance != link.instance:
                raise BadStatement("its statement is about another chain than the one that it stands in")
            if statement.standing.seq >= link.seq:
                raise BadStatement("its statement is about records behind it")
        except BadStatement as e:
            self._remember(Problem(place, link.seq, f"this checkpoint is none that identree wrote: {e}"))
            return
        checkpoint = Checkpoint(place=place, seq=link.seq, hash=link.hash, statement=statement)
        if not self._signed(checkpoint, values.get("code", "")):
            return  # it proves nothing, not even that something else is wrong
        if kept:
            self._kept.append(checkpoint)
        else:
            latest = self._latest.get(link.instance)
            if latest is None or latest.seq < link.seq:
                self._latest[link.instance] = checkpoint
            if checkpoint.covers != (link.seq - 1, link.prev_hash):
                self._claims.append(checkpoint)
        if len(self._claims) + len(self._kept) > MAX_CHECKPOINTS:
            raise Unreadable(
                f"{self._at(place)}: more than {MAX_CHECKPOINTS} checkpoints are not compared at once; give fewer files"
            )

    def _signed(self, checkpoint: Checkpoint, key_id: str) -> bool:
        """Whether the signature is good, as far as can be said."""
        if not self._keys:
            self._unchecked += 1
            if _KEY_ID.fullmatch(key_id) and len(self._wanted) < MAX_PRINTED:
                self._wanted.add(key_id)
            return True
        key = self._keys.get(key_id)
        try:
            if key is not None:
                key.verify(checkpoint.statement.signature, checkpoints.signed_bytes(checkpoint.statement.standing))
                self._checked += 1
                return True
            what = (
                f"this checkpoint is signed with the key {key_id or '(unnamed)'}, which is none of those given; if "
                "that was identree's key, give its public half with --key too"
            )
        except InvalidSignature:
            what = f"this checkpoint's signature is forged: the key {key_id} did not sign what it says"
        self._remember(Problem(checkpoint.place, checkpoint.seq, what))
        return False

    def _read_kept(self, number: int) -> None:
        found = 0
        for place, link, raw in self._links([number], tell=True):
            if _CHECKPOINT_MARK in raw:
                found += 1
                self._checkpoint(place, link, raw, kept=True)
        if not found:
            raise Unreadable(f"{self._files[number].path}: there is no checkpoint (event {KIND}) in it")

    def _check_claims(self, by_instance: Mapping[str, list[Stretch]]) -> None:
        """Checkpoints in the logs that vouch for another record than the one right before them."""
        for one in self._claims:
            place = self._contradiction(one.instance, *one.covers)
            if place is not None and place not in self._told:
                what = (
                    f"it is not the record that the checkpoint at {self._at(one.place)}, seq {one.seq}, vouches for: "
                    "the log was rewritten, here or before"
                )
                self._tell(Problem(place, one.covers[0], what))
        if self._max_age is not None:
            for instance, stretches in sorted(by_instance.items()):
                if instance:
                    self._check_age(instance, stretches, self._max_age)

    def _contradiction(self, instance: str, seq: int, digest: str) -> Place | None:
        """Where a record of this number stands that has another hash."""
        others = (other for other in self._hashes.get((instance, seq), ()) if other != digest)
        return next((self._places[instance, seq, other] for other in others), None)

    def _check_age(self, instance: str, stretches: Sequence[Stretch], most: timedelta) -> None:
        last = max(stretches, key=lambda s: s.last_seq)
        latest = self._latest.get(instance)
        try:
            until = datetime.fromisoformat(last.ended)
            since = datetime.fromisoformat(min(stretches, key=lambda s: s.first_seq).started)
        except ValueError:  # records have the form of one, but it may be the 31st of February
            self._tell(Problem(last.last, last.last_seq, "its chain has timestamps that do not exist"))
            return
        covered = "nothing"
        if latest is not None:
            since, covered = latest.statement.standing.time, f"seq {latest.covers[0]}"
        if until - since > most:
            what = f"the last checkpoint vouches for {covered}; the chain goes on for {_age(until - since)} without one"
            self._tell(Problem(last.last, last.last_seq, what))

    def _check_kept(self, by_instance: Mapping[str, list[Stretch]]) -> None:
        """What was kept elsewhere, against the logs: the first contradiction of each chain, and what is missing."""
        of_chain: defaultdict[str, list[Checkpoint]] = defaultdict(list)
        for one in self._kept:
            of_chain[one.instance].append(one)
        for instance, kept in sorted(of_chain.items()):
            kept.sort(key=lambda one: (one.covers[0], one.seq))
            stretches = by_instance.get(instance)
            if not stretches:
                what = (
                    f"these logs have nothing of the chain {instance}, of which this checkpoint vouches for seq "
                    f"{kept[-1].covers[0]}; give its logs too, or they are missing"
                )
                self._tell(Problem(kept[-1].place, kept[-1].seq, what))
            else:
                self._compare(instance, kept, stretches)

    def _compare(self, instance: str, kept: Sequence[Checkpoint], stretches: Sequence[Stretch]) -> None:
        first = min(stretches, key=lambda s: s.first_seq)
        last = max(stretches, key=lambda s: s.last_seq)
        agreed, confirmed, older = -1, 0, 0
        for one in kept:
            for seq, digest in (one.covers, (one.seq, one.hash)):
                place = self._contradiction(instance, seq, digest)
                if place is not None:
                    signed = timestamp(one.statement.standing.time)
                    after = f", after seq {agreed}, the last that a kept checkpoint confirms" if agreed >= 0 else ""
                    what = (
                        f"it is not the record that was there when the checkpoint at {self._at(one.place)} (seq "
                        f"{one.seq}) was signed, {signed}: the log was rewritten, here or before{after}"
                    )
                    self._tell(Problem(place, seq, what))
                    return
                if (instance, seq, digest) in self._places:
                    agreed = max(agreed, seq)
            confirmed += (instance, *one.covers) in self._places
            older += one.covers[0] < first.first_seq
        newest = max(kept, key=lambda one: one.seq)
        if newest.seq > last.last_seq:
            what = (
                f"records behind this one are missing: the checkpoint at {self._at(newest.place)} has seq {newest.seq} "
                f"and vouches for seq {newest.covers[0]}"
            )
            self._tell(Problem(last.last, last.last_seq, what))
        if confirmed:
            self._summary.append(f"chain {instance}: {_count(confirmed, 'kept checkpoint')} confirmed by these logs")
        if older:
            self._notes.append(
                f"note: chain {instance}: {_count(older, 'kept checkpoint')} older than these logs, and not compared"
            )

    def _tell_checkpoints(self, now: datetime | None) -> None:
        for instance, latest in sorted(self._latest.items()):
            signed = latest.statement.standing.time
            age = f", {_age(now - signed)} ago" if now is not None else ""
            self._summary.append(
                f"chain {instance}: last checkpoint at {self._at(latest.place)}, seq {latest.seq}, signed "
                f"{timestamp(signed)}{age}; it vouches for seq {latest.covers[0]} and all before"
            )
        if self._checked:
            self._summary.append(f"signatures: {_count(self._checked, 'checkpoint')} signed with the keys given")
        if self._unchecked:
            self._notes.append(
                f"note: the signatures of {_count(self._unchecked, 'checkpoint')} were not checked; give the public "
                f"key with --key (wanted: {', '.join(sorted(self._wanted)) or 'none is named'})"
            )
        elif self._keys and not self._checked:
            self._notes.append("note: there is no checkpoint that the keys given could prove")

    # -- the answer ---------------------------------------------------------------------------------------------------
    def _note_beginning(self, name: str, stretch: Stretch) -> None:
        self._notes.append(
            f"note: {name} begins at seq {stretch.first_seq} ({self._at(stretch.first)}); what was before is not in "
            "these files (rotated away, or removed)"
        )

    def _at(self, place: Place) -> str:
        return self._files[place.file].at(place.line)

    def report(self, out: TextIO, now: datetime | None = None) -> int:
        self._tell_checkpoints(now)
        for text in (*self._summary, *self._notes):
            _say(text, out)
        if self._repeated:
            _say(f"note: {self._repeated} records stand there more than once, byte for byte the same", out)
        for number in self._logs:
            if self._files[number].foreign:
                foreign = _count(self._files[number].foreign, "line")
                _say(f"note: {self._files[number].path}: {foreign} of other programs passed over", out)
        problems = sorted(self._problems, key=lambda problem: self._rank(problem.place))
        for number, (place, seq, what) in enumerate(problems[:MAX_PRINTED]):
            name = "FIRST BAD RECORD" if number == 0 else "bad record"
            _say(f"{name}: {self._at(place)}{'' if seq is None else f', seq {seq}'}: {what}", out)
        more = len(problems) - MAX_PRINTED + self._not_remembered
        if more > 0:
            _say(f"and {more} more", out)
        held = f"{_count(self._records, 'record')} in {_count(len(self._logs), 'file')}"
        _say(f"NOT VERIFIED: {held}" if problems else f"verified: {held}", out)
        return BAD if problems else VERIFIED


def _age(duration: timedelta) -> str:
    """Whole seconds, as in settings; a clock that runs ahead makes it negative."""
    return durations.render(timedelta(seconds=int(duration.total_seconds())))


def _say(text: str, out: TextIO) -> None:
    """One line. What a log holds may be forged, and must not command the terminal or add lines that look like ours."""
    shown = (c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii") for c in text)
    print("".join(shown), file=out)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
