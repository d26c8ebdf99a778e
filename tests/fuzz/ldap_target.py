"""
A target for atheris: whatever bytes come, framing, decoding, filters and the searcher answer or refuse them as no LDAP.

Run by :mod:`tests.fuzz.test_ldap`; by hand for longer: ``python -m tests.fuzz.ldap_target -max_total_time=600 DIR``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise

import atheris

with atheris.instrument_imports(
    include=["identree.ldap", "identree.directory.filters", "identree.directory.dn", "identree.directory.schema"]
):
    from identree.directory import dn, filters
    from identree.ldap import ber, operations, paging
    from identree.ldap.framing import Framer
    from identree.ldap.search import Scan, Searcher

from tests.fuzz.directory import SNAPSHOT

_READERS = {
    operations.BIND: operations.bind,
    operations.COMPARE: operations.compare,
    operations.ABANDON: operations.abandoned,
    operations.EXTENDED: operations.extended,
}


def one_input(data: bytes) -> None:
    """The first octet says how the rest is cut into reads; what comes out is then gone through as a connection does."""
    if not data:
        return
    rest = data[1:]
    framer = Framer(4096)
    step = data[0] or len(rest) or 1
    frames: list[bytes] = []
    for start, end in pairwise([*range(0, len(rest), step), len(rest)]):
        frames += framer.feed(rest[start:end])
        while framer.more:
            frames += framer.feed(b"")
        assert framer.buffered <= 4096 + step
    assert b"".join(frames) == rest[: sum(map(len, frames))]
    for frame in frames:
        try:
            message(frame)
        except (ber.BerError, ber.FilterTooLarge):
            continue
    filter_of(rest)


def message(frame: bytes) -> None:
    ber.check_structure(frame)
    envelope = operations.envelope(frame)
    for control in operations.controls(envelope.controls):
        if control.oid == operations.PAGED_RESULTS:
            paging.page_request(control.value)
    if envelope.tag == operations.SEARCH:
        search(envelope.op)
    elif envelope.tag in _READERS:
        _READERS[envelope.tag](envelope.op)


def search(op: bytes) -> None:
    """Decoded and answered; at once and in steps it is the same."""
    request = ber.decode_search(op)
    with suppress(ValueError):
        dn.normal(request.base.decode())
    searcher = Searcher(lambda: SNAPSHOT, 1 << 16, lambda: 0.0)
    for _ in range(2):
        reply = searcher.answer(op)
        if isinstance(reply, Scan):
            while not reply.done:
                reply.step()
            continue
        reply.render(1)
        scan = searcher.scan(op)
        if isinstance(scan, Scan):
            found: list[bytes] = []
            while not scan.done:
                found += scan.step(2)
            assert (sorted(found), scan.reply_code) == (sorted(reply.entries), reply.code) or reply.code == 4


_DESCRIPTION = re.compile(r"[A-Za-z][A-Za-z0-9-]*")


def descriptions(filter: filters.Filter) -> Iterator[str]:
    if isinstance(filter, filters.And | filters.Or):
        for part in filter.parts:
            yield from descriptions(part)
    elif isinstance(filter, filters.Not):
        yield from descriptions(filter.part)
    elif isinstance(filter, filters.Extensible):
        yield filter.attribute or "cn"
        yield filter.rule or "caseExactMatch"
    else:
        yield filter.attribute


def filter_of(data: bytes) -> None:
    """A filter survives its own text."""
    try:
        decoded = ber.decode_filter(data)
    except (ber.BerError, ber.FilterTooLarge):
        return
    if not all(map(_DESCRIPTION.fullmatch, descriptions(decoded))):
        # on the wire they may be any characters, which cannot be told from the rest in a text
        return
    text = filters.to_text(decoded)
    again = filters.parse_text(text)
    assert filters.to_text(again) == text, text


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
