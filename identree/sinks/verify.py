"""
``identree audit verify FILE...``: check that JSON logs hold unbroken chains (spec/audit-and-metrics sections 1 to 3).

The files are streamed. A stretch of records that follow each other takes the memory of one entry, whatever its length,
so files may be given in any order, overlap, and mix the chains of several replicas. Only the last record of a chain
cannot be checked against a later one: its hash is printed, to be compared with a copy kept elsewhere.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO, cast

from identree.core.audit import Link, Malformed, read

VERIFIED, BAD, UNREADABLE = 0, 1, 2
# A record is a few kilobytes at most; a longer line is none.
MAX_LINE_BYTES = 1 << 20
# Problems that are printed after the first; all are counted.
MAX_PRINTED = 20

_ROTATED = re.compile(r"(?P<base>.*?)(?:\.(?P<number>[0-9]{1,6}))?(?P<gz>\.gz)?")


class Place(NamedTuple):
    """Where a record stands: the file's position in reading order, and the line, from 1."""

    file: int
    line: int


class Problem(NamedTuple):
    place: Place
    seq: int | None
    what: str


@dataclass(slots=True, kw_only=True)
class Stretch:
    """Records that follow each other without a break, each naming the hash of the one before."""

    instance: str
    first: Place
    first_seq: int
    first_prev: str
    started: str
    last: Place
    last_seq: int
    last_hash: str
    count: int = 1

    def follows(self, other: Stretch) -> bool:
        return self.first_seq == other.last_seq + 1 and self.first_prev == other.last_hash


def verify(paths: Sequence[str | Path], out: TextIO) -> int:
    """
    Check the logs and say what they hold, naming the first bad record with its file, line and number.

    :param paths: JSON logs, in any order, rotated and compressed ones too.
    :returns: 0 verified, 1 something is bad, 2 a file cannot be read.
    """
    try:
        files = _in_order([Path(path) for path in paths])
        check = _Check(files)
        check.run()
    except (OSError, EOFError, zlib.error) as e:
        _say(f"cannot read: {e}", out)
        return UNREADABLE
    return check.report(out)


# -- files ------------------------------------------------------------------------------------------------------------
def _opened(path: Path) -> BinaryIO:
    """The file, unpacked when it is compressed, whatever its name says."""
    file = open(path, "rb")  # noqa: SIM115  closed by the caller
    if file.read(2) == b"\x1f\x8b":
        file.close()
        return cast(BinaryIO, gzip.open(path, "rb"))
    file.seek(0)
    return file


def _lines(path: Path) -> Iterator[bytes]:
    """The lines with their LF; one that is too long comes in pieces."""
    try:
        with closing(_opened(path)) as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                yield line
    except (OSError, EOFError, zlib.error) as e:
        raise OSError(f"{path}: {e.strerror if isinstance(e, OSError) and e.strerror else e}") from e


def _in_order(paths: Sequence[Path]) -> list[Path]:
    """Each file once, the oldest first: PATH.2, PATH.1, PATH; different logs by their oldest record."""
    groups: defaultdict[str, list[tuple[int, Path]]] = defaultdict(list)
    seen: set[tuple[int, int]] = set()
    for path in paths:
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        match = _ROTATED.fullmatch(str(path))
        assert match is not None
        groups[match["base"]].append((int(match["number"] or 0), path))
    logs = [[path for _, path in sorted(group, reverse=True)] for group in groups.values()]
    return [path for log in sorted(logs, key=_oldest) for path in log]


def _oldest(log: Sequence[Path]) -> str:
    for path in log:
        for line in _lines(path):
            try:
                return read(line.rstrip(b"\n")).timestamp
            except Malformed:
                continue
    return ""


