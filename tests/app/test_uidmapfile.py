"""uidmap.json and the numbers in the database: taken over once, never moved, written after every change."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from identree.app.posixids import PosixIds
from identree.app.statefiles import BadStateFile
from identree.app.uidmapfile import PREFIX, SET_ASIDE, UidMapFile, merge
from identree.core.errors import StorageUnavailable
from identree.directory.ids import IdMap
from identree.directory.source import Source
from identree.storage.interface import MOST_IDS
from tests.app.directoryworld import group, inline, people, started, user
from tests.fakes import memory_store


def ids(uids: Mapping[str, int], gids: Mapping[str, int] | None = None, next_uid: int = 1, next_gid: int = 1) -> IdMap:
    return IdMap.of(uids=uids, gids=gids or {}, next_uid=next_uid, next_gid=next_gid)


class MergeTests(SynchronousTestCase):
    def test_new(self) -> None:
        """What only the file knows is taken over, each kind by itself."""
        merged = merge(ids({"a": 1}, {"a": 7}), ids({"a": 1, "b": 2}, {"b": 1}))
        self.assertEqual((merged.new_uids, merged.new_gids, merged.contradictions), ({"b": 2}, {"b": 1}, ()))

    def test_moved(self) -> None:
        """An id with another number in the database keeps that one."""
        merged = merge(ids({"a": 1}), ids({"a": 2}))
        self.assertEqual(merged.new_uids, {})
        self.assertEqual(
            [str(item) for item in merged.contradictions], ["'a' has user number 2 there, and 1 in the database"]
        )

    def test_taken(self) -> None:
        """A number that is somebody else's in the database stays his."""
        merged = merge(ids({}, {"a": 1}), ids({}, {"b": 1}))
        self.assertEqual(merged.new_gids, {})
        self.assertEqual(
            [str(item) for item in merged.contradictions], ["'b' has group number 1 there, which is 'a''s"]
        )

    def test_counters(self) -> None:
        """Counters only grow, and over every number of the file, taken over or not."""
        merged = merge(ids({"a": 9}, next_gid=50), ids({"a": 30}, next_gid=40))
        self.assertEqual((merged.next_uid, merged.next_gid), (31, 50))

    def test_strange_ids(self) -> None:
        """Ids that no engine keeps are left behind."""
        self.assertEqual(merge(ids({}), ids({"a\0": 1, "": 2, "b": 3})).new_uids, {"b": 3})


class _World(SynchronousTestCase):
    def setUp(self) -> None:
        temporary = TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.root = Path(temporary.name)
        self.path = self.root / "uidmap.json"
        self.clock = Clock()
        self.store = memory_store(self.clock)
        self.addCleanup(lambda: self.successResultOf(started(self.store.stop())))

    def file(self) -> UidMapFile:
        return UidMapFile(str(self.path), uid_base=200_000, gid_base=300_000, now_unix=10_000, in_thread=inline)

    def ids(self) -> PosixIds:
        made = PosixIds(self.store, self.file(), self.clock, self.clock.seconds)
        self.successResultOf(started(made.start()))
        return made

    def uids(self, made: PosixIds, source: Source) -> dict[str, int]:
        return dict(self.successResultOf(started(made.numbers(source))).uids)

    def write(self, **content: object) -> None:
        self.path.write_text(json.dumps(content))
        self.path.chmod(0o600)


