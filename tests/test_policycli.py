"""``identree policy`` and what it stands on: assertions and replay."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from identree import policycli
from identree.core.events import AutoApproved, ChallengeCreated, UserSignedOut
from identree.core.policy import Policies
from identree.core.policycheck import run
from identree.core.policyreplay import Asked, replay
from tests.app.world import now_result
from tests.fakes import memory_store

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
PROD = {"name": "prod", "match_hosts": ["db*"], "require_admin": True, "allowed_days": "Mon-Fri"}


def policies(*values: dict[str, Any]) -> Policies:
    return Policies.from_fields(list(values))


class CheckTests(SynchronousTestCase):
    def results(self, *tests: dict[str, Any], **more: Any) -> list[tuple[str, tuple[str, ...]]]:
        raw = json.dumps({"tests": list(tests), **more}).encode()
        return [(one.name, one.failures) for one in run(raw, policies(PROD), NOW)]

    def test_holds(self) -> None:
        """What is as it shall be has no failures; times and commands are taken into account."""
        test = {
            "name": "databases",
            "user": "alice",
            "host": "DB01",
            "at": "2026-03-01T12:00:00Z",
            "expect": {
                "policy": "prod",
                "require_admin": True,
                "window_ok": False,
                "may_not_approve": ["alice", {"user": "carol", "admin": True}],
            },
        }
        weekday = {
            **test,
            "at": "2026-03-02T12:00:00Z",
            "expect": {"may_approve": [{"user": "carol", "admin": True}], "max_grace": "", "approver_groups": []},
        }
        self.assertEqual(self.results(test, weekday), [("databases", ()), ("databases", ())])

    def test_fails(self) -> None:
        """What is not is said with both values, and why somebody may not."""
        expect = {
            "min_approvals": 2,
            "policy": "x",
            "may_approve": ["alice"],
            "may_not_approve": [{"user": "c", "admin": True}],
        }
        [(_, failures)] = self.results({"user": "alice", "host": "db01", "expect": expect})
        self.assertEqual(
            failures,
            (
                "min_approvals is 1, not 2",
                'policy is "prod", not "x"',
                "alice may not approve: admin approval required",
                "c may approve",
            ),
        )

    def test_own_policies(self) -> None:
        """A file may have the policies that it is about."""
        found = self.results({"user": "a", "host": "db01", "expect": {"policy": "mine"}}, policies=[{"name": "mine"}])
        self.assertEqual(found, [("test 1", ())])

    def test_refused(self) -> None:
        """What cannot be understood is refused; a misspelled expectation must not hold."""
        good = {"user": "a", "host": "b", "expect": {"policy": ""}}
        for tests in (
            [],
            [1],
            [{**good, "hst": "b"}],
            [{**good, "expect": {"polcy": ""}}],
            [{**good, "expect": {}}],
            [{**good, "at": "noon"}],
            [{**good, "expect": {"may_approve": "alice"}}],
            [{**good, "expect": {"may_approve": [{"name": "alice"}]}}],
        ):
            self.assertRaises(ValueError, run, json.dumps({"tests": tests}).encode(), policies(PROD), NOW)
        for raw in (b"", b"[]", b'{"test":[]}'):
            self.assertRaises(ValueError, run, raw, policies(PROD), NOW)
        self.assertRaises(ValueError, run, json.dumps({"tests": [good]}).encode(), None, NOW)


class ReplayTests(SynchronousTestCase):
    def test_differences(self) -> None:
        """What would have been different, counted and told; what would not is only counted as looked at."""
        asked = [
            Asked(at=NOW, username="alice", hostname="db01", code="1"),
            Asked(at=NOW + timedelta(days=5), username="alice", hostname="db02", code="2"),
            Asked(at=NOW, username="alice", hostname="web01", code="3"),
        ]
        found = replay(
            asked, policies(PROD), policies({**PROD, "min_approvals": 2, "allowed_days": ""}), lambda host: ""
        )
        self.assertEqual((found.requests, found.different), (3, 2))
        self.assertEqual(found.counts, (("approvals: 1 -> 2", 2), ("window: closed -> open", 1)))
        self.assertEqual([one.asked.code for one in found.shown], ["1", "2"])


class CommandTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        self.store = memory_store()
        self.settings: Any = type("Settings", (), {"policy_source": "database", "approval_policies_file": ""})()
        self.patch(policycli, "_with_store", lambda work: now_result(work(self.store, self.settings)))

    def file(self, value: object, name: str = "f.json") -> str:
        path = self.directory / name
        path.write_text(json.dumps(value))
        return str(path)

    def run_it(self, *words: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            status = policycli.main(words)
        return status, out.getvalue(), err.getvalue()

    def test_check(self) -> None:
        """It says what is probably a mistake; a bad file is status 2."""
        status, out, _ = self.run_it("check", self.file([PROD, {**PROD, "name": "b"}]))
        self.assertEqual(status, 0)
        self.assertIn("b: It never applies", out)
        self.assertIn("2 policies, 1 warnings", out)
        status, _, err = self.run_it("check", self.file([{"name": "x", "hosts": ["a"]}]))
        self.assertEqual(status, 2)
        self.assertIn("match_hosts", err)

    def test_test(self) -> None:
        """One line per test; status 1 when one fails."""
        test = {"user": "a", "host": "db01", "expect": {"policy": "prod"}}
        path = self.file({"tests": [test]})
        status, out, _ = self.run_it("test", path, "--policies", self.file([PROD], "p.json"))
        self.assertEqual((status, out.splitlines()[0]), (0, "ok  test 1"))
        status, out, _ = self.run_it("test", path)
        self.assertEqual((status, "FAILED  test 1" in out), (1, True))

    def test_import_export(self) -> None:
        """A file becomes a version, and comes back; the event waits for a server."""
        status, out, _ = self.run_it("import", self.file([PROD]))
        self.assertEqual((status, out[:9]), (0, "version 1"))
        status, out, _ = self.run_it("export")
        self.assertEqual(json.loads(out)["policies"][0]["name"], "prod")
        self.run_it("import", self.file([]))
        self.assertEqual(json.loads(self.run_it("export", "--version", "1")[1])["policies"][0]["name"], "prod")
        self.assertEqual(self.run_it("export", "--version", "9")[0], 1)
        self.assertEqual(len(self.run_it("history")[1].splitlines()), 2)
        self.assertEqual((self.store.events, now_result(self.store.take_outside_events())), ([], 2))

    def test_import_beside_a_file(self) -> None:
        """Where the file counts nothing is imported."""
        self.settings.policy_source = "file"
        self.assertEqual(self.run_it("import", self.file([PROD]))[0], 1)
        self.assertIsNone(now_result(self.store.policies()))

    def test_replay(self) -> None:
        """Past requests are asked again, those in grace too, other events and older ones not."""
        now = datetime.now(UTC)
        ask = {"username": "alice", "hostname": "db01"}
        now_result(
            self.store.record(
                [
                    ChallengeCreated(at=now - timedelta(days=40), code="0", **ask),
                    ChallengeCreated(at=now - timedelta(days=2), code="1", **ask),
                    AutoApproved(at=now - timedelta(days=1), code="2", **ask),
                    UserSignedOut(at=now, username="alice"),
                ]
            )
        )
        status, out, _ = self.run_it("replay", self.file([{"name": "p", "min_approvals": 2}]))
        self.assertEqual(status, 0)
        self.assertIn("2 requests of the last 30 days; 2 would have met something else", out)
        self.assertIn("approvals: 1 -> 2", out)
        self.assertIn("3 requests", self.run_it("replay", "--days=50", self.file([]))[1])

    def test_usage(self) -> None:
        """Words that are off are status 2, with the usage."""
        for words in ([], ["x"], ["check"], ["check", "a", "b"], ["replay", "--days", "0", "f"], ["export", "--x"]):
            status, _, err = self.run_it(*words)
            self.assertEqual(status, 2, words)
        self.assertIn("usage", err)
        self.assertEqual(self.run_it("--help")[0], 0)
        self.assertEqual(self.run_it("check", str(self.directory / "none"))[0], 2)