# -- the check --------------------------------------------------------------------------------------------------------
class _Check:
    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self._stretches: list[Stretch] = []
        self._tails: dict[tuple[str, int, str], Stretch] = {}
        self._problems: list[Problem] = []
        self._notes: list[str] = []
        self._summary: list[str] = []
        self._hashes: defaultdict[tuple[str, int], Counter[str]] = defaultdict(Counter)
        self._compared = False
        self._records = 0
        self._repeated = 0

    def run(self) -> None:
        for place, link in self._links(tell=True):
            self._add(place, link)
        by_instance: defaultdict[str, list[Stretch]] = defaultdict(list)
        for stretch in self._stretches:
            by_instance[stretch.instance].append(stretch)
        self._look_again(by_instance)
        for instance, stretches in sorted(by_instance.items()):
            if instance:
                self._check_chain(instance, stretches)
            else:
                self._check_runs(stretches)

    def _look_again(self, by_instance: Mapping[str, list[Stretch]]) -> None:
        """
        Where stretches overlap, one more reading collects the hashes at the number where the overlap ends. A record's
        hash covers all before it, so they tell whether the overlapping records are the same.
        """
        wanted: set[tuple[str, int]] = set()
        for instance, stretches in by_instance.items():
            if instance:
                stretches.sort(key=lambda s: (s.first_seq, s.first))
                reached = stretches[0].last_seq
                for stretch in stretches[1:]:
                    if stretch.first_seq <= reached:
                        wanted.add((instance, min(reached, stretch.last_seq)))
                    reached = max(reached, stretch.last_seq)
            else:
                stretches.sort(key=lambda s: s.first)
                for before, stretch in zip([None, *stretches], stretches, strict=False):
                    if stretch.first_seq:
                        wanted.add((instance, stretch.last_seq))
                    if stretch.first_seq and before is not None and before.last_seq < stretch.last_seq:
                        wanted.add((instance, before.last_seq))
        if wanted:
            for _, link in self._links(tell=False):
                if (link.instance, link.seq) in wanted:
                    self._hashes[link.instance, link.seq][link.hash] += 1

    def _links(self, *, tell: bool) -> Iterator[tuple[Place, Link]]:
        for number, path in enumerate(self._files):
            at = 1
            for line in _lines(path):
                place = Place(number, at)
                whole = line.endswith(b"\n")
                at += whole
                try:
                    if not whole and len(line) > MAX_LINE_BYTES:
                        raise Malformed(f"it is longer than {MAX_LINE_BYTES} bytes")
                    if not whole:
                        raise Malformed("it is incomplete: the line has no end, as after a crash or a cut")
                    yield place, read(line[:-1])
                except Malformed as e:
                    problem = Problem(place, None, f"this is no audit record: {e}")
                    if tell and (not self._problems or self._problems[-1].place != place):
                        self._problems.append(problem)

    def _add(self, place: Place, link: Link) -> None:
        self._records += 1
        key = (link.instance, link.seq, link.hash)
        if key in self._tails:
            self._repeated += 1
            return
        stretch = self._tails.pop((link.instance, link.seq - 1, link.prev_hash), None) if link.seq else None
        if stretch is None:
            stretch = Stretch(
                instance=link.instance,
                first=place,
                first_seq=link.seq,
                first_prev=link.prev_hash,
                started=link.timestamp,
                last=place,
                last_seq=link.seq,
                last_hash=link.hash,
            )
            self._stretches.append(stretch)
        else:
            stretch.last, stretch.last_seq, stretch.last_hash = place, link.seq, link.hash
            stretch.count += 1
        self._tails[key] = stretch

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
                self._problems.append(self._difference(stretch, until=end))
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
            self._problems.append(Problem(stretch.first, stretch.first_seq, what))
            return
        itself = stretch.count == 1 and after is not None and after.first_seq == stretch.last_seq + 1
        if itself and not (after is not None and after.follows(stretch)):
            what = f"it was changed: it does not fit the record before it ({self._at(tip.last)}) nor the one after it"
            self._problems.append(Problem(stretch.first, stretch.first_seq, what))
        elif any(problem.place == tip.last for problem in self._problems):
            pass  # the same changed record, seen from its other side
        elif stretch.count == 1 and after is None:
            where = self._at(stretch.first)
            what = f"this record or the next, seq {stretch.first_seq} at {where}, was changed: they do not fit"
            self._problems.append(Problem(tip.last, tip.last_seq, what))
        else:
            what = f"it was changed: seq {stretch.first_seq} at {self._at(stretch.first)} names another hash for it"
            self._problems.append(Problem(tip.last, tip.last_seq, what))

    def _difference(self, stretch: Stretch, *, until: int) -> Problem:
        """
        Two different records bear one number. The first such place is looked up, by one more reading that remembers the
        overlap; for further ones a coarser answer must do.
        """
        if self._compared:
            what = f"this and the following up to seq {until} differ from others of the same numbers"
            return Problem(stretch.first, stretch.first_seq, what)
        self._compared = True
        seen: dict[int, tuple[str, Place]] = {}
        different: dict[int, tuple[Place, Place]] = {}
        for place, link in self._links(tell=False):
            if link.instance == stretch.instance and stretch.first_seq <= link.seq <= until:
                known, where = seen.setdefault(link.seq, (link.hash, place))
                if known != link.hash:
                    different.setdefault(link.seq, (where, place))
        seq = min(different)
        one, other = different[seq]
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
                    self._problems.append(self._difference(stretch, until=before.last_seq))
            elif before.last_seq < stretch.first_seq:
                self._break(before, stretch, after)
            else:
                what = "it follows no record of these files: it was inserted, or changed, or those before it removed"
                self._problems.append(Problem(stretch.first, stretch.first_seq, what))
        for run in runs[:MAX_PRINTED]:
            self._summary.append(f"run from {run.started}: begins at {self._at(run.first)}")
        if len(runs) > MAX_PRINTED:
            self._summary.append(f"and {len(runs) - MAX_PRINTED} more runs")

    def _stands_twice(self, stretch: Stretch) -> bool:
        """Whether its end stands elsewhere too, and so all that leads there."""
        return self._hashes[stretch.instance, stretch.last_seq][stretch.last_hash] > 1

    # -- the answer ---------------------------------------------------------------------------------------------------
    def _note_beginning(self, name: str, stretch: Stretch) -> None:
        self._notes.append(
            f"note: {name} begins at seq {stretch.first_seq} ({self._at(stretch.first)}); what was before is not in "
            "these files (rotated away, or removed)"
        )

    def _at(self, place: Place) -> str:
        return f"{self._files[place.file]}:{place.line}"

    def report(self, out: TextIO) -> int:
        for text in (*self._summary, *self._notes):
            _say(text, out)
        if self._repeated:
            _say(f"note: {self._repeated} records stand there more than once, byte for byte the same", out)
        problems = sorted(self._problems, key=lambda problem: problem.place)
        for number, (place, seq, what) in enumerate(problems[:MAX_PRINTED]):
            name = "FIRST BAD RECORD" if number == 0 else "bad record"
            _say(f"{name}: {self._at(place)}{'' if seq is None else f', seq {seq}'}: {what}", out)
        if len(problems) > MAX_PRINTED:
            _say(f"and {len(problems) - MAX_PRINTED} more", out)
        held = f"{_count(self._records, 'record')} in {_count(len(self._files), 'file')}"
        _say(f"NOT VERIFIED: {held}" if problems else f"verified: {held}", out)
        return BAD if problems else VERIFIED


def _say(text: str, out: TextIO) -> None:
    """One line. What a log holds may be forged, and must not command the terminal or add lines that look like ours."""
    shown = (c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii") for c in text)
    print("".join(shown), file=out)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
