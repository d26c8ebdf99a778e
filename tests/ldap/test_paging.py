"""Simple paged results: cookies, pages, bounds."""

from itertools import count

from hypothesis import given
from hypothesis import strategies as st
from ldaptor.protocols import pureber
from twisted.trial.unittest import SynchronousTestCase

from identree.ldap import ber, paging
from identree.ldap.ber import SEARCH_DONE, BerError
from identree.ldap.paging import Answered, Cursor, Cursors, Page, PageRequest, only_page, page_control, page_request

OP = b"\x63the search"


class Steps:
    """A search with so many entries, given out in slices of one size."""

    base = "people"

    def __init__(self, entries: int, slice_size: int = 3, code: int = 0) -> None:
        self._ops = [b"\x64" + str(i).encode() for i in range(entries)]
        self._slice_size, self._code = slice_size, code
        self.done = False

    def step(self, limit: int | None = None) -> list[bytes]:
        size = self._slice_size if limit is None else min(limit, self._slice_size)
        given_out, self._ops = self._ops[:size], self._ops[size:]
        # found out only when it is looked for once more
        self.done = not given_out
        return given_out

    def done_op(self) -> bytes:
        return ber.search_done(self._code)


def cursors(**bounds: int) -> Cursors:
    numbers = count(1)
    return Cursors(lambda n: next(numbers).to_bytes(n, "big"), **bounds)


def cursor(owner: int = 1, entries: int = 10, version: int = 1) -> Cursor:
    return Cursor(owner, OP, Steps(entries), version)


def cookie_of(control: bytes) -> bytes:
    """The cookie in a control of ours, as ldaptor reads it."""
    outer, _ = pureber.berDecodeObject(pureber.BERDecoderContext(), control)
    value, _ = pureber.berDecodeObject(pureber.BERDecoderContext(), outer[1].value)
    assert outer[0].value == b"1.2.840.113556.1.4.319" and value[0].value == 0
    return bytes(value[1].value)


def work_off(page: Page) -> list[bytes]:
    entries: list[bytes] = []
    while not page.done:
        entries += page.step()
    return entries


class RequestTests(SynchronousTestCase):
    def test_read(self) -> None:
        """Size and cookie."""
        value = pureber.BERSequence([pureber.BERInteger(500), pureber.BEROctetString(b"c")]).toWire()
        self.assertEqual(page_request(value), PageRequest(500, b"c"))

    def test_bad(self) -> None:
        """No value, half a value, a negative size and bytes after it are refused."""
        for value in (
            None,
            b"",
            b"\x30\x00",
            b"\x30\x03\x02\x01\x05",
            b"\x30\x05\x02\x01\xff\x04\x00",
            b"\x30\x05\x02\x01\x05\x04\x00x",
        ):
            self.assertRaises(BerError, page_request, value)

    def test_answer(self) -> None:
        """The control of an answer has the cookie, and no estimate."""
        self.assertEqual(cookie_of(page_control(b"abc")), b"abc")


class OnlyPageTests(SynchronousTestCase):
    """What follows a search in its message and asks for nothing but a first page."""

    def size(self, *controls: bytes) -> int:
        return only_page(ber.tlv(0xA0, b"".join(controls)))

    def control(self, size: int, cookie: bytes = b"", critical: bool = False) -> bytes:
        return ber.control(paging.PAGED_RESULTS, ber.sequence(ber.integer(size), ber.octets(cookie)), critical)

    def test_size(self) -> None:
        """Critical or not, alone or beside a control that does not matter."""
        self.assertEqual((self.size(self.control(5)), self.size(self.control(7, critical=True))), (5, 7))
        self.assertEqual(self.size(ber.control(b"1.2.3"), self.control(9)), 9)

    def test_more(self) -> None:
        """Another page, no page, two of them, an unknown control that is critical."""
        self.assertEqual(self.size(self.control(5, b"c")), 0)
        self.assertEqual((self.size(), self.size(self.control(0))), (0, 0))
        self.assertEqual(self.size(self.control(5), self.control(5)), 0)
        self.assertEqual(self.size(self.control(5), ber.control(b"1.2.3", critical=True)), 0)

    def test_bad(self) -> None:
        """Anything damaged, and anything that is no controls."""
        whole = ber.tlv(0xA0, self.control(5))
        for bad in (b"", whole[:-1], whole + b"\x00", b"\xa1" + whole[1:], b"\xa0\x80" + whole[2:]):
            self.assertEqual(only_page(bad), 0)


