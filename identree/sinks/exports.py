"""
Audit records read back from wherever they have been: JSON logs, and what Splunk, Loki and syslog give out.

The form of a file is told by its content, not by its name:

========== =============================================================================================================
native     one record per line: the JSON log, Splunk's raw events, ``logcli --output=raw``
wrapped    JSON lines that hold the record as text: Splunk's ``search/jobs/export`` and its JSON export (``_raw``),
           ``logcli --output=jsonl`` (``line``), OCSF (``raw_data``)
document   one JSON document, or several: answers of Loki's API (streams and values), Splunk's ``results`` and ``rows``,
           Grafana's download
csv        a column ``_raw`` (Splunk) or ``line`` (Grafana)
syslog     a line with the record at its end: what rsyslog writes, ``logcli``'s default output
========== =============================================================================================================

CEF does not hold the record, so nothing can be verified from it. All but documents are streamed with bounded memory.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import stat
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from identree import __version__
from identree.core import audit
from identree.core.audit import Malformed, Sealed
from identree.sinks.formats import OCSF

# A record is a few kilobytes at most, and its wrapping another few; a longer line is none.
MAX_LINE_BYTES = 1 << 20
# A JSON document is read whole, and takes some ten times its size in memory.
MAX_DOCUMENT_BYTES = 64 << 20
# How much of a file is looked at to tell its form.
SAMPLE_BYTES = 1 << 20
SAMPLE_LINES = 200
# Wrappings within each other: a record in OCSF in a syslog line in Splunk's result.
_DEEPEST = 4
# Places in a syslog line at which a JSON object may begin.
_MOST_STARTS = 16

NATIVE, WRAPPED, DOCUMENT, CSV, SYSLOG, CEF = "native", "wrapped", "document", "csv", "syslog", "cef"

# What every record begins with. Inside a record it cannot stand: there every quotation mark has a backslash.
_RECORD_START = b'{"seq":'
# The same in a text within a text.
_ESCAPED_START = re.compile(rb'\{\\*"seq\\*":')
_CEF_START = re.compile(rb"CEF:[01]\|")
_SYSLOG_START = re.compile(rb"<[0-9]{1,3}>1 ")
# A syslog line of the sink: its program, without the number of a process, which lines of the server's log have.
_OURS = re.compile(rb"(?:^|\s)identree(?::\s|\s(?![0-9]+\s))|\[identree@0 ")
_COLUMNS = ("_raw", "line", "Line")
# Members of a JSON object that hold a record as text, in the order in which they are looked for. The event as it came
# is first: Splunk takes members out of it, raw_data among them, which say nothing about the rest of the event.
_TEXTS = ("_raw", "line", "Line", "raw_data")
# What the C-form escapes and the P-form does not, behind an even number of backslashes.
_C_ESCAPE = re.compile(r"(?<!\\)((?:\\\\)*)\\u00(3c|3e|26)")
# All that the line can have with which Splunk ends a search that found nothing.
_END_MARK = frozenset({"preview", "lastrow", "offset", "init_offset"})
_BOM = b"\xef\xbb\xbf"
_NO_RAW = "it is a search result without _raw: export the events themselves (no table, fields or stats in the search)"


class Unreadable(Exception):
    """A file that cannot be read as an audit log at all; the message names it and says what to do."""


class Gone(Unreadable):
    """The file was there and is not any more: it was rotated away, or removed."""


class Entry(NamedTuple):
    """
    One place of a file where a record should be.

    :ivar line: from 1; in a JSON document the number of the entry.
    :ivar record: the text of the record, to be read by :func:`identree.core.audit.read`.
    :ivar trouble: why there is none; then ``record`` is empty.
    :ivar torn: the line has no end.
    """

    line: int
    record: bytes
    trouble: Malformed | None = None
    torn: bool = False


class Export:
    """
    A file with audit records, read from its beginning as often as wanted.

    :ivar foreign: lines of other programs in a syslog file, as of the last reading.
    """

    def __init__(self, path: Path) -> None:
        """:raise Unreadable, OSError: there is no such file, or it can be read but once."""
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable(f"{path}: it is no regular file; save it to one, since it is read more than once")
        self.path = path
        self.identity = (status.st_dev, status.st_ino)
        self.foreign = 0
        self._form = ""

    @property
    def form(self) -> str:
        """:raise Unreadable: see :meth:`entries`."""
        if not self._form:
            with closing(self._opened()) as file:
                self._form = _form(self._read(file, SAMPLE_BYTES))
        return self._form

    def at(self, line: int) -> str:
        """The place for people: ``FILE:LINE``."""
        return f"{self.path}:entry {line}" if self._form == DOCUMENT else f"{self.path}:{line}"

    def entries(self) -> Iterator[Entry]:
        """
        Every place where a record should be, in the order of the file.

        :raise Unreadable: it cannot be read, is too large a JSON document, or is CEF.
        """
        form = self.form
        self.foreign = 0
        if form == CEF:
            raise Unreadable(
                f"{self.path}: it is CEF, which does not hold the records themselves, so nothing can be verified from "
                "it; use the JSON log, or a sink in native or OCSF form"
            )
        if form == DOCUMENT:
            return self._document()
        if form == CSV:
            return self._csv()
        return self._by_line(form)

    # -- lines --------------------------------------------------------------------------------------------------------
    def _by_line(self, form: str) -> Iterator[Entry]:
        for at, line, ended in self._numbered():
            if len(line) > MAX_LINE_BYTES:
                yield Entry(at, b"", Malformed(f"it is longer than {MAX_LINE_BYTES} bytes"))
                continue
            if form == NATIVE and not line.startswith(OCSF.begins):
                yield Entry(at, line, torn=not ended)
                continue
            line = line.rstrip(b"\r")
            if at == 1:
                line = line.removeprefix(_BOM)
            if not line.strip():
                continue
            try:
                record = record_in(line)
            except Malformed as trouble:
                yield Entry(at, b"", trouble, torn=not ended)
                continue
            if record is None:
                continue
            if form == SYSLOG and not record.startswith(b"{") and not _OURS.search(line):
                self.foreign += 1
                continue
            yield Entry(at, record, torn=not ended)

    def _numbered(self) -> Iterator[tuple[int, bytes, bool]]:
        """Number, content and whether there is an LF; the rest of a line that is too long is left out."""
        with closing(self._opened()) as file:
            at, inside = 1, False
            while piece := self._read_line(file):
                ended = piece.endswith(b"\n")
                if not inside:
                    yield at, piece[:-1] if ended else piece, ended
                inside = not ended
                at += ended

    # -- CSV ----------------------------------------------------------------------------------------------------------
    def _csv(self) -> Iterator[Entry]:
        def text() -> Iterator[str]:
            for at, line, _ in self._numbered():
                # a line that is too long becomes a field that is too long, which the reader refuses
                yield (line.removeprefix(_BOM) if at == 1 else line).decode("utf-8", "surrogateescape") + "\n"

        rows = csv.reader(text())
        header = next(rows, [])
        column = _column(header)
        if column is not None and header.count(header[column]) > 1:
            yield Entry(1, b"", Malformed(f"it has two columns {header[column]}: which of them is read, nobody knows"))
        while True:
            at = rows.line_num + 1
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error:
                yield Entry(at, b"", Malformed("it is no CSV: a quotation mark or the end of the line is missing"))
                continue
            if not row:
                continue
            if column is None or len(row) <= column:
                yield Entry(at, b"", Malformed("it has no value in the column of the record"))
                continue
            yield _entry(at, row[column].encode("utf-8", "surrogateescape"))

    # -- documents ----------------------------------------------------------------------------------------------------
    def _document(self) -> Iterator[Entry]:
        with closing(self._opened()) as file:
            raw = self._read(file, MAX_DOCUMENT_BYTES + 1)
        if len(raw) > MAX_DOCUMENT_BYTES:
            raise Unreadable(
                f"{self.path}: a JSON document of more than {MAX_DOCUMENT_BYTES >> 20} MiB is not read; export JSON "
                "lines instead (logcli --output=jsonl, Splunk's search/jobs/export), or in parts"
            )
        at = 0
        for value in _documents(raw.removeprefix(_BOM)):
            for found in [value] if isinstance(value, Malformed) else _texts(value):
                at += 1
                if isinstance(found, Malformed):
                    yield Entry(at, b"", found)
                else:
                    # JSON may hold what UTF-8 cannot; it stays wrong, and is told when the record is read
                    yield _entry(at, found.encode("utf-8", "surrogatepass"))

    # -- the file -----------------------------------------------------------------------------------------------------
    def _opened(self) -> BinaryIO:
        """The file, unpacked when it is compressed, whatever its name says."""
        try:
            file = open(self.path, "rb")  # noqa: SIM115  closed by the caller
            if file.read(2) == b"\x1f\x8b":
                file.close()
                return cast(BinaryIO, gzip.open(self.path, "rb"))
            file.seek(0)
            return file
        except OSError as problem:
            raise self._unreadable(problem) from problem

    def _read(self, file: BinaryIO, size: int) -> bytes:
        try:
            return file.read(size)
        except (OSError, EOFError, zlib.error) as problem:
            raise self._unreadable(problem) from problem

    def _read_line(self, file: BinaryIO) -> bytes:
        try:
            return file.readline(MAX_LINE_BYTES + 1)
        except (OSError, EOFError, zlib.error) as problem:
            raise self._unreadable(problem) from problem

    def _unreadable(self, problem: Exception) -> Unreadable:
        why = problem.strerror if isinstance(problem, OSError) and problem.strerror else problem
        return (Gone if isinstance(problem, FileNotFoundError) else Unreadable)(f"{self.path}: {why}")


# -- telling the form -------------------------------------------------------------------------------------------------
def _form(sample: bytes) -> str:
    """By the first line, where that must be special; otherwise as most lines look, whatever a few bad ones say."""
    sample = sample.removeprefix(_BOM)
    lines = sample.split(b"\n", SAMPLE_LINES)
    if len(lines) > 1:
        lines.pop()  # incomplete, or everything behind
    if _is_csv(lines[0]):
        return CSV
    votes = Counter(vote for line in lines if (vote := _vote(line.strip())))
    if votes:
        # of two that are as frequent the stricter one
        return max((NATIVE, WRAPPED, DOCUMENT, SYSLOG, CEF), key=lambda form: votes[form])
    return DOCUMENT if sample.lstrip()[:1] in (b"{", b"[") else NATIVE


def _vote(line: bytes) -> str:
    if line.startswith(_RECORD_START):
        return NATIVE
    if line.startswith(b"{"):
        return _vote_of_json(line)
    if _is_cef(line):
        return CEF
    if _RECORD_START in line or _SYSLOG_START.match(line):
        return SYSLOG
    if line.startswith(b"[") and line.endswith(b"]"):
        return DOCUMENT
    return SYSLOG if b'"raw_data":' in line and not line.startswith(b'"') else ""


def _vote_of_json(line: bytes) -> str:
    value = _json(line)
    if value is None:
        return ""
    if "seq" in value:
        return NATIVE
    if "results" in value or "rows" in value:
        return DOCUMENT
    try:
        inner = _inner(value)
    except Malformed:
        return WRAPPED
    if inner is None:
        return WRAPPED if "preview" in value else DOCUMENT
    return CEF if _is_cef(inner.encode("utf-8", "replace")) else WRAPPED


def _is_cef(line: bytes) -> bool:
    """Anybody may write a reason that looks like CEF; but then it stands in a record."""
    return _CEF_START.search(line) is not None and not _ESCAPED_START.search(line)


def _is_csv(line: bytes) -> bool:
    if b"{" in line or b"<" in line:
        return False  # no names of columns: somebody may have written such a name into a record
    try:
        [row] = csv.reader([line.decode("utf-8", "replace")])
    except (csv.Error, ValueError):
        return False
    return _column(row) is not None


def _column(header: list[str]) -> int | None:
    return next((header.index(name) for name in _COLUMNS if name in header), None)


# -- finding the record -----------------------------------------------------------------------------------------------
def _entry(at: int, text: bytes) -> Entry:
    try:
        return Entry(at, record_in(text) or b"")
    except Malformed as trouble:
        return Entry(at, b"", trouble)


def record_in(text: bytes, depth: int = _DEEPEST) -> bytes | None:
    """
    The record that a line holds, whatever it is wrapped in; the line itself when nothing is recognised, so that reading
    it says what is wrong. None: the line belongs to the export and holds nothing, like the end mark of a search.

    :raise Malformed: there cannot be one.
    """
    if text.startswith(_RECORD_START) or not depth:
        return text
    if text.startswith(b"{"):
        value = _json(text)
        return text if value is None else _unwrapped(text, value, depth)
    at = text.find(_RECORD_START)
    if at >= 0:
        if b' truncated="' in text[:at]:
            raise Malformed(
                "it was cut to fit into a UDP datagram; use TCP, or raise IDENTREE_AUDIT_SYSLOG_MAX_UDP_BYTES"
            )
        return text[at:]
    if _is_cef(text):
        raise Malformed("it is CEF, which does not hold the record itself")
    at = -1
    for _ in range(_MOST_STARTS):
        at = text.find(b'{"', at + 1)
        if at < 0:
            break
        value = _json(text[at:])
        if value is not None and "raw_data" in value:
            return _unwrapped(text[at:], value, depth)
    return text


def _unwrapped(text: bytes, value: Mapping[str, object], depth: int) -> bytes | None:
    inner = _inner(value)
    if inner is None:
        if "preview" in value and _END_MARK.issuperset(value):
            return None
        return text
    record = record_in(inner.encode("utf-8", "surrogatepass"), depth - 1)
    if record is not None and _is_ocsf(value):
        _check_ocsf(value, record)
    return record


def _is_ocsf(value: Mapping[str, object]) -> bool:
    """Whether it is the event itself, rather than what holds its text and perhaps some of its members."""
    return next((key for key in _TEXTS if isinstance(value.get(key), str)), "") == "raw_data"


def _inner(value: Mapping[str, object]) -> str | None:
    """
    The text that an object of an export holds, or None.

    :raise Malformed: it is a search result, and there is none.
    """
    result = value.get("result")
    if isinstance(result, dict):
        if not any(isinstance(result.get(key), str) for key in _TEXTS):
            raise Malformed(_NO_RAW)
        return _inner(result)
    return next((found for key in _TEXTS if isinstance(found := value.get(key), str)), None)


def _check_ocsf(value: Mapping[str, object], raw: bytes) -> None:
    """
    The chain covers ``raw_data`` only, while people read the other members: they must be what identree made of it.

    :raise Malformed: they are not. Records of another version are not compared: it may have mapped them otherwise.
    """
    try:
        link, version = audit.read(raw), json.loads(raw).get("version")
    except Malformed:
        return  # said by whoever reads the record
    if version != __version__:
        return
    wanted = json.loads(OCSF.text(sealed_of(raw, link)))
    try:
        # as text, in which 1, 1.0 and true differ
        same = json.dumps(wanted, sort_keys=True) == json.dumps(value, sort_keys=True)
    except RecursionError:
        same = False
    if not same:
        raise Malformed("its OCSF members do not say what its raw_data, the record itself, says")


def sealed_of(raw: bytes, link: audit.Link) -> Sealed:
    """
    A record that was read back, as sinks get it.

    :param raw: in P-form or C-form.
    :param link: what :func:`identree.core.audit.read` made of it.
    """
    text = raw.decode()
    plain = _C_ESCAPE.sub(lambda found: found[1] + chr(int(found[2], 16)), text)
    return Sealed(
        instance=link.instance,
        seq=link.seq,
        plain=plain.encode(),
        canonical=audit.canonical(text).encode(),
        hash=link.hash,
    )


def _json(text: bytes) -> dict[str, object] | None:
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """:raise ValueError: a key stands there twice: which of the two the next reader takes, nobody knows."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands there twice")
    return value


