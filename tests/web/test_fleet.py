"""The hosts page, its forms and its calls (spec/http-api sections 7.8, 8, 9.1, spec/web-ui section 12.3)."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from identree.app.escrow import EscrowFailed
from identree.core import tokens
from identree.core.errors import StorageUnavailable
from identree.core.hosts import HostRegistry
from identree.core.policy import Policies
from identree.web.fleet import ELEVATE_PATH, HOSTS_PATH, REMOVE_PATH, REVEAL_PATH, ROTATE_ALL_PATH, ROTATE_PATH
from identree.web.render import templates_directory
from tests.web.front import Response
from tests.web.house import EXTERNAL_URL, START, result
from tests.web.test_breakglass import HOST_SECRET, OTHER_SECRET, YardCase
from tests.web.test_render import Document
from tests.web.yard import MemoryEscrow

HOUR = timedelta(hours=1)


class FleetCase(YardCase):
    def csrf(self, user: str, ago: int = 0) -> dict[str, str]:
        ts = int(self.yard.house.now().timestamp()) - ago
        return {"csrf_token": tokens.csrf_token(self.yard.house.keys, user, ts), "csrf_ts": str(ts)}

    def form(self, path: str, user: str = "carol", role: str = "admin", **fields: str) -> Response:
        sent = {"username": user, **self.csrf(user), **fields}
        headers = {
            "Content-Type": "application/x-www-form-urlencoded",
            "Cookie": f"pam_session={self.yard.house.cookie(user, role)}",
        }
        return self.yard.ask("POST", path, headers, urlencode(sent).encode())

    def call(self, path: str, value: object, user: str = "carol", role: str = "admin", **changes: str) -> Response:
        csrf = self.csrf(user)
        headers = {
            "Content-Type": "application/json",
            "X-CSRF-Token": csrf["csrf_token"],
            "X-CSRF-Ts": csrf["csrf_ts"],
            "Cookie": f"pam_session={self.yard.house.cookie(user, role)}",
            **changes,
        }
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.yard.ask("POST", path, {name: text for name, text in headers.items() if text}, body)

    def get(self, path: str, user: str = "carol", role: str = "admin", **cookies: str) -> Response:
        cookies = {"pam_session": self.yard.house.cookie(user, role), **cookies}
        return self.yard.ask("GET", path, {"Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())})

    def page(self, path: str = HOSTS_PATH, **cookies: str) -> Document:
        answer = self.get(path, **cookies)
        self.assertEqual(answer.code, 200, answer.text)
        return Document(answer.text)

    def done(self, response: Response, flash: str, location: str = HOSTS_PATH) -> None:
        self.assertEqual((response.code, response.header("Location")), (303, EXTERNAL_URL + location))
        self.assertEqual((response.cookie("pam_flash") or "").partition(";")[0], f"pam_flash={flash}")

    def card(self, response: Response, code: int, words: str) -> None:
        self.assertEqual(response.code, code)
        self.assertIn(words, response.text)


class RevealTests(FleetCase):
    def setUp(self) -> None:
        super().setUp()
        self.yard.keep("web1", ago=HOUR)
        self.before = len(self.yard.store.log.records)

    def test_shown(self) -> None:
        """The answer of the contract, not to be kept by anybody; and that the host will rotate."""
        answer = self.call(REVEAL_PATH, {"hostname": "WEB1.", "reason": " disk full "})
        self.assertEqual(
            (answer.code, list(answer.json.items())),
            (
                200,
                [
                    ("escrowed_at", "2026-03-04T08:30:00Z"),
                    ("password", "correct-horse"),
                    ("rotation_requested", True),
                ],
            ),
        )
        self.assertEqual(answer.headers["cache-control"], ["no-store"])

    def test_recorded(self) -> None:
        """Audit record with the reason, history of everybody active and of the admin, log line without the password."""
        self.yard.house.session("alice", "web1", HOUR)
        self.call(REVEAL_PATH, {"hostname": "web1", "reason": "disk full"})
        [event] = self.yard.events()[self.before :]
        self.assertEqual(
            [event.get(name) for name in ("event", "username", "hostname", "actor", "reason", "remote_addr")],
            ["revealed_breakglass", "carol", "web1", "carol", "disk full", "192.0.2.7"],
        )
        self.assertEqual(self.yard.history("alice")[0], ("revealed_breakglass", "web1", "carol", "disk full"))
        self.assertEqual(self.yard.history("carol"), [("revealed_breakglass", "web1", "", "disk full")])
        told = {"host": "web1", "admin": "carol", "remote_addr": "192.0.2.7"}
        self.assertEqual(self.yard.log, [("BREAKGLASS password revealed", told)])

    def test_rotates(self) -> None:
        """The host hears of it with its next challenge; not where the setting is off."""
        self.call(REVEAL_PATH, {"hostname": "web1"})
        challenge = self.yard.house.ask("alice", "web1")
        self.assertEqual(challenge.rotate_before, "2026-03-04T09:30:00Z")
        self.yard.rotate_after_reveal = False
        self.yard.keep("web2")
        self.assertNotIn("rotation_requested", self.call(REVEAL_PATH, {"hostname": "web2"}).json)
        self.assertEqual([one.hostname for one in result(self.yard.store.rotations())], ["web1"])

    def test_rotates_what_is_new(self) -> None:
        """A password of this very second is older than the time that its host is told."""
        self.yard.keep("web2")
        self.call(REVEAL_PATH, {"hostname": "web2"})
        [rotation] = result(self.yard.store.rotations())
        self.assertEqual(rotation.requested_at, START + timedelta(seconds=1))

    def test_old_spelling(self) -> None:
        """What an old server has stored under the host's own spelling is found and read by it."""
        self.yard.keep("WEB2", "old")
        self.assertEqual(self.call(REVEAL_PATH, {"hostname": "web2"}).json["password"], "old")

    def test_not_recorded_not_shown(self) -> None:
        """What cannot go on record is not shown."""
        self.break_store("record_reveal")
        answer = self.call(REVEAL_PATH, {"hostname": "web1"})
        self.assertEqual(answer.code, 503)
        self.assertNotIn("correct-horse", answer.text)

    # -- refusals, in the order of section 7.8 ------------------------------------------------------------------------
    def test_authentication(self) -> None:
        """JSON admin authentication, for both calls."""
        for path in (REVEAL_PATH, REMOVE_PATH):
            cookie = {"Cookie": f"pam_session={self.yard.house.cookie('carol', 'admin')}"}
            self.refused(self.yard.ask("GET", path, cookie), 405, "method not allowed")
            value = {"hostname": "web1"}
            self.refused(self.call(path, value, "alice", "user"), 401, "unauthorized")
            self.refused(self.call(path, value, Cookie=""), 401, "unauthorized")
            self.refused(self.call(path, value, **{"X-CSRF-Token": ""}), 403, "missing CSRF headers")
            self.refused(self.call(path, value, **{"X-CSRF-Ts": ""}), 403, "missing CSRF headers")
            self.refused(self.call(path, value, **{"X-CSRF-Ts": "now"}), 403, "invalid CSRF timestamp")
            late = self.csrf("carol", 1801)
            changes = {"X-CSRF-Token": late["csrf_token"], "X-CSRF-Ts": late["csrf_ts"]}
            self.refused(self.call(path, value, **changes), 403, "CSRF token expired")
            self.refused(self.call(path, value, **{"X-CSRF-Token": "0" * 64}), 403, "invalid CSRF token")
        self.assertEqual(len(self.yard.store.log.records), self.before)

    def test_limit(self) -> None:
        """Thirty in a minute, forms and calls together."""
        for _ in range(30):
            self.call(REVEAL_PATH, {"hostname": "web9"})
        answer = self.call(REVEAL_PATH, {"hostname": "web1"})
        self.refused(answer, 429, "rate limit exceeded")
        self.assertEqual(answer.header("Retry-After"), "60")

    def test_body(self) -> None:
        """The content type does not matter."""
        answer = self.call(REVEAL_PATH, {"hostname": "web1"}, **{"Content-Type": "text/plain"})
        self.assertEqual(answer.code, 200)
        for value, text in (
            (b"x", "invalid request body"),
            ({"hostname": 1}, "invalid request body"),
            ({}, "invalid hostname"),
            ({"hostname": "web 1"}, "invalid hostname"),
            ({"hostname": "web1", "reason": "a\nb"}, "reason contains invalid characters"),
        ):
            self.refused(self.call(REVEAL_PATH, value), 400, text)

    def test_reason_required(self) -> None:
        """Where everything needs a reason, this does too."""
        self.yard.house.rules = replace(self.yard.house.rules, require_justification=True)
        answer = self.call(REVEAL_PATH, {"hostname": "web1"})
        self.assertEqual((answer.code, answer.json["error"]), (422, "justification_required"))
        self.assertEqual(self.call(REVEAL_PATH, {"hostname": "web1", "reason": "test"}).code, 200)

    def test_no_record(self) -> None:
        self.refused(self.call(REVEAL_PATH, {"hostname": "web9"}), 404, "no escrow record for host")

    def test_no_backend(self) -> None:
        """None, or a command, which gives nothing back."""
        for backend in (None, MemoryEscrow(revealable=False)):
            self.yard.escrow = backend
            self.refused(self.call(REVEAL_PATH, {"hostname": "web1"}), 501, "no escrow backend configured")

    def test_failure(self) -> None:
        """The log says why, the answer does not."""
        self.escrow.failure = EscrowFailed("vault is sealed")
        self.refused(self.call(REVEAL_PATH, {"hostname": "web1"}), 500, "failed to retrieve password")
        told = {"host": "web1", "admin": "carol", "err": "vault is sealed"}
        self.assertEqual(self.yard.log, [("BREAKGLASS reveal failed", told)])
        self.assertEqual(len(self.yard.store.log.records), self.before)