class UidMapFileTests(_World):
    def test_absent(self) -> None:
        """No file is a fresh map, and none is made before there is something to say."""
        file = self.file()
        assert file.content is not None
        self.assertEqual(
            (file.existed, file.content.map.next_uid, file.content.map.next_gid), (False, 200_000, 300_000)
        )
        self.assertEqual(os.listdir(self.root), [])

    def test_untrusted(self) -> None:
        """A file that must not be used stops the start, and the message names it."""
        (self.root / "real").write_text("{}")
        self.path.symlink_to("real")
        self.assertIn(str(self.path), str(self.assertRaises(BadStateFile, self.file)))
        self.path.unlink()
        self.path.write_text("{}")
        self.path.chmod(0o666)
        self.assertIn("chmod", str(self.assertRaises(BadStateFile, self.file)))

    def test_nonsense(self) -> None:
        """So does one without meaning; what to do about it stands in the message."""
        self.path.write_text("{nonsense")
        self.path.chmod(0o600)
        self.assertIn("backup", str(self.assertRaises(BadStateFile, self.file)))

    def test_export(self) -> None:
        """The file is replaced whole, for its owner's eyes only, in the form of deployed versions."""
        file = self.file()
        self.assertTrue(self.successResultOf(started(file.export(ids({"b": 2, "a": 1}, {"g": 5})))))
        self.assertEqual(
            self.path.read_text(),
            '{\n  "uids": {\n    "a": 1,\n    "b": 2\n  },\n  "gids": {\n    "g": 5\n  },\n'
            '  "nextUID": 3,\n  "nextGID": 6\n}',
        )
        self.assertEqual((self.path.stat().st_mode & 0o777, os.listdir(self.root)), (0o600, ["uidmap.json"]))

    def test_unchanged(self) -> None:
        """A file that says it already is not written."""
        map = ids({"a": 1})
        self.successResultOf(started(self.file().export(map)))
        before = self.path.stat().st_ino
        self.successResultOf(started(self.file().export(map)))
        self.assertEqual(self.path.stat().st_ino, before)

    def test_failure(self) -> None:
        """A failed export is no exception: it is remembered, and made good by the next one."""
        file = self.file()
        self.path.mkdir()
        map = ids({"a": 1})
        self.assertFalse(self.successResultOf(started(file.export(map))))
        self.assertIn(str(self.path), file.trouble)
        self.path.rmdir()
        self.assertTrue(self.successResultOf(started(file.export(map))))
        self.assertEqual(file.trouble, "")

    def test_leftovers(self) -> None:
        """What a writer left behind is removed, unless it may still be another replica's."""
        for name, age in (("old", 3601), ("young", 3599)):
            path = self.root / f"{PREFIX}{name}"
            path.touch()
            os.utime(path, (10_000 - age, 10_000 - age))
        self.file()
        self.assertEqual(os.listdir(self.root), [f"{PREFIX}young"])


