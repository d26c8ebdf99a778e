"""What people decide with forms (spec/http-api sections 5 and 8)."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from identree.core import tokens
from identree.core.errors import StorageUnavailable
from identree.core.policy import Policies
from tests.web.front import PEER, Front, Response

FORMS = (
    "/api/challenges/approve",
    "/api/challenges/approve-all",
    "/api/challenges/reject",
    "/api/challenges/reject-all",
    "/api/sessions/revoke",
    "/api/sessions/revoke-all",
    "/api/sessions/extend",
    "/api/sessions/extend-all",
)
BASE = "https://identree.example"


class ActionTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.front = Front()
        self.addCleanup(self.front.close)
        self.world = self.front.world

    def challenge(self, username: str = "alice", hostname: str = "web1") -> str:
        id: str = self.front.create({"username": username, "hostname": hostname}).json["challenge_id"]
        return id

    def status(self, id: str, hostname: str = "web1") -> str:
        status: str = self.front.poll(id, f"?hostname={hostname}").json["status"]
        return status

    def seed(self, username: str = "alice", hostname: str = "web1") -> None:
        self.world.change_rules(grace_period=timedelta(minutes=10))
        body = f'{{"username": "{username}", "hostname": "{hostname}"}}'.encode()
        self.assertEqual(self.front.ask("POST", "/dev/seed-session", body=body).code, 201)

    def unix(self, seconds: int = 0) -> int:
        return int(self.world.now().timestamp()) + seconds

    def card(self, response: Response, code: int, key: str) -> None:
        retry = {
            "session_expired_sign_in": "/sessions/login?next=/",
            "oidc_reauth_required": "/sessions/login?next=/",
            "form_expired_message": "/",
            "invalid_csrf": "/",
        }.get(key)
        self.assertEqual((response.code, response.text), (code, f"CARD({key}) retry={retry}"))

    def done(self, response: Response, flash: str | None, location: str = "/") -> None:
        """A redirect that carries this flash, and a renewed session."""
        self.assertEqual((response.code, response.header("Location"), response.body), (303, BASE + location, b""))
        cookie = response.cookie("pam_flash")
        if flash is None:
            self.assertIsNone(cookie)
        else:
            value = f'"{flash}"' if "," in flash else flash
            self.assertEqual(cookie, f"pam_flash={value}; Path=/; Max-Age=10; HttpOnly; SameSite=Strict; Secure")
        self.assertIsNotNone(response.cookie("pam_session"))


class FormAuthenticationTests(ActionTestCase):
    """The order is contract: each form is right but for what is tested and what comes later."""

    def each(self, code: int, key: str, **fields: str | None) -> None:
        for path in FORMS:
            self.card(self.front.post(path, **fields), code, key)

    def test_malformed(self) -> None:
        """A form that cannot be read."""
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        for body in (b"a=%zz", b"a=1;b=2"):
            self.card(self.front.ask("POST", FORMS[0], headers, body), 400, "invalid_form")

    def test_malformed_query(self) -> None:
        """The query belongs to the form."""
        self.card(self.front.post(FORMS[0] + "?a=%zz"), 400, "invalid_form")

    def test_missing_fields(self) -> None:
        """Each of the three is needed."""
        for name in ("username", "csrf_token", "csrf_ts"):
            self.each(400, "missing_fields", **{name: ""})
            self.each(400, "missing_fields", **{name: None})

    def test_other_content_types(self) -> None:
        """Multipart and unnamed bodies have no fields."""
        self.front.sign_in()
        body = b"username=alice&csrf_token=x&csrf_ts=1"
        for kind in ("multipart/form-data; boundary=x", "text/plain", ""):
            headers = {"Content-Type": kind} if kind else {}
            self.card(self.front.ask("POST", FORMS[0], headers, body), 400, "missing_fields")

    def test_username_syntax(self) -> None:
        """A malformed user name."""
        self.each(400, "invalid_username_format", username="al ice")

    def test_no_session(self) -> None:
        """Nobody is signed in."""
        self.each(403, "session_expired_sign_in")

    def test_foreign_form(self) -> None:
        """The form was made for another person."""
        self.front.sign_in("bob")
        self.each(403, "session_expired_sign_in")

    def test_forged_session(self) -> None:
        """A cookie with another role than was signed is no session."""
        self.front.sign_in()
        self.front.cookies["pam_session"] = self.front.cookies["pam_session"].replace(":user:", ":admin:")
        self.each(403, "session_expired_sign_in")

    def test_first_cookie_counts(self) -> None:
        """A second cookie of the name is not looked at."""
        self.front.sign_in()
        good = self.front.cookies["pam_session"]
        self.front.cookies = {"pam_session": f"bad; pam_session={good}"}
        self.each(403, "session_expired_sign_in")
        self.front.cookies = {"pam_session": f"{good}; pam_session=bad"}
        self.assertEqual(self.front.post("/api/challenges/approve-all").code, 303)

    def test_expired_session(self) -> None:
        """A session ends half an hour after its last use."""
        self.front.sign_in()
        self.world.clock.advance(1801)
        self.each(403, "session_expired_sign_in")

    def test_way_back(self) -> None:
        """Through the sign-in back to the page of the form, which is nobody else's."""
        for page, back in (
            ("/approve/ABCDEF-123456", "/approve/ABCDEF-123456"),
            ("/%C3%A9", "/%25C3%25A9"),
            ("//evil.example", "/"),
            ("https://evil.example/", "/"),
        ):
            response = self.front.post("/api/challenges/approve", page=page)
            self.assertEqual(response.text, f"CARD(session_expired_sign_in) retry=/sessions/login?next={back}")

    def test_way_back_of_an_old_page(self) -> None:
        """A page that was open for too long is opened anew."""
        self.front.sign_in()
        response = self.front.post("/api/challenges/approve", page="/approve/ABCDEF-123456", csrf_token="0" * 64)
        self.assertEqual(response.text, "CARD(invalid_csrf) retry=/approve/ABCDEF-123456")

    def test_timestamp(self) -> None:
        """The timestamp must be an integer."""
        self.front.sign_in()
        self.each(400, "invalid_timestamp", csrf_ts="1.5")

    def test_expired_form(self) -> None:
        """A form is good for half an hour, and not before it was made."""
        self.front.sign_in()
        for ts in (self.unix(-1801), self.unix(1)):
            token = tokens.csrf_token(self.world.keys, "alice", ts)
            self.each(403, "form_expired_message", csrf_ts=str(ts), csrf_token=token)

    def test_wrong_token(self) -> None:
        """A token that is not ours, another person's, or another time's."""
        self.front.sign_in()
        for token in (
            "0" * 64,
            tokens.csrf_token(self.world.keys, "bob", self.unix()),
            tokens.csrf_token(self.world.keys, "alice", self.unix(-1)),
        ):
            self.each(403, "invalid_csrf", csrf_token=token)

    def test_throttled(self) -> None:
        """Thirty accepted forms a minute; refused ones do not count."""
        self.front.sign_in()
        for _ in range(40):
            self.front.post("/api/challenges/approve-all", csrf_token="x")
        for _ in range(30):
            self.assertEqual(self.front.post("/api/challenges/approve-all").code, 303)
        response = self.front.post("/api/challenges/approve-all")
        self.card(response, 429, "too_many_requests")
        self.assertEqual(response.header("Retry-After"), "60")
        self.world.clock.advance(60)
        self.assertEqual(self.front.post("/api/challenges/approve-all").code, 303)

    def test_reusable(self) -> None:
        """A token is good for several forms: a page has more than one."""
        self.front.sign_in()
        form = self.front.csrf()
        self.world.clock.advance(60)
        for _ in range(2):
            self.assertEqual(self.front.post("/api/challenges/approve-all", **form).code, 303)

    def test_session_slides(self) -> None:
        """An accepted form renews the session even when the endpoint refuses."""
        self.front.sign_in()
        self.world.clock.advance(5)
        response = self.front.post("/api/challenges/approve", challenge_id="x")
        self.card(response, 400, "missing_fields")
        cookie = response.cookie("pam_session") or ""
        self.assertIn(f"pam_session=alice:user:{self.unix()}:", cookie)
        self.assertTrue(cookie.endswith("; Path=/; Max-Age=1800; HttpOnly; SameSite=Lax; Secure"))

    def test_refusals_do_not_renew(self) -> None:
        """A form that is not accepted sets no cookie."""
        self.front.sign_in()
        self.assertIsNone(self.front.post(FORMS[0], csrf_token="x").cookie("pam_session"))

    def test_query_fields_count(self) -> None:
        """Fields may stand in the query; the body wins."""
        self.front.sign_in()
        id = self.challenge()
        self.assertEqual(self.front.post(f"/api/challenges/approve?challenge_id={id}").code, 303)
        self.card(
            self.front.post(f"/api/challenges/approve?challenge_id={id}", challenge_id="x"), 400, "missing_fields"
        )

    def test_get(self) -> None:
        """A link cannot decide anything."""
        self.front.sign_in()
        for path in FORMS:
            self.assertEqual(self.front.ask("GET", path).code, 405)