class RemoveTests(FleetCase):
    def test_removed(self) -> None:
        """From the registry and from the store, with event, history and log line."""
        self.yard.beat("web1")
        self.assertEqual(self.call(REMOVE_PATH, {"hostname": "WEB1"}).json, {"status": "ok"})
        self.assertEqual((self.yard.followed, result(self.yard.store.agents())), (1, []))
        [event] = self.yard.events()
        self.assertEqual(
            [event.get(name) for name in ("event", "username", "hostname", "actor", "remote_addr")],
            ["host_removed", "carol", "web1", "carol", "192.0.2.7"],
        )
        self.assertEqual(self.yard.history("carol"), [("removed_host", "web1", "", "")])
        told = {"admin": "carol", "host": "web1", "client_ip": "192.0.2.7"}
        self.assertEqual(self.yard.log, [("HOST_REMOVED", told)])

    def test_refusals(self) -> None:
        """415, then the form."""
        answer = self.call(REMOVE_PATH, {"hostname": "web1"}, **{"Content-Type": "text/plain"})
        self.refused(answer, 415, "content-type must be application/json")
        for value, text in ((b"", "invalid request"), ({"hostname": 1}, "invalid request"), ({}, "invalid hostname")):
            self.refused(self.call(REMOVE_PATH, value), 400, text)
        self.assertEqual(self.yard.store.events, [])

    def test_unavailable(self) -> None:
        """Nothing is answered as done that is not."""
        self.break_store("remove_host")
        self.assertEqual(self.call(REMOVE_PATH, {"hostname": "web1"}).code, 503)


