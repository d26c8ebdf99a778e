"""Approval policies: forms, preview, the page (spec/http-api sections 9.2 and 11, spec/notifications-and-policy 7)."""

from __future__ import annotations

import json
from urllib.parse import unquote

from tests.web.house import SECRET, result
from tests.web.houses import HouseCase
from tests.web.test_render import Document

PAGE = "/admin/policies"


class FormTests(HouseCase):
    def add(self, **fields: str) -> str:
        return self.flash(self.form("/api/policies/add", **{"name": "prod", **fields}), PAGE)

    def names(self) -> list[str]:
        return [policy.name for policy in self.house.book().in_written_order]

    def test_contract(self) -> None:
        """The fields of deployed pages: lists by commas, ticks as ``on`` or ``true``, no number counts 1."""
        fields = {
            "match_hosts": " *.prod , db? ,",
            "match_host_groups": "a",
            "match_users": "alice",
            "require_admin": "on",
            "auto_approve_grace": "true",
            "min_approvals": "x",
            "allowed_hours": "09:00-17:00",
            "allowed_days": "Mon-Fri",
            "notify_channels": "ops",
        }
        self.assertEqual(self.add(**fields), "policy_added:prod")
        policy = self.house.book().get("prod")
        assert policy is not None
        self.assertEqual(
            policy.fields(),
            {
                "name": "prod",
                "match_host_groups": ["a"],
                "match_hosts": ["*.prod", "db?"],
                "match_users": ["alice"],
                "require_admin": True,
                "min_approvals": 1,
                "auto_approve_grace": True,
                "allowed_hours": "09:00-17:00",
                "allowed_days": "Mon-Fri",
                "notify_channels": ["ops"],
            },
        )
        told = self.events()[-1]
        self.assertEqual(
            [told[name] for name in ("event", "username", "actor", "reason")],
            ["config_changed", "carol", "policy_added", "prod"],
        )

    def test_ours(self) -> None:
        """The fields that deployed pages do not have."""
        self.add(
            match_commands="ls *",
            unknown_command="no_match",
            time_zone="Europe/Berlin",
            require_fresh_oidc="5m",
            forbid_self_approval="on",
            approver_groups="dba, ops",
            max_grace="10m",
            priority="-3",
            description="why",
            min_approvals="3",
        )
        policy = self.house.book().get("prod")
        assert policy is not None
        self.assertEqual((policy.min_approvals, policy.priority, policy.approver_groups), (3, -3, ("dba", "ops")))
        self.assertEqual(policy.written["unknown_command"], "no_match")

    def test_refused(self) -> None:
        """What cannot be understood is said on the page, commas and all, and nothing is changed."""
        for fields, words in (
            ({"name": "Prod"}, "policy name must be"),
            ({"name": ""}, "policy name must be"),
            ({"name": "a\n"}, ""),
            ({"match_hosts": "[a"}, "match_hosts"),
            ({"allowed_hours": "24:00-1:00"}, "24:00"),
            ({"allowed_days": "Mo"}, "Mon-Fri or Sat,Sun"),
            ({"time_zone": "Berlin"}, "time zone"),
            ({"require_fresh_oidc": "soon"}, "require_fresh_oidc"),
            ({"priority": "high"}, "priority"),
        ):
            flash = self.add(**fields)
            if words:
                self.assertTrue(flash.startswith("policy_error:"), flash)
                self.assertNotIn(",", flash)
                self.assertIn(words, unquote(flash))
        self.assertIn("already exists", unquote(self.add() and self.add()))

    def test_strangers(self) -> None:
        """Who is no administrator gets a plain 403, and nothing happens."""
        for path in ("add", "update", "delete", "move", "import", "revert"):
            answer = self.form(f"/api/policies/{path}", "alice", "user", name="prod")
            self.assertEqual((answer.code, answer.text), (403, "forbidden\n"))
        self.assertEqual(self.events(), [])

    def test_life(self) -> None:
        """Changed, moved, deleted, imported and brought back, each with its message."""
        self.add()
        self.add(name="test")
        change = self.form("/api/policies/update", policy="prod", name="production", min_approvals="2", seen="2")
        self.assertEqual(self.flash(change, PAGE), "policy_updated:production")
        moved = self.form("/api/policies/move", name="test", position="0")
        self.assertEqual(self.flash(moved, PAGE), "policy_moved:test")
        self.assertEqual(self.names(), ["test", "production"])
        self.assertEqual(self.flash(self.form("/api/policies/delete", name="test"), PAGE), "policy_deleted:test")
        imported = self.form("/api/policies/import", document='[{"name": "x"}]')
        self.assertEqual(self.flash(imported, PAGE), "policies_imported:1")
        self.assertEqual(self.flash(self.form("/api/policies/revert", version="1"), PAGE), "policies_reverted:1")
        self.assertEqual(self.names(), ["prod"])

    def test_seen(self) -> None:
        """A form of a page that is out of date changes nothing."""
        self.add()
        flash = self.flash(self.form("/api/policies/delete", name="prod", seen="0"), PAGE)
        self.assertTrue(flash.startswith("policy_error:"))
        self.assertEqual(self.names(), ["prod"])

    def test_export(self) -> None:
        """The policies come as a file that can be imported; others than administrators get none."""
        self.add(match_hosts="db*")
        answer = self.get("/api/policies/export")
        self.assertEqual(json.loads(answer.body)["policies"][0]["match_hosts"], ["db*"])
        self.assertIn("attachment", answer.header("Content-Disposition") or "")
        self.assertEqual(self.get("/api/policies/export", "alice", "user").code, 403)