class ApprovalTests(ActionTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.front.sign_in()
        self.id = self.challenge()

    def approve(self, username: str = "alice", **fields: Any) -> Response:
        return self.front.post("/api/challenges/approve", username=username, **{"challenge_id": self.id, **fields})

    def test_approved(self) -> None:
        """The flash says until when the grace session lasts."""
        self.world.change_rules(grace_period=timedelta(minutes=5))
        self.done(self.approve(), f"approved:web1:alice:{self.unix(300)}")
        self.assertEqual(self.status(self.id), "approved")

    def test_without_grace(self) -> None:
        """Without a grace session the time is that of the approval."""
        self.done(self.approve(), f"approved:web1:alice:{self.unix()}")

    def test_inline(self) -> None:
        """From the dashboard itself, the new session is highlighted."""
        response = self.approve(**{"from": "inline"})
        self.done(response, f"approved:web1:alice:{self.unix()},highlight:alice:web1")

    def test_unknown_host(self) -> None:
        """A challenge without a host is shown as such."""
        id = self.challenge(hostname="")
        self.done(self.approve(challenge_id=id), f"approved:(unknown):alice:{self.unix()}")

    def test_partial(self) -> None:
        """One of two approvals: how many there are."""
        self.world.policies = Policies.parse(b'[{"name": "two", "match_hosts": ["web1"], "min_approvals": 2}]')
        id = self.challenge()
        code = self.world.store.connection.execute("SELECT user_code FROM challenges WHERE id = ?", (id,)).fetchone()
        self.done(self.approve(challenge_id=id), f"partial_approve:{code[0]}:1:2")
        self.card(self.approve(challenge_id=id), 409, "already_approved_by_you")

    def test_bad_id(self) -> None:
        """An id that is none."""
        for id in ("", "xyz", self.id + "0"):
            self.card(self.approve(challenge_id=id), 400, "missing_fields")

    def test_nothing_there(self) -> None:
        """Unknown, decided, and another person's look alike."""
        other = self.challenge("bob")
        self.approve()
        for id in ("0" * 32, self.id, other):
            self.card(self.approve(challenge_id=id), 404, "challenge_expired_or_resolved")

    def test_admin_decides_for_others(self) -> None:
        """An admin sees everybody's."""
        self.front.sign_in("carol", "admin")
        self.done(self.approve("carol"), f"approved:web1:alice:{self.unix()}")

    def test_admin_required(self) -> None:
        """A policy may ask for an admin."""
        self.world.policies = Policies.parse(b'[{"name": "adm", "match_hosts": ["web1"], "require_admin": true}]')
        self.card(self.approve(challenge_id=self.challenge()), 403, "admin_approval_required")

    def test_fresh_login_required(self) -> None:
        """A policy may ask for a fresh sign-in."""
        self.world.policies = Policies.parse(b'[{"name": "f", "match_hosts": ["web1"], "require_fresh_oidc": "5m"}]')
        refused = self.approve(challenge_id=self.challenge())
        self.assertEqual(refused.code, 403)
        # one button leads to a sign-in that is fresh enough, and back
        self.assertIn(b"retry=/sessions/login?next=/&fresh=300", refused.body)

    def test_fresh_login_required_by_script(self) -> None:
        """Our own scripts are told the same way, to the page that the form is on."""
        self.world.policies = Policies.parse(b'[{"name": "f", "match_hosts": ["web1"], "require_fresh_oidc": "5m"}]')
        for page, wanted in (("/approve/ABCDEF-123456", "/approve/ABCDEF-123456"), ("https://evil.example/", "/")):
            refused = self.approve(challenge_id=self.challenge(), page=page, as_script=True)
            self.assertEqual((refused.code, refused.json["error"]), (403, "oidc_reauth_required"))
            self.assertEqual(refused.json["retry"], f"/sessions/login?next={wanted}&fresh=300")

    def test_justification(self) -> None:
        """A required reason may come from the approver; a broken one counts as absent."""
        self.world.change_rules(require_justification=True)
        self.card(self.approve(reason="a\x01b"), 400, "justification_required")
        self.assertEqual(self.approve(reason="Deployment").code, 303)

    def test_superseded(self) -> None:
        """A request older than a revocation cannot be approved; that is no fault of the server."""
        self.world.clock.advance(1)
        self.front.post("/api/sessions/revoke", hostname="web1")
        self.card(self.approve(), 409, "superseded_by_revocation")

    def test_storage_unavailable(self) -> None:
        """A locked database is a card that says to try again; nothing was decided."""
        decide = self.world.store.decide

        async def unavailable(*_: object, **__: object) -> object:
            raise StorageUnavailable("locked")

        self.world.store.decide = unavailable  # type: ignore[method-assign]
        response = self.approve()
        self.card(response, 503, "storage_unavailable")
        self.assertEqual(response.header("Retry-After"), "2")
        self.world.store.decide = decide  # type: ignore[method-assign]
        self.assertEqual(self.status(self.id), "pending")

    def test_all(self) -> None:
        """All of one's own, and nobody else's."""
        other = self.challenge("bob")
        self.challenge(hostname="web2")
        self.done(self.front.post("/api/challenges/approve-all"), "approved_all:2")
        self.assertEqual(self.status(other), "pending")

    def test_all_of_nothing(self) -> None:
        """Nothing to approve is nothing to tell."""
        self.approve()
        self.done(self.front.post("/api/challenges/approve-all"), None)


class RejectionTests(ActionTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.front.sign_in()
        self.id = self.challenge()

    def test_rejected(self) -> None:
        """The reason reaches the host."""
        response = self.front.post("/api/challenges/reject", challenge_id=self.id, deny_reason="no")
        self.done(response, "rejected:web1")
        self.assertEqual(self.front.poll(self.id).json["deny_reason"], "no")

    def test_refusals(self) -> None:
        """As for approvals."""
        self.card(self.front.post("/api/challenges/reject", challenge_id="x"), 400, "missing_fields")
        other = self.challenge("bob")
        response = self.front.post("/api/challenges/reject", challenge_id=other)
        self.card(response, 404, "challenge_expired_or_resolved")

    def test_all(self) -> None:
        """All of one's own."""
        self.done(self.front.post("/api/challenges/reject-all", deny_reason="no"), "rejected_all:1")
        self.done(self.front.post("/api/challenges/reject-all"), None)


class GraceSessionTests(ActionTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.front.sign_in()
        self.seed()

    def remaining(self, username: str = "alice", hostname: str = "web1") -> int:
        from tests.app.world import SECRET

        path = f"/api/grace-status?username={username}&hostname={hostname}"
        left: int = self.front.ask("GET", path, {"X-Shared-Secret": SECRET}).json["grace_remaining"]
        return left

    def test_revoke(self) -> None:
        """One session ends; the browser goes back to its page."""
        response = self.front.post("/api/sessions/revoke", hostname="WEB1.", **{"from": "/access"})
        self.done(response, "revoked:web1:alice", "/access")
        self.assertEqual(self.remaining(), 0)

    def test_revoke_without_host(self) -> None:
        """``(unknown)`` names the session of no host."""
        self.done(self.front.post("/api/sessions/revoke", hostname="(unknown)"), "revoked:(unknown):alice")

    def test_hostname(self) -> None:
        """Missing and malformed names."""
        for path in ("/api/sessions/revoke", "/api/sessions/extend"):
            self.card(self.front.post(path), 400, "missing_fields")
            self.card(self.front.post(path, hostname="a b"), 400, "invalid_format")

    def test_back(self) -> None:
        """Only local paths are gone back to."""
        for wish in ("//evil.example", "https://evil.example", "/a?b", "/a#b", "\\evil", "/%2Fevil.example", ""):
            response = self.front.post("/api/sessions/revoke", hostname="web1", **{"from": wish})
            self.assertEqual(response.header("Location"), BASE + "/", wish)

    def test_others_are_for_admins(self) -> None:
        """A user who names somebody else means himself."""
        self.seed("bob")
        response = self.front.post("/api/sessions/revoke", hostname="web1", session_username="bob")
        self.done(response, "revoked:web1:alice")
        self.assertEqual(self.remaining("bob"), 600)

    def test_admin(self) -> None:
        """An admin may mean somebody else."""
        self.front.sign_in("carol", "admin")
        response = self.front.post("/api/sessions/revoke", username="carol", hostname="web1", session_username="alice")
        self.done(response, "revoked:web1:alice")

    def test_malformed_owner(self) -> None:
        """A malformed name never means everybody, nor oneself."""
        self.front.sign_in("carol", "admin")
        for name in ("revoke", "revoke-all", "extend", "extend-all"):
            response = self.front.post(
                f"/api/sessions/{name}", username="carol", hostname="web1", session_username="al ice"
            )
            self.card(response, 400, "invalid_username_format")
        self.assertEqual(self.remaining(), 600)

    def test_revoke_all(self) -> None:
        """A user ends his own, an admin everybody's."""
        self.seed("bob")
        self.seed("alice", "web2")
        self.done(self.front.post("/api/sessions/revoke-all"), "revoked_all:2")
        self.seed()
        self.front.sign_in("carol", "admin")
        self.done(self.front.post("/api/sessions/revoke-all", username="carol"), "revoked_all:2")

    def test_extend(self) -> None:
        """To the whole period, however that is said."""
        self.world.clock.advance(300)
        for duration in ("max", "", "0", "-5", "99999999", "abc"):
            response = self.front.post("/api/sessions/extend", hostname="web1", duration=duration)
            self.done(response, f"extended:web1:alice:{self.unix(600)}")

    def test_extend_never_shortens(self) -> None:
        """A shorter wish leaves the end where it is."""
        response = self.front.post("/api/sessions/extend", hostname="web1", duration="60")
        self.done(response, f"extended:web1:alice:{self.unix(600)}")

    def test_extend_nothing(self) -> None:
        """There must be a session."""
        self.card(self.front.post("/api/sessions/extend", hostname="web9"), 404, "challenge_expired_or_resolved")

    def test_extend_all(self) -> None:
        """All of one's own."""
        self.seed("alice", "web2")
        self.done(self.front.post("/api/sessions/extend-all"), f"extended_all:2:{self.unix(600)}")


class ScriptTests(ActionTestCase):
    """Our scripts get the same answers as values."""

    def setUp(self) -> None:
        super().setUp()
        self.front.sign_in()

    def test_done(self) -> None:
        """A success carries the flash, and leaves none for the next page."""
        response = self.front.post("/api/challenges/approve", as_script=True, challenge_id=self.challenge())
        self.assertEqual(
            response.json,
            {
                "ok": True,
                "flash": f"approved:web1:alice:{self.unix()}",
                "location": "/",
                "status": "approved",
                "current_approvals": 1,
                "required_approvals": 1,
            },
        )
        self.assertEqual(response.code, 200)
        self.assertIsNone(response.cookie("pam_flash"))
        self.assertIsNotNone(response.cookie("pam_session"))

    def test_refused(self) -> None:
        """A refusal keeps its status and comes with its sentence."""
        response = self.front.post("/api/challenges/approve", as_script=True, challenge_id="0" * 32)
        key = "challenge_expired_or_resolved"
        self.assertEqual((response.code, response.json), (404, {"error": key, "message": f"The sentence of {key}."}))

    def test_count(self) -> None:
        """Those that act on many say on how many."""
        self.challenge()
        response = self.front.post("/api/challenges/reject-all", as_script=True)
        self.assertEqual((response.json["flash"], response.json["count"]), ("rejected_all:1", 1))

    def test_browsers_get_pages(self) -> None:
        """Anything but exactly ``application/json`` is a browser."""
        headers = {"Accept": "text/html, application/json", "Content-Type": "application/x-www-form-urlencoded"}
        self.assertIn("CARD", self.front.ask("POST", "/api/challenges/approve", headers).text)


class AuditTests(ActionTestCase):
    """What each form leaves in the audit log: what was typed into it, and from where."""

    def recorded(self, path: str, **fields: str) -> dict[str, str]:
        """The optional columns of the one record that the form left."""
        before = len(self.world.store.log.records)
        self.assertEqual(self.front.post(path, **fields).code, 303)
        [record] = [json.loads(sealed.plain) for sealed in self.world.store.log.records[before:]]
        self.assertEqual(record["remote_addr"], PEER)
        return {name: record[name] for name in ("event", "hostname", "actor", "reason") if name in record}

    def test_decisions(self) -> None:
        """The reasons of the forms; one that is no reason is none."""
        self.front.sign_in()
        for action, field, event in (("approve", "reason", "approved"), ("reject", "deny_reason", "rejected")):
            for typed, reason in ((" why ", {"reason": "why"}), ("a\x01b", {})):
                found = self.recorded(f"/api/challenges/{action}", challenge_id=self.challenge(), **{field: typed})
                wanted = {"event": f"challenge_{event}", "hostname": "web1", "actor": "alice", **reason}
                self.assertEqual(found, wanted)

    def test_all(self) -> None:
        """Reject-all takes a reason too, approve-all the request's."""
        self.front.sign_in()
        self.challenge(hostname="")
        found = self.recorded("/api/challenges/reject-all", deny_reason="no")
        wanted = {"event": "challenge_rejected", "hostname": "(unknown)", "actor": "alice", "reason": "no"}
        self.assertEqual(found, wanted)
        self.front.create({"username": "alice", "hostname": "web1", "reason": "asked"})
        found = self.recorded("/api/challenges/approve-all", reason="not looked at")
        wanted = {"event": "challenge_approved", "hostname": "web1", "actor": "alice", "reason": "asked"}
        self.assertEqual(found, wanted)

    def test_sessions(self) -> None:
        """The host of the form, whatever its spelling; none where all sessions are meant."""
        self.front.sign_in()
        for path, typed, event, hostname in (
            ("extend", "WEB1.", "session_extended", {"hostname": "web1"}),
            ("extend", "(unknown)", "session_extended", {"hostname": "(unknown)"}),
            ("extend-all", "", "session_extended", {}),
            ("revoke", "(unknown)", "session_revoked", {"hostname": "(unknown)"}),
            ("revoke-all", "", "sessions_revoked_bulk", {}),
        ):
            self.seed()
            self.seed(hostname="")
            found = self.recorded(f"/api/sessions/{path}", hostname=typed)
            self.assertEqual(found, {"event": event, **hostname, "actor": "alice"})

    def test_behind_a_proxy(self) -> None:
        """The address is the one that a trusted proxy names, not the proxy's."""
        self.front.trust("192.0.2.0/24")
        self.front.create(X_Forwarded_For="198.51.100.9")
        record = json.loads(self.world.store.log.records[-1].plain)
        self.assertEqual(record["remote_addr"], "198.51.100.9")