class RotateTests(FleetCase):
    def test_rotated(self) -> None:
        """The host's time, event, history, log line and flash."""
        self.done(self.form(ROTATE_PATH, hostname="WEB1"), "rotated:web1")
        self.assertEqual([one.hostname for one in result(self.yard.store.rotations())], ["web1"])
        [event] = self.yard.events()
        self.assertEqual(
            [event.get(name) for name in ("event", "username", "hostname", "actor", "remote_addr")],
            ["breakglass_rotation_requested", "carol", "web1", "carol", "192.0.2.7"],
        )
        self.assertEqual(self.yard.history("carol"), [("rotation_requested", "web1", "", "")])
        told = {"user": "carol", "host": "web1", "remote_addr": "192.0.2.7"}
        self.assertEqual(self.yard.log, [("ROTATE_BREAKGLASS", told)])
        self.assertEqual(self.yard.house.ask("alice", "web1").rotate_before, "2026-03-04T09:30:00Z")

    def test_refusals(self) -> None:
        """Administrators only, before the field is looked at; then the field."""
        self.card(self.form(ROTATE_PATH, "alice", "user"), 403, "Not permitted")
        self.card(self.form(ROTATE_PATH), 400, "The form was incomplete")
        self.card(self.form(ROTATE_PATH, hostname="web 1"), 400, "Not the right form")
        self.card(self.form(ROTATE_ALL_PATH, "alice", "user"), 403, "Not permitted")
        for path in (ROTATE_PATH, ROTATE_ALL_PATH, ELEVATE_PATH):
            answer = self.get(path)
            self.assertEqual((answer.code, answer.text), (405, "method not allowed\n"))

    def test_all(self) -> None:
        """Every host that is known, whoever knows it, and an event for each."""
        self.yard.beat("web1")
        self.yard.keep("db1")
        self.yard.house.session("alice", "app1", HOUR)
        before = len(self.yard.store.log.records)
        self.done(self.form(ROTATE_ALL_PATH), "rotated_all:3")
        told = [event["hostname"] for event in self.yard.events()[before:]]
        self.assertEqual(told, ["app1", "db1", "web1"])
        expected = {"user": "carol", "count": 3, "remote_addr": "192.0.2.7"}
        self.assertEqual(self.yard.log, [("ROTATE_ALL_BREAKGLASS", expected)])

    def test_listed(self) -> None:
        """With the filters of the page exactly what it lists."""
        for name in ("web1", "web2", "db1"):
            self.yard.beat(name)
        self.done(self.form(ROTATE_ALL_PATH, q="WEB", seen="green"), "rotated_all:2")
        self.assertEqual([one.hostname for one in result(self.yard.store.rotations())], ["web1", "web2"])

    def test_many(self) -> None:
        """More than one transaction takes."""
        for number in range(205):
            self.yard.beat(f"web{number}")
        self.done(self.form(ROTATE_ALL_PATH), "rotated_all:205")
        self.assertEqual(len(result(self.yard.store.rotations())), 205)


