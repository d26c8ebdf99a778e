"""POSIX numbers: never moved, never given twice."""

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.directory.ids import FILE_LIMIT, RESERVED, TOP, IdMap, Parsed, dump, parse
from identree.directory.source import Source
from tests.directory.sources import fresh_map, group, numbered, run, source, sources, user


def read(text: str) -> Parsed:
    return parse(text.encode(), uid_base=200_000, gid_base=300_000)


class AllocationTests(SynchronousTestCase):
    def test_order(self) -> None:
        """All people's uids, then groups' gids, then private groups' gids; two series."""
        ids = numbered(fresh_map(), source(user("b"), user("a"), group("ops"), group("web")))
        self.assertEqual(ids.uids, {"u-b": 200_000, "u-a": 200_001})
        self.assertEqual(ids.gids, {"g-ops": 200_000, "g-web": 200_001, "u-b": 200_002, "u-a": 200_003})
        self.assertEqual((ids.next_uid, ids.next_gid), (200_002, 200_004))

    def test_known(self) -> None:
        """Who has numbers keeps them, and nothing is to be stored."""
        of = source(user("a"), group("ops"))
        ids = numbered(fresh_map(), of)
        allocation = run(ids.allocate(of))
        self.assertTrue(allocation.empty)
        self.assertIs(ids.with_allocation(allocation), ids)

    def test_unserved_names(self) -> None:
        """People whose names are not served count too, as they always did."""
        ids = numbered(fresh_map(), source(user("root"), user("a@b"), user("alice")))
        self.assertEqual(ids.uids["u-alice"], 200_002)

    def test_return(self) -> None:
        """Who comes back has the old number, and who came meanwhile another."""
        ids = numbered(fresh_map(), source(user("a")))
        ids = numbered(ids, source(user("b")))
        ids = numbered(ids, source(user("a"), user("b")))
        self.assertEqual(ids.uids, {"u-a": 200_000, "u-b": 200_001})

    def test_reserved(self) -> None:
        """Numbers that mean nobody are passed over."""
        ids = IdMap.of(uids={}, gids={}, next_uid=65_533, next_gid=65_534)
        ids = numbered(ids, source(user("a"), user("b")))
        self.assertEqual((list(ids.uids.values()), list(ids.gids.values())), ([65_533, 65_536], [65_536, 65_537]))

    def test_exhausted(self) -> None:
        """At the end of a series there is no number, and no wrap."""
        ids = IdMap.of(uids={}, gids={}, next_uid=TOP, next_gid=5)
        allocation = run(ids.allocate(source(user("a"), user("b"))))
        self.assertEqual((allocation.new_uids, allocation.exhausted), ({"u-a": TOP}, ("u-b",)))
        later = ids.with_allocation(allocation)
        self.assertEqual(run(later.allocate(source(user("c")))).exhausted, ("u-c",))

    def test_foreign_allocation(self) -> None:
        """An allocation from another state of the map is refused: it could move somebody."""
        of = source(user("a"))
        allocation = run(fresh_map().allocate(of))
        self.assertRaises(ValueError, numbered(fresh_map(), of).with_allocation, allocation)

    @given(st.lists(sources(), max_size=6))
    def test_never_moved_never_reused(self, refreshes: list[Source]) -> None:
        """Under any sequence of refreshes, with the file written and read between, numbers stay and are unique."""
        ids = fresh_map()
        for of in refreshes:
            before = ids
            ids = numbered(ids, of)
            for old, new in ((before.uids, ids.uids), (before.gids, ids.gids)):
                self.assertEqual({id: new[id] for id in old}, dict(old))
                self.assertEqual(len(set(new.values())), len(new))
                self.assertTrue(all(number >= max(old.values(), default=0) for id, number in new.items()
                                    if id not in old))  # fmt: skip
            ids = parse(dump(ids), uid_base=1, gid_base=1).map