class PreviewTests(HouseCase):
    def setUp(self) -> None:
        super().setUp()
        self.form("/api/policies/add", name="prod", match_hosts="db*", require_admin="on")

    def preview(self, query: str, **headers: str) -> tuple[int, object]:
        answer = self.ask("GET", f"/api/policy/preview?{query}", headers)
        return answer.code, answer.json

    def test_secret(self) -> None:
        """Any API secret may ask, or an administrator's session; nobody else."""
        wanted = {
            "auto_approve_grace": False,
            "min_approvals": 1,
            "policy_name": "prod",
            "require_admin": True,
            "time_window_ok": True,
        }
        query = "host=DB01&user=alice"
        self.assertEqual(self.preview(query, **{"X-Shared-Secret": SECRET}), (200, wanted))
        answer = self.get(f"/api/policy/preview?{query}")
        self.assertEqual((answer.code, list(answer.json.items())), (200, sorted(wanted.items())))
        self.assertEqual(self.preview(query), (401, {"error": "unauthorized"}))
        self.assertEqual(self.preview(query, **{"X-Shared-Secret": "x" * 32})[0], 401)
        self.assertEqual(self.get(f"/api/policy/preview?{query}", "alice", "user").code, 401)

    def test_incomplete(self) -> None:
        """Both parameters are needed."""
        for query in ("host=db01", "user=alice", "host=%20&user=alice", ""):
            self.assertEqual(
                self.preview(query, **{"X-Shared-Secret": SECRET}),
                (400, {"error": "host and user query parameters required"}),
            )

    def test_in_full(self) -> None:
        """A call of an administrator also learns why, for any time, and for a draft."""
        answer = self.call("/api/policy/preview", {"user": "alice", "host": "db01"})
        self.assertEqual((answer.code, answer.json["because"]), (200, [["host", "db*"]]))
        draft = [{"name": "night", "allowed_hours": "22:00-06:00"}]
        asked = {"user": "alice", "host": "db01", "at": "2026-03-01T23:00:00Z", "policies": draft}
        answer = self.call("/api/policy/preview", asked)
        self.assertEqual((answer.json["policy_name"], answer.json["time_window_ok"]), ("night", True))
        for bad in ({"user": "a"}, {**asked, "at": "soon"}, {**asked, "policies": [{"x": 1}]}, [], "x"):
            self.assertEqual(self.call("/api/policy/preview", bad).code, 400, bad)
        self.assertEqual(self.call("/api/policy/preview", asked, "alice", "user").code, 401)


class PageTests(HouseCase):
    def page(self, query: str = "", **cookies: str) -> Document:
        answer = self.get(PAGE + query, **cookies)
        self.assertEqual(answer.code, 200, answer.text)
        return Document(answer.text)

    def test_empty(self) -> None:
        """Without policies it says what applies."""
        self.assertIn("no-policies", self.page().all("data-test"))

    def test_policies(self) -> None:
        """In the order in which they are looked at, the default last."""
        for name, priority in (("default", "9"), ("a", "0"), ("b", "5")):
            self.form("/api/policies/add", name=name, priority=priority)
        self.assertEqual(self.page().all("data-policy"), ["b", "a", "default"])

    def test_edit(self) -> None:
        """The form of a policy has what it says; an unknown name gives an empty form."""
        self.form("/api/policies/add", name="prod", match_hosts="db*, web*", max_grace="10m")
        text = self.get(f"{PAGE}?edit=prod").text
        self.assertIn('value="db*, web*"', text)
        self.assertIn("/api/policies/update", text)
        self.assertIn("/api/policies/add", self.get(f"{PAGE}?edit=none").text)

    def test_messages(self) -> None:
        """What a form answered is shown, also with commas."""
        flash = self.flash(self.form("/api/policies/add", name="x", allowed_days="Mo"), PAGE)
        self.assertIn("write Mon-Fri or Sat,Sun", self.get(PAGE, pam_flash=flash).text.replace("&#39;", "'"))

    def test_history(self) -> None:
        """Versions with author and note; an older one is compared."""
        self.form("/api/policies/add", name="a")
        self.form("/api/policies/add", name="b")
        page = self.page("?version=1")
        self.assertEqual(page.all("data-version-row"), ["2", "1"])
        self.assertEqual(page.all("data-older"), ["1"])
        self.assertEqual(self.get(f"{PAGE}?version=7").code, 404)

    def test_preview(self) -> None:
        """What a request would meet, in words."""
        self.form("/api/policies/add", name="prod", match_hosts="db*", forbid_self_approval="on")
        text = self.get(f"{PAGE}?user=alice&host=db01").text
        self.assertIn('data-preview="prod"', text)
        self.assertIn("Nobody may approve their own request.", text)

    def test_strangers(self) -> None:
        """Others are sent home, who is not signed in to the sign-in."""
        self.assertEqual(self.get(PAGE, "alice", "user").code, 303)
        answer = self.ask("GET", PAGE)
        self.assertIn("/sessions/login?next=/admin/policies", answer.header("Location") or "")

    def test_from_a_file(self) -> None:
        """Where a file counts nothing can be changed, and the page says so."""
        self.house.book.editable = False
        page = self.page()
        self.assertIn("from-file", page.all("data-test"))
        self.assertNotIn("save", page.all("data-test"))
        flash = self.flash(self.form("/api/policies/add", name="a"), PAGE)
        self.assertTrue(flash.startswith("policy_error:"))

    def test_escaped(self) -> None:
        """What somebody wrote into a policy is text."""
        document = json.dumps([{"name": "a", "description": "<script>alert(1)</script>"}])
        result(self.house.book.import_document(self.house.caller("carol", "admin"), document.encode()))
        self.assertNotIn("<script>alert", self.get(PAGE).text)