class ElevateTests(FleetCase):
    def elevate(self, user: str = "carol", role: str = "admin", **changes: str) -> Response:
        fields = {"hostname": "web1", "target_user": "alice", "duration": "7200", **changes}
        return self.form(ELEVATE_PATH, user, role, **{name: text for name, text in fields.items() if text})

    def session(self) -> Any:
        return result(self.yard.store.grace("alice", "web1"))

    def test_opened(self) -> None:
        """A signed session, event, history, log line and flash."""
        ends = START + 2 * HOUR
        self.done(self.elevate(hostname="WEB1"), f"elevated:web1:alice:{int(ends.timestamp())}")
        session = self.session()
        self.assertEqual(session.expires_at, ends)
        self.assertTrue(tokens.grace_valid(self.yard.house.keys.grace, session))
        [event] = self.yard.events()
        self.assertEqual(
            [event.get(name) for name in ("event", "username", "hostname", "actor", "remote_addr")],
            ["grace_elevated", "alice", "web1", "carol", "192.0.2.7"],
        )
        self.assertEqual(self.yard.history("alice"), [("elevated", "web1", "carol", "")])
        told = {"user": "alice", "host": "web1", "duration": "2h0m0s", "by": "carol", "remote_addr": "192.0.2.7"}
        self.assertEqual(self.yard.log, [("ELEVATED", told)])
        self.assertEqual(self.yard.house.ask("alice", "web1").status.value, "approved")

    def test_lengths(self) -> None:
        """At least an hour, at most the grace period and a day."""
        for duration, hours in (("1", 1), ("99999", 8), ("9" * 30, 8)):
            self.elevate(hostname=f"h{duration[:5]}", duration=duration)
            session = result(self.yard.store.grace("alice", f"h{duration[:5]}"))
            assert session is not None
            self.assertEqual(session.expires_at - START, timedelta(hours=hours))
        self.yard.house.rules = replace(self.yard.house.rules, grace_period=timedelta(days=7))
        self.elevate(duration="999999")
        self.assertEqual(self.session().expires_at - START, timedelta(hours=24))

    def test_no_grace(self) -> None:
        """Without a grace period no session is honoured, so none is opened (spec/storage section 6)."""
        self.yard.house.rules = replace(self.yard.house.rules, grace_period=timedelta(0))
        self.card(self.elevate(), 403, "Not permitted")
        self.assertEqual((self.session(), self.yard.events()), (None, []))

    def test_never_shorter(self) -> None:
        """A session that lasts longer stays."""
        self.yard.house.session("alice", "web1", 7 * HOUR)
        self.elevate()
        self.assertEqual(self.session().expires_at - START, 7 * HOUR)

    def test_where_to(self) -> None:
        """Back to where it was asked for; home means the hosts page."""
        self.assertEqual(self.elevate(**{"from": "/"}).header("Location"), EXTERNAL_URL + HOSTS_PATH)
        self.assertEqual(self.elevate(**{"from": "/access"}).header("Location"), EXTERNAL_URL + "/access")

    # -- refusals, in the order of section 8 --------------------------------------------------------------------------
    def test_fields(self) -> None:
        """All three, of valid syntax."""
        for name in ("hostname", "target_user", "duration"):
            self.card(self.elevate(**{name: ""}), 400, "The form was incomplete")
        self.card(self.elevate(hostname="(unknown)"), 400, "Not the right form")
        self.card(self.elevate(target_user="al ice"), 400, "Not a user name")

    def test_without_registry(self) -> None:
        """Administrators only, also for oneself."""
        self.card(self.elevate("bob", "user"), 403, "Not permitted")
        self.card(self.elevate("alice", "user"), 403, "Not permitted")

    def test_registry(self) -> None:
        """Only who is listed for the host, whoever asks; for oneself without being an administrator."""
        entries = {"web1": {"secret": HOST_SECRET, "users": ["alice"]}, "web2": {"secret": OTHER_SECRET, "users": []}}
        self.yard.registry = HostRegistry.parse(json.dumps(entries).encode())
        self.assertEqual(self.elevate("alice", "user").code, 303)
        self.assertEqual(self.elevate().code, 303)
        self.card(self.elevate("bob", "user"), 403, "Not permitted")
        self.card(self.elevate(hostname="web2"), 403, "Not permitted")
        self.card(self.elevate(hostname="web3"), 403, "Not permitted")
        self.card(self.elevate(target_user="bob"), 403, "Not permitted")

    def test_policies(self) -> None:
        """Where an approval needs more than the person, nobody opens a session for himself instead."""
        entries = {"web1": {"secret": HOST_SECRET, "users": ["*"]}, "db1": {"secret": OTHER_SECRET, "users": ["*"]}}
        self.yard.registry = HostRegistry.parse(json.dumps(entries).encode())
        for wanted, title in (
            ({"require_fresh_oidc": "5m"}, "Sign in once more"),
            ({"forbid_self_approval": True}, "Somebody else has to approve"),
            ({"approver_groups": ["dba"]}, "You are not one of the approvers"),
            ({"require_admin": True}, "An administrator"),
            ({"min_approvals": 2}, "An administrator"),
        ):
            policy = {"name": "production", "match_hosts": ["web*"], "auto_approve_grace": True, **wanted}
            self.yard.house.policies = Policies.parse(json.dumps([policy]).encode())
            self.card(self.elevate("alice", "user"), 403, title)
            self.assertIs(self.session(), None)
            self.assertEqual(self.elevate("alice", "user", hostname="db1").code, 303)
        self.assertEqual(self.elevate().code, 303)

    def test_limit_of_policy(self) -> None:
        """No session lasts longer than the policy of the host lets one."""
        policy = {"name": "production", "max_grace": "10m"}
        self.yard.house.policies = Policies.parse(json.dumps([policy]).encode())
        self.assertEqual(self.elevate().code, 303)
        session = self.session()
        assert session is not None
        self.assertEqual(session.expires_at - self.yard.house.now().replace(microsecond=0), timedelta(minutes=10))
        self.assertEqual((session.strength.policy, session.strength.by_admin), ("production", True))

    def test_duration(self) -> None:
        """A whole number of seconds."""
        for duration in ("0", "-1", "1.5", "max"):
            self.card(self.elevate(duration=duration), 400, "Not a duration")

    def test_disabled(self) -> None:
        """Nobody whose account is disabled."""
        self.yard.disabled.add("alice")
        self.card(self.elevate(), 403, "The account is disabled")
        self.assertEqual(self.yard.events(), [])