class PosixIdsTests(_World):
    def test_fresh(self) -> None:
        """Counting begins at the bases: all people, then all groups, then all private groups."""
        made = self.ids()
        source = people("alice", "bob", groups=(group("ops"),))
        numbers = self.successResultOf(started(made.numbers(source)))
        self.assertEqual(dict(numbers.uids), {"id-alice": 200_000, "id-bob": 200_001})
        self.assertEqual(dict(numbers.gids), {"id-ops": 300_000, "id-alice": 300_001, "id-bob": 300_002})

    def test_again(self) -> None:
        """Nobody's number moves: not with the order, not when somebody is away, and not over a restart."""
        made = self.ids()
        self.uids(made, people("alice", "bob"))
        self.uids(made, people("carol"))
        expected = {"id-alice": 200_000, "id-bob": 200_001, "id-carol": 200_002, "id-dora": 200_003}
        self.assertEqual(self.uids(self.ids(), people("dora", "carol", "bob", "alice")), expected)

    def test_import(self) -> None:
        """The file's numbers and counters are taken over into a new database."""
        self.write(uids={"id-bob": 5000}, gids={"id-ops": 6000}, nextUID=7000, nextGID=7000)
        made = self.ids()
        self.assertEqual(self.uids(made, people("alice", "bob")), {"id-alice": 7000, "id-bob": 5000})
        self.path.unlink()
        self.assertEqual(self.uids(self.ids(), people("alice", "bob"))["id-bob"], 5000)

    def test_base_after_counter(self) -> None:
        """The configured base counts for nothing once there is a counter."""
        self.write(uids={}, gids={}, nextUID=5000, nextGID=5000)
        self.ids()
        self.path.unlink()
        self.assertEqual(self.uids(self.ids(), people("alice")), {"id-alice": 5000})

    def test_large_import(self) -> None:
        """A file of more ids than one transaction takes is taken over whole."""
        many = {f"u{n}": 100_000 + n for n in range(2 * MOST_IDS + 10)}
        self.write(uids=many, gids={}, nextUID=1, nextGID=1)
        made = self.ids()
        self.assertEqual(made.map.uids, many)
        self.assertEqual(self.uids(made, people("new"))["id-new"], 100_000 + len(many))

    def test_interrupted_import(self) -> None:
        """What an import that was cut off has not written is written by the next start."""
        many = {f"u{n}": 100_000 + n for n in range(2 * MOST_IDS)}
        self.write(uids=many, gids={"g": 9}, nextUID=1, nextGID=1)
        add, calls = self.store.add_posix_ids, 0

        async def dies(*arguments: object) -> int:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise StorageUnavailable("unreachable")
            return await add(*arguments)  # type: ignore[arg-type]

        self.store.add_posix_ids = dies  # type: ignore[assignment]
        made = PosixIds(self.store, self.file(), self.clock, self.clock.seconds)
        self.failureResultOf(started(made.start()), StorageUnavailable)
        # the same process tries again, with what it knows
        self.successResultOf(started(made.start()))
        self.assertEqual((made.map.uids, dict(made.map.gids)), (many, {"g": 9}))
        self.assertEqual(self.ids().map.uids, many)

    def test_restored_file(self) -> None:
        """A file from a backup adds what the database lacks; what it would move is reported, and the file kept."""
        self.uids(self.ids(), people("alice", "bob"))
        self.write(
            uids={"id-alice": 777, "id-carol": 200_001, "id-dora": 4000}, gids={}, nextUID=200_000, nextGID=300_000
        )
        before = self.path.read_bytes()
        made = self.ids()
        expected = {"id-alice": 200_000, "id-bob": 200_001, "id-carol": 200_002, "id-dora": 4000}
        self.assertEqual(self.uids(made, people("alice", "bob", "carol", "dora")), expected)
        self.successResultOf(started(made.export()))
        self.assertEqual(json.loads(self.path.read_text())["uids"], expected)
        self.assertEqual(Path(str(self.path) + SET_ASIDE).read_bytes(), before)

    def test_two(self) -> None:
        """Two replicas that give numbers in turns, neither knowing what the other did, never give one twice."""
        a, b = self.ids(), self.ids()
        self.uids(a, people("alice", "bob"))
        self.uids(b, people("carol", "bob"))
        self.uids(a, people("dora"))
        everybody = people("alice", "bob", "carol", "dora")
        self.assertEqual(self.uids(a, everybody), self.uids(b, everybody))
        self.assertEqual(sorted(self.uids(a, everybody).values()), [200_000, 200_001, 200_002, 200_003])

    def test_unwritten(self) -> None:
        """Numbers that the database did not take are nobody's."""
        made = self.ids()
        add = self.store.add_posix_ids

        async def broken(*arguments: object) -> int:
            raise StorageUnavailable("full")

        self.store.add_posix_ids = broken  # type: ignore[assignment]
        self.failureResultOf(started(made.numbers(people("alice"))), StorageUnavailable)
        self.assertEqual(dict(made.map.uids), {})
        self.store.add_posix_ids = add  # type: ignore[method-assign]
        self.assertEqual(self.uids(made, people("bob", "alice")), {"id-bob": 200_000, "id-alice": 200_001})

    def test_exhausted(self) -> None:
        """At the end of the numbers newcomers get none, and the others keep theirs."""
        self.write(uids={"id-alice": 4_294_967_293}, gids={}, nextUID=1, nextGID=1)
        made = self.ids()
        numbers = self.uids(made, Source(users=(user("alice"), user("bob"), user("carol"))))
        self.assertEqual(numbers, {"id-alice": 4_294_967_293, "id-bob": 4_294_967_294})
        self.assertEqual(self.uids(self.ids(), people("alice", "bob", "carol")), numbers)