class AnsweredTests(SynchronousTestCase):
    @given(st.integers(0, 700), st.integers(1, 400))
    def test_all(self, count: int, limit: int) -> None:
        """Every entry once and in order, in slices within the limit and the bound."""
        entries = [b"%d" % each for each in range(count)]
        answered = Answered(entries, b"done", "people")
        slices: list[list[bytes]] = []
        while not answered.done:
            slices.append(answered.step(limit))
        self.assertEqual([each for some in slices for each in some], entries)
        self.assertTrue(all(0 < len(some) <= min(limit, paging.ANSWERED_AT_ONCE) for some in slices))
        self.assertEqual(answered.done_op(), b"done")


class PageTests(SynchronousTestCase):
    @given(st.integers(0, 30), st.integers(1, 12), st.integers(1, 9))
    def test_all(self, entries: int, size: int, slice_size: int) -> None:
        """Page after page gives every entry once, in order, in full pages, and no page is empty but an only one."""
        kept = cursors()
        current: Cursor | None = Cursor(1, OP, Steps(entries, slice_size), 1)
        pages: list[list[bytes]] = []
        while current is not None:
            page = Page(current, size, kept)
            pages.append(work_off(page))
            cookie = cookie_of(page.control)
            current = kept.take(1, cookie, OP) if cookie else None
        self.assertEqual([op for page in pages for op in page], [b"\x64" + str(i).encode() for i in range(entries)])
        self.assertEqual([len(page) for page in pages[:-1]], [size] * (len(pages) - 1))
        self.assertTrue(pages[-1] or entries == 0)
        self.assertEqual(len(kept), 0)

    def test_final_code(self) -> None:
        """The last page ends as the search does, for instance with sizeLimitExceeded; those before with success."""
        kept = cursors()
        page = Page(Cursor(1, OP, Steps(3, code=4), 1), 2, kept)
        work_off(page)
        self.assertEqual(page.final, ber.search_done(0))
        found = kept.take(1, cookie_of(page.control), OP)
        assert found is not None
        last = Page(found, 2, kept)
        work_off(last)
        self.assertEqual((last.final[0], last.final), (SEARCH_DONE, ber.search_done(4)))


class CursorsTests(SynchronousTestCase):
    def test_once(self) -> None:
        """A cookie is good for one page."""
        kept = cursors()
        cookie = kept.keep(cursor())
        self.assertIsNotNone(kept.take(1, cookie, OP))
        self.assertIsNone(kept.take(1, cookie, OP))

    def test_other_connection(self) -> None:
        """Nobody goes on with another connection's search, nor ends it."""
        kept = cursors()
        cookie = kept.keep(cursor(owner=1))
        self.assertIsNone(kept.take(2, cookie, OP))
        self.assertIsNotNone(kept.take(1, cookie, OP))

    def test_other_search(self) -> None:
        """A search that was changed between two pages is not gone on with."""
        kept = cursors()
        cookie = kept.keep(cursor())
        self.assertIsNone(kept.take(1, cookie, OP + b"!"))

    def test_of_connection(self) -> None:
        """A connection that begins too many searches loses its oldest, nobody else's."""
        kept = cursors(of_connection=2)
        other = kept.keep(cursor(owner=2))
        own = [kept.keep(cursor()) for _ in range(3)]
        self.assertEqual([kept.take(1, cookie, OP) is not None for cookie in own], [False, True, True])
        self.assertIsNotNone(kept.take(2, other, OP))

    def test_in_all(self) -> None:
        """There are never more than the bound."""
        kept = cursors(in_all=3)
        first, *_ = (kept.keep(cursor(owner=i)) for i in range(4))
        self.assertEqual(len(kept), 3)
        self.assertIsNone(kept.take(0, first, OP))

    def test_dropped(self) -> None:
        """A connection's searches go with it."""
        kept = cursors()
        kept.keep(cursor(owner=1))
        kept.keep(cursor(owner=2))
        kept.drop(1)
        kept.drop(1)
        self.assertEqual(len(kept), 1)

    def test_old_snapshots(self) -> None:
        """Only so many old snapshots are kept alive; searches in older ones are forgotten."""
        kept = cursors(snapshots=2)
        cookies = [kept.keep(cursor(owner=i, version=i)) for i in range(4)]
        kept.snapshot_changed()
        self.assertEqual(
            [kept.take(i, cookie, OP) is not None for i, cookie in enumerate(cookies)], [False, False, True, True]
        )