class PageTests(FleetCase):
    def row(self, page: Document, name: str) -> list[str]:
        return [value for _, attributes in page.tags for key, value in attributes.items() if key == name]

    def test_hosts(self) -> None:
        """Whoever was heard of in any way, with what is known of each."""
        self.yard.beat("web1", timedelta(minutes=3), version="1.2.3", os_info="Debian 12 (amd64)", address="192.0.2.1")
        self.yard.beat("web2", timedelta(minutes=30))
        self.yard.beat("web3", timedelta(hours=30))
        self.yard.keep("db1", ago=timedelta(days=3))
        self.yard.keep("db2", ago=timedelta(days=91))
        self.yard.house.session("alice", "web1", HOUR)
        page = self.page()
        self.assertEqual(page.all("data-host"), ["db1", "db2", "web1", "web2", "web3"])
        self.assertEqual(page.all("data-seen"), ["never", "never", "online", "stale", "offline"])
        self.assertEqual(page.all("data-kept"), ["escrowed", "expired", "none", "none", "none"])
        self.assertEqual(page.all("data-count"), ["online", "stale", "offline", "never"])
        for text in ("5 hosts", "1.2.3", "Debian 12 (amd64)", "192.0.2.1", "3 days ago"):
            self.assertIn(text, page.text)
        self.assertIn("https://vault.example/db1", page.all("href"))

    def test_reveal_buttons(self) -> None:
        """Where there is something that can be shown."""
        self.yard.beat("web1")
        self.yard.keep("db1")
        self.assertEqual(self.page().all("data-reveal"), ["db1"])
        self.yard.escrow = MemoryEscrow(revealable=False)
        self.assertEqual(self.page().all("data-reveal"), [])
        self.yard.escrow = None
        self.assertEqual(self.page().all("data-reveal"), [])

    def test_rotation(self) -> None:
        """A request stands there until the host has escrowed another password."""
        self.yard.keep("web1", ago=HOUR)
        result(self.yard.fleet.rotate(self.yard.house.caller("carol", "admin"), "web1"))
        self.assertIn("rotation", self.page().all("data-test"))
        self.yard.house.reactor.advance(60)
        self.yard.keep("web1")
        self.assertNotIn("rotation", self.page().all("data-test"))

    def test_rotate_all_button(self) -> None:
        """Only where anything is escrowed; it says how many."""
        self.yard.beat("web1")
        self.assertNotIn("rotate-all", self.page().all("data-test"))
        self.yard.keep("db1")
        page = self.page()
        self.assertIn("2 hosts are asked to replace their break-glass passwords", page.text)
        page = self.page(f"{HOSTS_PATH}?q=web")
        self.assertIn("1 host is asked to replace its break-glass password", page.text)

    def test_registry(self) -> None:
        """With a registry its hosts and what is escrowed; not what others have said."""
        self.yard.beat("stranger")
        self.yard.keep("old1")
        entries = {"web1": {"secret": HOST_SECRET, "users": ["*"], "group": "production"}}
        self.yard.registry = HostRegistry.parse(json.dumps(entries).encode())
        page = self.page()
        self.assertEqual(page.all("data-host"), ["old1", "web1"])
        self.assertIn("production", page.text)

    def test_removed(self) -> None:
        """A host that was removed is not listed because of its old history."""
        self.yard.house.session("alice", "web1", HOUR)
        result(self.yard.fleet.elevate(self.yard.house.caller("carol", "admin"), "web1", "alice", 3600))
        self.assertEqual(self.page().all("data-host"), ["web1"])
        result(self.yard.fleet.remove(self.yard.house.caller("carol", "admin"), "web1"))
        page = self.page()
        self.assertEqual(page.all("data-host"), [])
        self.assertIn("No known hosts yet.", page.text)

    def test_filters(self) -> None:
        """By name, state, password and group, and what was chosen stays chosen; links keep it."""
        entries = {
            name: {"secret": name * 16, "users": ["*"], "group": group}
            for name, group in (("web1", "prod"), ("web2", "test"), ("db01", "prod"))
        }
        self.yard.registry = HostRegistry.parse(json.dumps(entries).encode())
        self.yard.beat("web1")
        self.yard.keep("db01")
        for asked, expected in (
            ("q=WEB", ["web1", "web2"]),
            ("group=prod", ["db01", "web1"]),
            ("seen=green", ["web1"]),
            ("seen=never&kept=none", ["web2"]),
            ("kept=escrowed", ["db01"]),
            ("q=%25", []),
            ("seen=nonsense&kept=nonsense&sort=nonsense&page=x", ["db01", "web1", "web2"]),
        ):
            page = self.page(f"{HOSTS_PATH}?{asked}")
            self.assertEqual((asked, page.all("data-host")), (asked, expected))
        page = self.page(f"{HOSTS_PATH}?group=prod&sort=seen")
        self.assertIn("2 of 3 hosts", page.text)
        chosen = [attributes["value"] for tag, attributes in page.tags if tag == "option" and "selected" in attributes]
        self.assertEqual(chosen, ["prod", "", ""])
        self.assertIn(f"{HOSTS_PATH}?sort=hostname&dir=asc&group=prod", page.all("href"))

    def test_order(self) -> None:
        """By name, last seen and sessions, either way."""
        self.yard.beat("b", timedelta(minutes=1))
        self.yard.beat("a", timedelta(minutes=2))
        self.yard.house.session("alice", "c", HOUR)
        for asked, expected in (
            ("", "abc"),
            ("sort=hostname&dir=desc", "cba"),
            ("sort=seen&dir=desc", "bac"),
            ("sort=seen&dir=asc", "cab"),
            ("sort=sessions&dir=desc", "cab"),
        ):
            page = self.page(f"{HOSTS_PATH}?{asked}")
            self.assertEqual((asked, "".join(page.all("data-host"))), (asked, expected))
        self.assertEqual(self.page(f"{HOSTS_PATH}?sort=seen&dir=desc").all("aria-sort"), ["none", "descending", "none"])

    def test_pages(self) -> None:
        """Fifty at a time; a page that is not there is the last one."""
        for number in range(51):
            self.yard.beat(f"web{number:02}")
        first = self.page()
        self.assertEqual(len(first.all("data-host")), 50)
        self.assertIn(f"{HOSTS_PATH}?page=2", first.all("href"))
        for number in (2, 99):
            self.assertEqual(self.page(f"{HOSTS_PATH}?page={number}").all("data-host"), ["web50"])

    def test_flashes(self) -> None:
        """What was done is said in words."""
        flash = "rotated:web1,rotated_all:12,elevated:web1:alice:1772620200,rotated_all:x"
        text = self.page(pam_flash=flash).text
        for words in (
            "web1 was asked to replace its break-glass password.",
            "12 hosts were asked to replace their break-glass passwords.",
            "Opened: sudo for alice on web1",
        ):
            self.assertIn(words, text)

    def test_who_may(self) -> None:
        """Others are sent home, strangers to the sign-in and back."""
        self.assertEqual(self.get(HOSTS_PATH, "alice", "user").header("Location"), EXTERNAL_URL + "/")
        answer = self.yard.ask("GET", f"{HOSTS_PATH}?q=web")
        expected = f"{EXTERNAL_URL}/sessions/login?next=/admin/hosts%3Fq%3Dweb"
        self.assertEqual((answer.code, answer.header("Location")), (303, expected))

    def test_elevations(self) -> None:
        """What is offered is granted whole; without a grace period a session would be of no use."""
        self.yard.beat("web1")
        page = self.page()
        offered = [
            attributes["value"] for tag, attributes in page.tags if tag == "option" and attributes["value"].isdigit()
        ]
        self.assertEqual(offered, ["3600", "7200", "14400", "28800"])
        self.yard.house.rules = replace(self.yard.house.rules, grace_period=timedelta(0))
        self.assertNotIn("elevate", self.page().all("data-test"))

    def test_markup(self) -> None:
        """All elements are closed, ids unique, nothing inline, in both languages; hostile texts stay text."""
        self.yard.beat("web1", version="<b>1", os_info='"><script>', address="192.0.2.1")
        self.yard.keep("web1")
        for number in range(12):
            self.yard.beat(f"h{number}")
        for language in ("en", "de"):
            page = self.page(f"{HOSTS_PATH}?q=", identree_lang=language)
            self.assertEqual((page.unclosed, "".join(page.inline).strip()), ([], ""))
            ids = page.all("id")
            self.assertEqual(sorted(ids), sorted(set(ids)))
            named = page.all("for") + page.all("list") + page.all("aria-labelledby")
            self.assertEqual(set(named) - set(ids), set())
            self.assertEqual(page.text.count("<b>1"), 1)
            for tag, attributes in page.tags:
                bad = [key for key in attributes if key.startswith("on") or key == "style"]
                self.assertEqual((tag, bad), (tag, []))

    def test_assets(self) -> None:
        """Every file and icon that the page names is there."""
        self.yard.beat("web1")
        sprite = (templates_directory() / "static" / "icons.svg").read_text()
        page = self.page()
        for address in page.all("href") + page.all("src"):
            path, _, fragment = address.partition("#")
            if path.startswith("/static/"):
                self.assertEqual((path, self.yard.ask("GET", path).code), (path, 200))
                self.assertEqual((fragment, fragment == "" or f'id="{fragment}"' in sprite), (fragment, True))

    def test_storage_unavailable(self) -> None:
        """A card that says so."""

        async def unavailable(*_: object, **__: object) -> object:
            raise StorageUnavailable("locked")

        self.yard.store.escrow_records = unavailable  # type: ignore[method-assign,assignment]
        self.card(self.get(HOSTS_PATH), 503, "The database does not answer")
