"""The policies in force: where they come from, who changes them, what a request would meet."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from identree.app.policies import DATABASE, FILE, PolicyBook, UnknownPolicy, preview_in_full, preview_json
from identree.app.statefiles import BadStateFile
from identree.core.challenge import Live
from identree.core.errors import Forbidden, Invalid, PoliciesChanged, PoliciesFromFile
from identree.core.policy import Policies
from identree.core.verdict import Approver
from tests.app.world import World, now_result


async def at_once(function: Callable[[], object]) -> object:
    return function()


class BookCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.directory)
        self.path = Path(self.directory, "approval-policies.json")
        self.carol, self.alice = self.world.caller("carol", "admin"), self.world.caller("alice")
        self.roster: list[Approver] = []
        self.trouble: list[bool] = []

    def write(self, *policies: dict[str, Any]) -> None:
        self.path.write_text(json.dumps({"policies": list(policies)}))
        self.path.chmod(0o600)
        # another file even within the clock's grain
        os.utime(self.path, ns=(0, len(self.trouble) * 10**9 + self.path.stat().st_mtime_ns % 10**6 + 1))

    def book(self, source: str = DATABASE) -> PolicyBook:
        book = PolicyBook(
            store=self.world.store,
            source=source,
            path=str(self.path),
            now=self.world.now,
            in_thread=at_once,
            journal=self.world.journal,
            group=lambda hostname: "prod" if hostname.startswith("db") else "",
            roster=lambda groups: self.roster,
            trouble=self.trouble.append,
        )
        now_result(book.load())
        return book

    def names(self, book: PolicyBook) -> list[str]:
        return [policy.name for policy in book().in_written_order]


class SourceTests(BookCase):
    def test_nothing(self) -> None:
        """Without a file and without saved ones there are none."""
        book = self.book()
        self.assertEqual((len(book()), book().version, book.editable), (0, 0, True))

    def test_taken_over(self) -> None:
        """A policy file is taken over once, as the first version; later edits of it do not count."""
        self.write({"name": "prod", "match_hosts": ["db*"], "require_admin": True})
        book = self.book()
        self.assertEqual((self.names(book), book().version), (["prod"], 1))
        self.assertEqual(self.world.store.events, ["config_changed"])
        self.write({"name": "other"}, {"name": "more"})
        now_result(book.refresh())
        self.assertEqual((self.names(book), self.names(self.book())), (["prod"], ["prod"]))
        self.assertEqual(self.world.store.events, ["config_changed"])
        sight = now_result(book.sight(self.carol))
        self.assertEqual([(one.version, one.author) for one in sight.history], [(1, "file")])

    def test_bad_file(self) -> None:
        """A file that cannot be understood stops the start in both modes, and is not taken for none."""
        self.path.write_text('{"policies": [{"name": "a", "allowed_hours": "24:00-1:00"}]}')
        self.path.chmod(0o600)
        for source in (DATABASE, FILE):
            e = self.assertRaises(BadStateFile, self.book, source)
            self.assertIn("24:00", str(e))

    def test_bad_document(self) -> None:
        """What is stored and cannot be understood stops the start; while running, the last good one stays in force."""
        book = self.book()
        now_result(book.add(self.carol, {"name": "a"}))
        now_result(self.world.store.save_policies("{", seen=1, author="x", note="", now=self.world.now()))
        now_result(book.refresh())
        self.assertEqual((self.names(book), self.trouble[-1]), (["a"], True))
        self.assertTrue(now_result(book.sight(self.carol)).problem)
        self.assertRaises(PoliciesChanged, now_result, book.add(self.carol, {"name": "b"}))
        self.assertRaises(ValueError, self.book)
        now_result(
            self.world.store.save_policies(
                Policies.from_fields([{"name": "c"}]).to_json(), seen=2, author="x", note="", now=self.world.now()
            )
        )
        now_result(book.refresh())
        self.assertEqual((self.names(book), self.trouble[-1]), (["c"], False))

    def test_file_counts(self) -> None:
        """With the setting the file is authoritative: it is followed, and nothing can be changed here."""
        self.write({"name": "a"})
        book = self.book(FILE)
        self.trouble.append(True)
        self.write({"name": "b"})
        now_result(book.refresh())
        self.assertEqual((self.names(book), book.editable), (["b"], False))
        for attempt in (
            book.add(self.carol, {"name": "c"}),
            book.delete(self.carol, "b"),
            book.import_document(self.carol, b"[]"),
            book.revert(self.carol, 1),
        ):
            self.assertRaises(PoliciesFromFile, now_result, attempt)
        self.path.write_text("{")
        now_result(book.refresh())
        self.assertEqual(self.names(book), ["b"])
        self.assertIsNone(now_result(self.world.store.policies()))

    def test_other_replica(self) -> None:
        """What another process saves counts as soon as it is told."""
        one, two = self.book(), self.book()
        self.world.store.subscribe(two.heard)
        now_result(one.add(self.carol, {"name": "a"}))
        self.assertEqual((self.names(two), two().version), (["a"], 1))
        two.heard(Live(event="challenge_created", username="alice"))
        self.assertEqual(self.names(two), ["a"])


class ChangeTests(BookCase):
    def test_changes(self) -> None:
        """Adding, changing, moving and deleting each make a version, with an event that names the policy."""
        book = self.book()
        now_result(book.add(self.carol, {"name": "a", "min_approvals": 2}))
        now_result(book.add(self.carol, {"name": "b"}))
        now_result(book.add(self.carol, {"name": "c"}))
        now_result(book.move(self.carol, "c", 0))
        now_result(book.update(self.carol, "a", {"name": "aa", "require_admin": True}))
        now_result(book.delete(self.carol, "b"))
        self.assertEqual((self.names(book), book().version), (["c", "aa"], 6))
        changed = book().get("aa")
        assert changed is not None
        self.assertEqual((changed.require_admin, changed.min_approvals), (True, 1))
        told = [json.loads(record.plain) for record in self.world.store.log.records]
        self.assertEqual(
            [(one["username"], one["actor"], one["reason"]) for one in told],
            [
                ("carol", "policy_added", "a"),
                ("carol", "policy_added", "b"),
                ("carol", "policy_added", "c"),
                ("carol", "policies_reordered", "c"),
                ("carol", "policy_updated", "aa"),
                ("carol", "policy_deleted", "b"),
            ],
        )

    def test_refused(self) -> None:
        """What cannot be understood, or is there already, changes nothing and says what would be right."""
        book = self.book()
        now_result(book.add(self.carol, {"name": "a"}))
        for attempt, text in (
            (book.add(self.carol, {"name": "a"}), "already exists"),
            (book.add(self.carol, {"name": "b", "allowed_hours": "9-5"}), "09:00-17:00"),
            (book.add(self.carol, {"name": "b", "time_zone": "Berlin"}), "time zone"),
            (book.update(self.carol, "a", {"name": "a", "match_hosts": ["[a"]}), "match_hosts"),
            (book.import_document(self.carol, b"{"), "not JSON"),
            (book.import_document(self.carol, b" " * (5 << 20)), "larger"),
        ):
            self.assertIn(text, str(self.assertRaises(Invalid, now_result, attempt)))
        for unknown in (book.delete(self.carol, "x"), book.move(self.carol, "x", 0), book.revert(self.carol, 9)):
            self.assertRaises(UnknownPolicy, now_result, unknown)
        self.assertEqual(book().version, 1)

    def test_rename_onto_another(self) -> None:
        """A policy does not get the name of another one."""
        book = self.book()
        for name in ("a", "b"):
            now_result(book.add(self.carol, {"name": name}))
        self.assertRaises(Invalid, now_result, book.update(self.carol, "a", {"name": "b"}))

    def test_seen_version(self) -> None:
        """Who has looked at an older version changes nothing; who looked at none works on the newest."""
        book, other = self.book(), self.book()
        now_result(book.add(self.carol, {"name": "a"}, seen=0))
        self.assertRaises(PoliciesChanged, now_result, other.add(self.carol, {"name": "b"}, seen=0))
        now_result(other.add(self.carol, {"name": "b"}))
        now_result(book.delete(self.carol, "a", seen=2))
        self.assertEqual(self.names(book), ["b"])

    def test_only_administrators(self) -> None:
        """Nobody else changes anything or sees the list."""
        book = self.book()
        for attempt in (
            book.add(self.alice, {"name": "a"}),
            book.update(self.alice, "a", {"name": "a"}),
            book.delete(self.alice, "a"),
            book.move(self.alice, "a", 0),
            book.import_document(self.alice, b"[]"),
            book.revert(self.alice, 1),
            book.sight(self.alice),
            book.version(self.alice, 1),
        ):
            self.assertRaises(Forbidden, now_result, attempt)
        self.assertEqual(self.world.store.events, [])

    def test_import_and_revert(self) -> None:
        """A file takes the place of everything; an older version comes back as a new one."""
        book = self.book()
        now_result(book.add(self.carol, {"name": "a"}))
        self.assertEqual(now_result(book.import_document(self.carol, b'[{"name": "x"}, {"name": "y"}]')), 2)
        self.assertEqual(self.names(book), ["x", "y"])
        now_result(book.revert(self.carol, 1))
        self.assertEqual((self.names(book), book().version), (["a"], 3))
        self.assertEqual(json.loads(now_result(book.version(self.carol, 2)).document)["policies"][0]["name"], "x")

    def test_gone_while_asked(self) -> None:
        """A caller who goes away leaves a whole version or none."""
        book = self.book()
        work = Deferred.fromCoroutine(book.add(self.carol, {"name": "a"}))
        work.cancel()
        self.assertEqual(self.names(self.book()), ["a"])


class PreviewTests(BookCase):
    def test_contract(self) -> None:
        """The keys of the contract: five always, the others when they say something."""
        book = self.book()
        self.assertEqual(
            preview_json(book.preview("alice", "web01")),
            {
                "auto_approve_grace": True,
                "min_approvals": 1,
                "policy_name": "",
                "require_admin": False,
                "time_window_ok": True,
            },
        )
        now_result(
            book.add(
                self.carol,
                {
                    "name": "prod",
                    "match_host_groups": ["prod"],
                    "require_admin": True,
                    "allowed_hours": "09:00-09:00",
                    "notify_channels": ["ops"],
                    "require_fresh_oidc": "5m",
                    "break_glass_bypass": True,
                },
            )
        )
        self.assertEqual(
            preview_json(book.preview("alice", "db01")),
            {
                "allowed_window": "09:00-09:00",
                "auto_approve_grace": False,
                "break_glass_bypass": True,
                "host_group": "prod",
                "min_approvals": 1,
                "notify_channels": ["ops"],
                "policy_name": "prod",
                "require_admin": True,
                "require_fresh_oidc": "5m0s",
                "time_window_ok": False,
            },
        )

    def test_who(self) -> None:
        """Who could approve, and what stands against the others."""
        self.roster = [
            Approver(username="alice", is_admin=False, groups=frozenset({"dba"})),
            Approver(username="carol", is_admin=True),
            Approver(username="dora", is_admin=False, groups=frozenset({"dba"})),
        ]
        draft = Policies.from_fields(
            [{"name": "p", "approver_groups": ["dba"], "forbid_self_approval": True, "allowed_hours": "1:00-1:01"}]
        )
        book = self.book()
        inside = self.world.now().replace(hour=1, minute=0)
        preview = book.preview("alice", "db01", at=inside, draft=draft)
        self.assertEqual(
            preview.people, (("alice", "self_approval_forbidden"), ("carol", "not_an_approver"), ("dora", ""))
        )
        late = book.preview("alice", "db01", at=inside + timedelta(minutes=1), draft=draft)
        self.assertEqual(dict(late.people or ())["dora"], "outside_approval_window")
        full = preview_in_full(preview)
        self.assertEqual(full["because"], [["everything", ""]])
        self.assertEqual(full["at"], "2026-01-02T01:00:05Z")
        self.assertIn({"username": "dora", "may": True, "why_not": ""}, full["who"])  # type: ignore[arg-type]

    def test_nobody_known(self) -> None:
        """Without a directory nobody is named."""
        self.assertIsNone(self.book().preview("alice", "web01").people)

    def test_requester_outside_the_roster(self) -> None:
        """The requester is among those who could approve, also when neither administrator nor approver."""
        self.roster = [Approver(username="carol", is_admin=True)]
        self.assertEqual(self.book().preview("alice", "web01").people, (("alice", ""), ("carol", "")))

    def test_many(self) -> None:
        """Of many a bounded number is named, the others are counted."""
        self.roster = [Approver(username=f"a{number:03}", is_admin=True) for number in range(80)]
        preview = self.book().preview("alice", "web01")
        self.assertEqual((len(preview.people or ()), preview.more), (50, 31))
