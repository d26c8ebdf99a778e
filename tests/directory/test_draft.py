"""Drafts keep their content as it is sent."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.directory.draft import FEW_VALUES, Attributes, Draft, Kind
from identree.directory.encoding import partial_attribute
from tests.directory.sources import run

NAMES = ("objectClass", "cn", "memberUid", "description")
VALUES = st.one_of(
    st.lists(st.binary(max_size=8), min_size=1, max_size=3),
    st.sampled_from([120, 130, 250, 260, 999, 1000, 70_000]).map(lambda size: [b"x" * size]),
    st.sampled_from([FEW_VALUES, FEW_VALUES + 1, 5000]).map(lambda count: [b"%d" % each for each in range(count)]),
)
ATTRIBUTES = st.dictionaries(st.sampled_from(NAMES), VALUES.map(tuple)).map(lambda found: tuple(found.items()))
DNS = st.sampled_from(["", "cn=x", "cn=" + "y" * 125, "cn=\u00fc", "cn=" + "z" * 300])


def draft(attributes: Attributes, dn: str = "cn=x") -> Draft:
    return Draft(Kind.GROUP, "group:1", dn, attributes)


class DraftTests(SynchronousTestCase):
    @given(ATTRIBUTES, DNS)
    def test_there_and_back(self, attributes: Attributes, dn: str) -> None:
        """What went in is what comes out, before and after the last of it is encoded."""
        made = draft(attributes, dn)
        self.assertEqual((made.dn, made.attributes), (dn, attributes))
        run(made.encoding())
        self.assertEqual((made.dn, made.attributes), (dn, attributes))

    @given(ATTRIBUTES)
    def test_encoded(self, attributes: Attributes) -> None:
        """Each attribute is encoded as a PartialAttribute."""
        made = draft(attributes)
        run(made.encoding())
        self.assertEqual(list(made.pieces), [partial_attribute(name.encode(), values) for name, values in attributes])

    @given(ATTRIBUTES, ATTRIBUTES)
    def test_equal(self, one: Attributes, other: Attributes) -> None:
        """Drafts are equal when their contents are, encoded or not."""
        left, right, encoded = draft(one), draft(other), draft(one)
        run(encoded.encoding())
        self.assertEqual(left == right, one == other)
        self.assertEqual((left, hash(left)), (encoded, hash(encoded)))

    def test_another(self) -> None:
        """Another name or key is another draft."""
        values = (("cn", (b"x",)),)
        self.assertNotEqual(draft(values), draft(values, "cn=y"))
        self.assertNotEqual(draft(values), Draft(Kind.GROUP, "group:2", "cn=x", values))

    def test_shared(self) -> None:
        """The entry's longer tuple serves the draft, whose content stays the same."""
        made = draft((("cn", (b"x",)),))
        made.share((*made.pieces, b"more"))
        self.assertEqual((made, len(made.pieces)), (draft((("cn", (b"x",)),)), 1))

    def test_steps(self) -> None:
        """Very many values are encoded in steps."""
        made = draft((("memberUid", tuple(b"%d" % each for each in range(50_000))),))
        self.assertGreater(sum(1 for _ in made.encoding()), 20)
        self.assertEqual(sum(1 for _ in made.encoding()), 0)
