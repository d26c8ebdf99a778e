"""What every store must do with POSIX ids and the published directory (identree.storage.interface)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any

from identree.core.challenge import Live
from identree.storage.interface import MOST_IDS, MOST_PIECES, Conflict, DirectoryState, PosixCounter
from identree.storage.store import SqlStore
from tests.contracts.store import NOW, at, outcomes

STATE = DirectoryState(
    version=1, usn=1_800_000_000, manifest="{}", fetched_at=NOW, published_at=at(1), people=2, groups=1
)


class DirectoryContract:
    """Mixed into a twisted TestCase that provides ``open`` and sets ``store``."""

    store: SqlStore
    assertEqual: Any
    assertIsNone: Any
    assertRaises: Any

    @abstractmethod
    async def open(self, **options: Any) -> SqlStore: ...

    async def _ids(self, kind: str, after: tuple[int, int] = (0, 0), limit: int = 2000) -> list[tuple[str, int, int]]:
        found = await self.store.posix_ids(kind, after, limit)
        return [(row.source_id, row.number, row.revision) for row in found]

    async def _fails(self, kind: type[Exception], doing: Any) -> None:
        [result] = await outcomes([doing])
        self.assertEqual(type(result), kind)

    # -- POSIX ids ----------------------------------------------------------------------------------------------------
    async def test_no_ids(self) -> None:
        """A new database has neither counters nor ids."""
        self.assertIsNone(await self.store.posix_counter("uid"))
        self.assertEqual(await self._ids("uid"), [])

    async def test_ids(self) -> None:
        """Ids of both kinds stand apart, each with the revision that it came with."""
        self.assertEqual(await self.store.add_posix_ids("uid", [("b", 200_000), ("a", 200_001)], 0, 200_002), 1)
        self.assertEqual(await self.store.add_posix_ids("gid", [("b", 200_000)], 0, 200_001), 1)
        self.assertEqual(await self.store.add_posix_ids("uid", [("Ä'\\", 4_294_967_294)], 1, 4_294_967_295), 2)
        self.assertEqual(await self._ids("uid"), [("b", 200_000, 1), ("a", 200_001, 1), ("Ä'\\", 4_294_967_294, 2)])
        self.assertEqual(await self._ids("gid"), [("b", 200_000, 1)])
        self.assertEqual(await self.store.posix_counter("uid"), PosixCounter(next_number=4_294_967_295, revision=2))

    async def test_id_pages(self) -> None:
        """Pages follow one another without a gap, and later ids come after all earlier ones, whatever their number."""
        await self.store.add_posix_ids("uid", [("a", 5), ("b", 6), ("c", 7)], 0, 8)
        await self.store.add_posix_ids("uid", [("d", 1)], 1, 8)
        first = await self._ids("uid", limit=2)
        self.assertEqual(first, [("a", 5, 1), ("b", 6, 1)])
        self.assertEqual(await self._ids("uid", (1, 6)), [("c", 7, 1), ("d", 1, 2)])
        self.assertEqual(await self._ids("uid", (2, 1)), [])

    async def test_counter_conflict(self) -> None:
        """Whoever has not seen the latest ids writes none, neither first nor later; case of ids counts."""
        await self.store.add_posix_ids("uid", [("a", 1)], 0, 2)
        await self._fails(Conflict, self.store.add_posix_ids("uid", [("b", 1)], 0, 2))
        await self.store.add_posix_ids("uid", [("A", 2)], 1, 3)
        await self._fails(Conflict, self.store.add_posix_ids("uid", [("b", 2)], 1, 3))
        self.assertEqual(await self._ids("uid"), [("a", 1, 1), ("A", 2, 2)])

    async def test_counter_grows(self) -> None:
        """The counter is never set back."""
        await self.store.add_posix_ids("gid", [], 0, 500)
        await self.store.add_posix_ids("gid", [("a", 7)], 1, 8)
        self.assertEqual(await self.store.posix_counter("gid"), PosixCounter(next_number=500, revision=2))

    async def test_unique_numbers(self) -> None:
        """The database itself refuses to give a number or a source id twice; nothing of that transaction stays."""
        await self.store.add_posix_ids("uid", [("a", 1)], 0, 2)
        for ids in ([("x", 9), ("b", 1)], [("y", 9), ("a", 2)]):
            [result] = await outcomes([self.store.add_posix_ids("uid", ids, 1, 20)])
            self.assertEqual(isinstance(result, Exception), True)
        self.assertEqual(await self._ids("uid"), [("a", 1, 1)])
        self.assertEqual(await self.store.posix_counter("uid"), PosixCounter(next_number=2, revision=1))

    async def test_racing_ids(self) -> None:
        """Of several that saw the same state exactly one gives ids."""
        other = await self.open()
        results = await outcomes(
            [store.add_posix_ids("uid", [(f"{n}", 100)], 0, 101) for n, store in enumerate((self.store, other) * 3)]
        )
        self.assertEqual(sorted(type(result).__name__ for result in results), ["Conflict"] * 5 + ["int"])
        self.assertEqual(len(await self._ids("uid")), 1)

    async def test_most_ids(self) -> None:
        """A transaction takes as many ids as it may, and not one more."""
        await self._fails(ValueError, self.store.add_posix_ids("uid", [(str(n), n) for n in range(MOST_IDS + 1)], 0, 1))
        await self.store.add_posix_ids("uid", [(str(n), n + 1) for n in range(MOST_IDS)], 0, MOST_IDS + 1)
        self.assertEqual(len(await self._ids("uid")), MOST_IDS)

    # -- the directory ------------------------------------------------------------------------------------------------
    async def test_no_directory(self) -> None:
        """A new database has none, and nothing to confirm."""
        self.assertIsNone(await self.store.directory())
        await self._fails(Conflict, self.store.confirm_directory(0, NOW))
        self.assertEqual(await self.store.drop_directory_pieces([], 0, at(10_000)), 0)

    async def test_publish(self) -> None:
        """What was published is there, the first and every later version."""
        await self.store.publish_directory(STATE, 0)
        self.assertEqual(await self.store.directory(), STATE)
        later = replace(STATE, version=2, usn=STATE.usn + 1, manifest='{"x":1}', fetched_at=None, refusal="r")
        await self.store.publish_directory(later, 1)
        self.assertEqual(await self.store.directory(), later)

    async def test_publish_conflict(self) -> None:
        """A version follows the one before; change numbers never fall."""
        await self.store.publish_directory(STATE, 0)
        await self._fails(Conflict, self.store.publish_directory(STATE, 0))
        await self.store.publish_directory(replace(STATE, version=2), 1)
        await self._fails(Conflict, self.store.publish_directory(replace(STATE, version=2, manifest="lost"), 1))
        await self._fails(Conflict, self.store.publish_directory(replace(STATE, version=3, usn=STATE.usn - 1), 2))
        self.assertEqual(await self.store.directory(), replace(STATE, version=2))

    async def test_racing_publications(self) -> None:
        """Of several that follow the same version exactly one becomes the directory."""
        other = await self.open()
        results = await outcomes(
            [
                store.publish_directory(replace(STATE, manifest=str(n)), 0)
                for n, store in enumerate((self.store, other) * 3)
            ]
        )
        self.assertEqual([type(result) for result in results if result is not None], [Conflict] * 5)
        found = await self.store.directory()
        assert found is not None
        self.assertIsNone(results[int(found.manifest)])

    async def test_claim(self) -> None:
        """One gets the turn until its time is over; a clock that was set back keeps nobody from it."""
        self.assertFalse(await self.store.claim_directory(NOW, at(-5)))
        await self.store.publish_directory(STATE, 0)
        claimed = [await self.store.claim_directory(at(when), at(when - 5)) for when in (0, 0, 4, 5, 6, 3)]
        self.assertEqual(claimed, [True, False, False, True, False, True])

    async def test_confirm(self) -> None:
        """A confirmation moves only the time, forwards, and ends a refusal; of an old version it is none."""
        await self.store.publish_directory(STATE, 0)
        await self.store.refuse_directory(1, "too small")
        self.assertEqual(await self.store.directory(), replace(STATE, refusal="too small"))
        await self.store.confirm_directory(1, at(60))
        await self.store.confirm_directory(1, at(30))
        self.assertEqual(await self.store.directory(), replace(STATE, fetched_at=at(60)))
        await self._fails(Conflict, self.store.confirm_directory(2, at(90)))
        await self.store.refuse_directory(2, "of another version")
        self.assertEqual(await self.store.directory(), replace(STATE, fetched_at=at(60)))

    async def test_pieces(self) -> None:
        """Pieces come back as they were; those that do not exist are missing."""
        await self.store.save_directory_pieces({"a": "AA==", "b": "x" * 300_000}, NOW)
        await self.store.save_directory_pieces({"a": "AA=="}, NOW)
        self.assertEqual(await self.store.directory_pieces(["b", "nope", "a"]), {"a": "AA==", "b": "x" * 300_000})
        many = [str(n) for n in range(MOST_PIECES + 1)]
        await self._fails(ValueError, self.store.directory_pieces(many))
        await self._fails(ValueError, self.store.save_directory_pieces(dict.fromkeys(many, ""), NOW))

    async def test_dropped_pieces(self) -> None:
        """What is old and not needed goes; what is needed, young, or wanted again stays."""
        await self.store.save_directory_pieces({"needed": "1", "old": "2", "again": "3"}, NOW)
        await self.store.save_directory_pieces({"again": "3"}, at(3000))
        await self.store.save_directory_pieces({"young": "4"}, at(3000))
        await self.store.publish_directory(STATE, 0)
        self.assertEqual(await self.store.drop_directory_pieces(["needed"], 1, at(3600)), 0)
        self.assertEqual(await self.store.drop_directory_pieces(["needed"], 2, at(3601)), 0)
        self.assertEqual(await self.store.drop_directory_pieces(["needed"], 1, at(3601)), 1)
        found = await self.store.directory_pieces(["needed", "old", "again", "young"])
        self.assertEqual(sorted(found), ["again", "needed", "young"])

    async def test_publication_wakes_no_browser(self) -> None:
        """A publication is for other replicas; nobody of this process is woken by it."""
        heard: list[Live] = []
        self.store.subscribe(heard.append)
        await self.store.publish_directory(STATE, 0)
        self.assertEqual(heard, [])
