"""Change numbers, and the traps that sssd sets."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.directory.draft import Draft, Kind, Stamp
from identree.directory.stamps import BUCKETS, DIGEST_BYTES, NONE, Restamped, Stamps, digest, restamp
from tests.directory.sources import run


def draft(key: str, *values: str, dn: str = "") -> Draft:
    return Draft(Kind.PERSON, key, dn or f"uid={key},dc=x", (("cn", tuple(value.encode() for value in values)),))


def stamped(
    drafts: list[Draft], last: Restamped | None = None, now: int = 0, before: list[Draft] | None = None
) -> Restamped:
    known, usn = (last.stamps, last.usn) if last else ({}, 0)
    return run(restamp(drafts, known, usn, now, before or ()))


class RestampTests(SynchronousTestCase):
    def test_first(self) -> None:
        """New entries get the time as their number, and were created then."""
        made = stamped([draft("a", "1"), draft("b", "1")], now=1000)
        self.assertEqual({(stamp.usn, stamp.created) for stamp in made.changed.values()}, {(1000, 1000)})
        self.assertEqual((made.usn, set(made.stamps)), (1000, {"a", "b"}))

    def test_unchanged(self) -> None:
        """Nothing changed, no number is used."""
        first = stamped([draft("a", "1")], now=1000)
        again = stamped([draft("a", "1")], first, now=2000)
        self.assertEqual((again.usn, again.changed, again.gone), (1000, {}, frozenset()))
        self.assertEqual(again.stamps["a"].usn, 1000)

    def test_one_changed(self) -> None:
        """Only what changed gets the new number; its creation stays."""
        first = stamped([draft("a", "1"), draft("b", "1")], now=1000)
        then = stamped([draft("a", "1"), draft("b", "2")], first, now=2000)
        self.assertEqual((then.stamps["a"].usn, then.stamps["b"].usn, then.stamps["b"].created), (1000, 2000, 1000))
        self.assertEqual(set(then.changed), {"b"})

    def test_two_in_a_second(self) -> None:
        """A second refresh in the same second has a greater number."""
        first = stamped([draft("a", "1")], now=1000)
        self.assertEqual(stamped([draft("a", "2")], first, now=1000).usn, 1001)

    def test_clock_goes_back(self) -> None:
        """The number never falls."""
        first = stamped([draft("a", "1")], now=1000)
        self.assertEqual(stamped([draft("a", "2")], first, now=10).usn, 1001)

    def test_rename(self) -> None:
        """Another DN is a change."""
        first = stamped([draft("a", "1")], now=1000)
        self.assertEqual(set(stamped([draft("a", "1", dn="uid=z,dc=x")], first, now=2000).changed), {"a"})

    def test_gone_and_back(self) -> None:
        """What is gone loses its stamp, and is new when it returns as it was."""
        first = stamped([draft("a", "1"), draft("b", "1")], now=1000)
        without = stamped([draft("b", "1")], first, now=2000)
        self.assertEqual((without.gone, set(without.stamps)), (frozenset({"a"}), {"b"}))
        back = stamped([draft("a", "1"), draft("b", "1")], without, now=3000)
        self.assertEqual((back.stamps["a"], back.stamps["b"].usn), (Stamp(3000, 3000, digest(draft("a", "1"))), 1000))

    def test_32_bits(self) -> None:
        """A clock beyond 32 bits is refused: sssd would wrap it to a low number and start over."""
        self.assertRaises(ValueError, stamped, [draft("a", "1")], None, 2**32)
        self.assertEqual(stamped([draft("a", "1")], now=2**32 - 1).usn, 2**32 - 1)

    @given(
        st.lists(
            st.tuples(
                st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("123")), unique_by=lambda pair: pair[0]),
                st.integers(0, 5),
            ),
            max_size=6,
        )
    )
    def test_high_water(self, refreshes: list[tuple[list[tuple[str, str]], int]]) -> None:
        """
        A client that asks for what is above the highest number it saw misses no change; and the objects of the last
        time only save work.
        """
        made, seen, before = Restamped(usn=0, stamps={}, changed={}, gone=frozenset()), 0, []
        shown: dict[str, bytes] = {}
        pool: dict[tuple[str, str], Draft] = {}
        for entries, now in refreshes:
            drafts = [pool.setdefault(entry, draft(*entry)) for entry in entries]
            plain = stamped(drafts, made, now)
            made = stamped(drafts, made, now, before)
            self.assertEqual(made, plain)
            before = drafts
            for item in drafts:
                stamp = made.stamps[item.key]
                if shown.get(item.key) != digest(item):
                    self.assertGreater(stamp.usn, seen)
                self.assertEqual(stamp.digest, digest(item))
            shown = {item.key: digest(item) for item in drafts}
            self.assertEqual(set(made.stamps), set(shown))
            seen = max(seen, made.usn)


class DigestTests(SynchronousTestCase):
    def test_length(self) -> None:
        """Sixteen bytes, as stored."""
        self.assertEqual(len(digest(draft("a", "1"))), DIGEST_BYTES)

    def test_borders(self) -> None:
        """Values, their order and their borders all count."""
        made = {digest(draft("a", *values)) for values in (("1", "2"), ("12",), ("2", "1"), ("1",), ("1", "", "2"))}
        self.assertEqual(len(made), 5)

    def test_key_does_not_count(self) -> None:
        """The key is ours; clients never see it."""
        self.assertEqual(digest(draft("a", "1", dn="x=y")), digest(draft("b", "1", dn="x=y")))

    def test_large(self) -> None:
        """An entry of very many values has a digest of all of them."""
        values = [str(number) for number in range(5000)]
        self.assertNotEqual(digest(draft("a", *values)), digest(draft("a", *values[:-1], "x")))
        self.assertEqual(digest(draft("a", *values)), digest(draft("a", *values)))


MANY = {f"person:{number}": Stamp(number, 1, b"x") for number in range(2000)}


class StampsTests(SynchronousTestCase):
    def test_mapping(self) -> None:
        """It is a mapping like the one that it was made of."""
        made = run(Stamps.of(MANY))
        self.assertEqual((dict(made), len(made)), (MANY, 2000))
        self.assertIn("person:7", made)
        self.assertNotIn("person:-1", made)
        self.assertIsNone(made.get("person:-1"))

    def test_followed(self) -> None:
        """What came, changed and went shows in the next one only, and all other buckets are shared."""
        before = run(Stamps.of(MANY))
        after = run(before.followed({"person:7": Stamp(5, 5, b"y"), "new": Stamp(5, 5, b"y")}, {"person:8"}))
        self.assertEqual(dict(before), MANY)
        wanted = {**MANY, "person:7": Stamp(5, 5, b"y"), "new": Stamp(5, 5, b"y")}
        del wanted["person:8"]
        self.assertEqual(dict(after), wanted)
        shared = sum(one is other for one, other in zip(before.buckets, after.buckets, strict=True))
        self.assertGreaterEqual(shared, BUCKETS - 3)

    def test_differing(self) -> None:
        """What differs is told, up to the number that is asked for."""
        before = run(Stamps.of(MANY))
        after = run(before.followed({"person:7": Stamp(5, 5, b"y"), "new": Stamp(5, 5, b"y")}))
        self.assertEqual(run(after.differing(before, 10)), {"person:7", "new"})
        self.assertIsNone(run(before.differing(NONE, 10)))