class FileTests(SynchronousTestCase):
    def test_bytes(self) -> None:
        """The format of the deployed servers, byte for byte."""
        ids = IdMap.of(uids={"b": 200_001, "a": 200_000}, gids={}, next_uid=200_002, next_gid=200_000)
        self.assertEqual(
            dump(ids),
            b'{\n  "uids": {\n    "a": 200000,\n    "b": 200001\n  },\n  "gids": {},\n'
            b'  "nextUID": 200002,\n  "nextGID": 200000\n}',
        )

    @given(
        st.dictionaries(st.text(), st.integers(1, TOP), max_size=5),
        st.dictionaries(st.text(), st.integers(1, TOP), max_size=5),
    )
    def test_like_json(self, uids: dict[str, int], gids: dict[str, int]) -> None:
        """It is what the standard encoder writes, whatever the ids."""
        ids = IdMap.of(uids=uids, gids=gids, next_uid=1, next_gid=1)
        document = {
            "uids": dict(sorted(uids.items())),
            "gids": dict(sorted(gids.items())),
            "nextUID": ids.next_uid,
            "nextGID": ids.next_gid,
        }
        expected = json.dumps(document, indent=2, ensure_ascii=False)
        self.assertEqual(dump(ids), expected.encode("utf-8", "surrogatepass"))

    def test_absent(self) -> None:
        """No file is a fresh map at the bases; an empty object and null likewise."""
        for raw in (None, b"{}", b"null", b'{"uids":null,"gids":null}'):
            ids = parse(raw, uid_base=1000, gid_base=2000).map
            self.assertEqual((ids.uids, ids.gids, ids.next_uid, ids.next_gid), ({}, {}, 1000, 2000))

    def test_vector(self) -> None:
        """Numbers out of range are dropped, and the counter rises above what is kept."""
        ids = read('{"uids":{"n":-1,"z":0,"h":9999999999,"good":300000},"nextUID":100000}').map
        self.assertEqual(ids.uids, {"good": 300_000})
        self.assertEqual(numbered(ids, source(user("new"))).uids["u-new"], 300_001)

    def test_counter_out_of_range(self) -> None:
        """Such a counter begins at the base; one in range counts, whatever the base."""
        self.assertEqual(read('{"nextUID":0,"nextGID":4294967295}').map.next_uid, 200_000)
        self.assertEqual(read('{"nextUID":0,"nextGID":4294967295}').map.next_gid, 300_000)
        self.assertEqual(read('{"nextUID":7}').map.next_uid, 7)

    def test_clash(self) -> None:
        """The first id of two keeps the number; the other is told, and gets one that nobody has."""
        parsed = read('{"uids":{"a":200005,"b":200005},"gids":{"a":200005},"nextUID":200000}')
        self.assertEqual(parsed.map.uids, {"a": 200_005})
        [clash] = parsed.clashes
        self.assertEqual((clash.space, clash.kept, clash.dropped), ("uids", "a", "b"))
        self.assertIn("200005", clash.text())
        self.assertEqual(numbered(parsed.map, source(user("x", id="b"))).uids["b"], 200_006)

    def test_reserved_number_stays(self) -> None:
        """A number never moves, not even nobody's; it is told."""
        parsed = read('{"uids":{"a":65534}}')
        self.assertEqual((parsed.map.uids, parsed.reserved), ({"a": 65_534}, ("a",)))
        self.assertIn(65_534, RESERVED)

    def test_bad(self) -> None:
        """What the deployed servers could not have written is refused, with the place."""
        for text, part in (
            ("[]", "object"),
            ("{", "JSON"),
            ('{"uids":[]}', "uids"),
            ('{"gids":{"a":"5"}}', "'a'"),
            ('{"uids":{"a":true}}', "'a'"),
            ('{"uids":{"a":1.5}}', "'a'"),
            ('{"nextGID":"x"}', "nextGID"),
            ("[" * 100_000, "JSON"),
        ):
            self.assertIn(part, str(self.assertRaises(ValueError, read, text)))
        self.assertRaises(ValueError, parse, b"\xff", uid_base=1, gid_base=1)
        self.assertRaises(ValueError, parse, b" " * (FILE_LIMIT + 1), uid_base=1, gid_base=1)