def _documents(raw: bytes) -> Iterator[object]:
    """The JSON values that stand behind each other: answers that were appended to one file."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        yield Malformed("it is not UTF-8")
        return
    decoder, position, space = json.JSONDecoder(object_pairs_hook=_once), 0, re.compile(r"\s*")
    while position < len(text):
        start = space.match(text, position)
        assert start is not None
        if start.end() == len(text):
            return
        try:
            value, position = decoder.raw_decode(text, start.end())
        except (ValueError, RecursionError):
            yield Malformed("it is no JSON document")
            return
        yield value


def _texts(value: object) -> Iterator[str | Malformed]:
    """The texts that a document holds, in its order."""
    if isinstance(value, list):
        for item in value:
            if isinstance(item, str):
                yield item
            elif isinstance(item, dict) and isinstance(item.get("result", item), dict):
                yield _text_or_trouble(item)
            else:
                yield Malformed("it is no log line")
        return
    if not isinstance(value, dict):
        yield Malformed("it is no JSON object or list")
        return
    data = value.get("data")
    streams = data.get("result") if isinstance(data, dict) else value.get("streams")
    rows, names = value.get("rows"), value.get("fields")
    if isinstance(streams, list):
        for stream in streams:
            values = stream.get("values") if isinstance(stream, dict) else None
            if not isinstance(values, list):
                yield Malformed("it is no stream of log lines: query the lines themselves, without rate() or the like")
                continue
            for pair in values:
                ok = isinstance(pair, list) and len(pair) > 1 and isinstance(pair[1], str)
                yield pair[1] if ok else Malformed("it is no log line")
    elif isinstance(value.get("results"), list):
        yield from _texts(value["results"])
    elif isinstance(rows, list) and isinstance(names, list):
        column = _column([str(name.get("name") if isinstance(name, dict) else name) for name in names])
        for row in rows:
            ok = isinstance(row, list) and column is not None and len(row) > column and isinstance(row[column], str)
            yield row[column] if ok else Malformed(_NO_RAW)
    else:
        yield _text_or_trouble(value)


def _text_or_trouble(value: Mapping[str, object]) -> str | Malformed:
    try:
        inner = _inner(value)
    except Malformed as trouble:
        return trouble
    if inner is not None and not _is_ocsf(value):
        return inner
    # the object itself: OCSF, a record that was laid out anew, or nothing that is known
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return Malformed("it is nested too deeply")
