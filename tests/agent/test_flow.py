"""The PAM helper against a scripted server: the real archive, real sockets, a real terminal."""

from __future__ import annotations

import os
import signal
import socket
import threading
import unittest

from tests.agent.harness import Helper, interpreters
from tests.agent.scripted import (
    CHALLENGE,
    CODE,
    Answer,
    Request,
    Script,
    approved,
    created,
    denied,
    in_turn,
    pending,
    token,
)

CHOICES = {"error": "justification_required", "justification_choices": ["Incident\x1b[31m", "Deployment"]}


class FlowTestCase(unittest.TestCase):
    def helper(self, script: Script | None, **conf: str) -> Helper:
        helper = Helper(script, conf=conf)
        self.addCleanup(helper.close)
        return helper


class PlainTests(FlowTestCase):
    """Through pam_exec: lines only."""

    def test_approved(self) -> None:
        """An approval with this host's signature opens, and says so last."""
        helper = self.helper(in_turn(created(notification_queued=True), pending(), approved()))
        self.assertEqual(helper.run(), 0, helper.output)
        self.assertEqual(
            helper.output,
            "  sudo requires approval\n  approve at: https://id.example.com/approve/ABCDEF-123456\n"
            "  code: ABCDEF-123456  (notification sent)\n  sudo approved\n",
        )

    def test_every_python(self) -> None:
        """The same archive works on every Python that is here."""
        for version, path in interpreters().items():
            with self.subTest(version):
                helper = self.helper(in_turn(created(), approved()))
                self.assertEqual(helper.run(python=path, on_terminal=True, TERM="xterm", LANG="C.UTF-8"), 0)

    def test_what_is_sent(self) -> None:
        """User and normalised host name are sent with the secret; the poll names the host and may be held."""
        helper = self.helper(in_turn(created(), approved()))
        helper.run()
        assert helper.server
        post, get = helper.server.requests
        self.assertEqual(post.json, {"username": "alice", "hostname": "web01.example.com"})
        self.assertEqual(post.headers["x-shared-secret"], helper.conf["IDENTREE_SHARED_SECRET"])
        self.assertEqual(get.path, f"/api/challenge/{CHALLENGE}")
        self.assertEqual(get.query, {"hostname": "web01.example.com", "wait": "25"})

    def test_grace(self) -> None:
        """A grace session opens at once, says how long it lasts, and nothing is polled."""
        helper = self.helper(
            in_turn(created(status="approved", approval_token=token("approved"), grace_remaining=11520))
        )
        self.assertEqual(helper.run(), 0)
        self.assertEqual(helper.output, "  sudo approved (session expires in 3h 12m)\n")
        assert helper.server
        self.assertEqual(len(helper.server.requests), 1)

    def test_grace_without_signature(self) -> None:
        """An automatic approval without signature does not open."""
        helper = self.helper(in_turn(created(status="approved")))
        self.assertEqual(helper.run(), 1)
        self.assertIn("does not carry this host's signature", helper.output)

    def test_timestamps_are_signed(self) -> None:
        """Rotation and revocation times of the creation belong to what the approval signs."""
        rotate, revoke = "2026-01-01T00:00:00Z", "2026-03-01T00:00:00Z"
        extras = {"rotate_breakglass_before": rotate, "revoke_tokens_before": revoke}
        signed = token("approved", rotate=rotate, revoke=revoke)
        helper = self.helper(in_turn(created(**extras), approved(approval_token=signed)))
        self.assertEqual(helper.run(), 0, helper.output)

    def test_forged_approval(self) -> None:
        """An approval signed with another secret ends the wait without opening."""
        helper = self.helper(in_turn(created(), approved(approval_token=token("approved", secret="x" * 32))))
        self.assertEqual(helper.run(), 1)
        self.assertIn("IDENTREE_SHARED_SECRET", helper.output)

    def test_denial_token_is_no_approval(self) -> None:
        """The signature of a denial does not approve."""
        helper = self.helper(in_turn(created(), approved(approval_token=token("denied"))))
        self.assertEqual(helper.run(), 1)

    def test_denied(self) -> None:
        """A denial ends it; its reason is shown as one clean line."""
        helper = self.helper(in_turn(created(), denied(deny_reason="not now\n\x1b[2Jplease")))
        self.assertEqual(helper.run(), 1)
        self.assertTrue(helper.output.endswith("  sudo denied (reason: not now [2Jplease)\n"), helper.output)

    def test_forged_denial(self) -> None:
        """A denial that nobody signed is passed over; the approval that follows opens."""
        helper = self.helper(in_turn(created(), denied(denial_token="0" * 64), denied(denial_token=""), approved()))
        self.assertEqual(helper.run(), 0, helper.output)

    def test_unsigned_expiry(self) -> None:
        """Expiry carries no signature, so a host with a secret goes on waiting."""
        gone = Answer(410, {"status": "expired"})
        helper = self.helper(in_turn(created(), gone, Answer(404, {"error": "not found"}), approved()))
        self.assertEqual(helper.run(), 0, helper.output)

    def test_expiry_without_secret(self) -> None:
        """Without a secret nothing can be verified, and expiry is believed."""
        helper = self.helper(in_turn(created(), Answer(410, {"status": "expired"})), IDENTREE_SHARED_SECRET="")
        self.assertEqual(helper.run(), 1)
        self.assertIn("expired", helper.output)

    def test_own_timeout(self) -> None:
        """When the own time is over the request is withdrawn; one last look comes before."""
        helper = self.helper(in_turn(created(), pending()), IDENTREE_TIMEOUT="1s")
        self.assertEqual(helper.run(), 1)
        self.assertIn("nobody approved in time", helper.output)
        assert helper.server
        self.assertEqual([r.query for r in helper.server.seen("DELETE")], [{"hostname": "web01.example.com"}])
        self.assertNotIn("wait", helper.server.seen("GET")[-1].query)

    def test_server_expires_first(self) -> None:
        """The server's shorter life of the challenge ends the wait, a little later."""
        helper = self.helper(in_turn(created(expires_in=1), pending()))
        self.assertEqual(helper.run(), 1)

    def test_pushed_timeout(self) -> None:
        """A pushed timeout counts at once, not below its least value."""
        script = in_turn(created(client_config={"timeout": "1s", "poll_interval": "1ms"}), pending())
        helper = self.helper(script, IDENTREE_TIMEOUT="0")
        self.assertEqual(helper.run(), 1)
        assert helper.server
        self.assertGreater(len(helper.server.seen("GET")), 3)

    def test_derived_field(self) -> None:
        """A signature in the extra field counts as well."""
        body = {"status": "approved", "approval_token_derived": token("approved")}
        self.assertEqual(self.helper(in_turn(created(), Answer(200, body))).run(), 0)

    def test_held_poll(self) -> None:
        """A held poll is answered once, by the decision; nothing is asked in between."""
        decided = threading.Event()
        answer = approved()
        held = Answer(answer.status, answer.body, hold=decided)
        helper = self.helper(in_turn(created(), held))
        helper.start()
        assert helper.server
        helper.server.wait_for("GET")
        decided.set()
        self.assertEqual(helper.finish(), 0)
        self.assertEqual(len(helper.server.seen("GET")), 1)

    def test_kept_connection(self) -> None:
        """Polls share one connection, and a connection that the server closed meanwhile is made anew."""
        answer = pending()
        closing = Answer(answer.status, answer.body, close=True)
        helper = self.helper(in_turn(created(), pending(), closing, pending(), approved()))
        self.assertEqual(helper.run(), 0, helper.output)
        assert helper.server
        self.assertEqual(helper.server.connections, 2)

    def test_failing_polls(self) -> None:
        """Nonsense between good answers is survived."""
        bad = Answer(200, b"{nonsense")
        helper = self.helper(in_turn(created(), bad, Answer(raw=b"\x16\x03\x01\r\n"), approved()))
        self.assertEqual(helper.run(), 0, helper.output)

    def test_unexpected_status(self) -> None:
        """A status that nobody agreed on ends it."""
        helper = self.helper(in_turn(created(), Answer(200, {"status": "\x1b]0;perhaps\x07"})))
        self.assertEqual(helper.run(), 1)
        self.assertIn("unknown status (]0;perhaps)", helper.output)

    def test_stricter_server(self) -> None:
        """A server that refuses the optional parts gets the plain request."""

        def script(request: Request) -> Answer:
            if request.method == "GET":
                return approved()
            return Answer(400, {"error": "invalid request body"}) if "command" in request.json else created()

        helper = self.helper(script)
        self.assertEqual(helper.run(SUDO_COMMAND="id"), 0, helper.output)

    def test_other_pam_types(self) -> None:
        """For account and session the helper has no opinion and asks nobody."""
        helper = self.helper(None)
        self.assertEqual(helper.run(PAM_TYPE="session"), 0)
        self.assertEqual(helper.output, "")

    def test_unknown_pam_type(self) -> None:
        """A type that PAM does not have is no way past the question."""
        helper = self.helper(None)
        self.assertEqual(helper.run(PAM_TYPE="Auth"), 1)

    def test_planted_pam_type(self) -> None:
        """A PAM environment in which somebody planted another type does not let anybody in."""
        helper = self.helper(None)
        code = (
            "import os, sys\n"
            "class Twice(dict):\n"
            "    def keys(self): return ['PAM_TYPE', *dict.keys(self)]\n"
            "    def values(self): return ['account', *dict.values(self)]\n"
            "    def __len__(self): return dict.__len__(self) + 1\n"
            "os.execve(sys.executable, [sys.executable, '-ISB', sys.argv[1]], Twice(os.environ))"
        )
        self.assertEqual(helper.run(code=code), 1, helper.output)
        self.assertIn("twice", helper.output)

    def test_bad_user_names(self) -> None:
        """A name that no server accepts is refused before anything else."""
        for name in ("", "-rf", "user@domain", "a" * 65, "a\nb"):
            with self.subTest(name):
                helper = self.helper(in_turn(created()))
                self.assertEqual(helper.run(PAM_USER=name), 1)
                assert helper.server
                self.assertEqual(helper.server.requests, [])

    def test_german(self) -> None:
        """The caller's locale chooses the language."""
        helper = self.helper(in_turn(created(), approved()))
        helper.run(LANG="de_DE.UTF-8")
        self.assertTrue(helper.output.endswith("  sudo genehmigt\n"), helper.output)


class RefusalTests(FlowTestCase):
    """Each failure ends with code 1, its own line, and the remedy in it."""

    def fails(self, answer: Answer, *words: str, **conf: str) -> Helper:
        helper = self.helper(in_turn(answer), **conf)
        self.assertEqual(helper.run(), 1)
        for word in words:
            self.assertIn(word, helper.output)
        self.assertNotIn("Traceback", helper.output)
        return helper

    def test_unauthorized(self) -> None:
        """401 names the secret and the file."""
        self.fails(Answer(401, {"error": "unauthorized"}), "HTTP 401", "IDENTREE_SHARED_SECRET", "client.conf")

    def test_too_many_pending(self) -> None:
        """429 says that requests are waiting, and when to try again."""
        answer = Answer(429, {"error": "rate limit exceeded"}, {"Retry-After": "17"})
        self.fails(answer, "too many requests of alice", "Try again in 17 s.")

    def test_throttled(self) -> None:
        """429 after failed authentication names the secret instead."""
        answer = Answer(429, {"error": "too many failed attempts — try again later"})
        self.fails(answer, "refused this host too often", "IDENTREE_SHARED_SECRET")

    def test_redirect(self) -> None:
        """A redirect is not followed, and its target is named, cleaned."""
        answer = Answer(302, b"", {"Location": "https://evil.example/\x1b[1m"})
        helper = self.fails(answer, "https://evil.example/[1m", "IDENTREE_SERVER_URL")
        assert helper.server
        self.assertEqual(len(helper.server.requests), 1)

    def test_server_error(self) -> None:
        """500 is the server's trouble and is not tried again."""
        helper = self.fails(Answer(500, {"error": "internal error"}), "HTTP 500")
        assert helper.server
        self.assertEqual(len(helper.server.requests), 1)

    def test_bad_request(self) -> None:
        """400 shows what the server said, cleaned."""
        self.fails(Answer(400, {"error": "invalid\x1b[0m hostname format"}), "invalid[0m hostname format")

    def test_other_status(self) -> None:
        """A status that means nothing here points at the URL."""
        self.fails(Answer(418, {}), "HTTP 418", "IDENTREE_SERVER_URL")

    def test_huge_body(self) -> None:
        """A body over the limit is not read to the end."""
        self.fails(Answer(201, b'{"challenge_id":"' + b"0" * 70000 + b'"}'), "too long")

    def test_huge_header(self) -> None:
        """A header without end is cut off."""
        self.fails(Answer(raw=b"HTTP/1.1 200 OK\r\nX: " + b"x" * 40000), "too long a header")

    def test_garbage(self) -> None:
        """What is no HTTP or no JSON object is not understood, and nothing opens."""
        for answer in (
            Answer(raw=b"SSH-2.0-OpenSSH_9\r\n"),
            Answer(201, b"<html>"),
            Answer(201, b"[" * 60000),
            Answer(201, [1, 2]),
            Answer(201, b"\xff\xfe"),
            Answer(raw=b""),
        ):
            with self.subTest(str(answer)[:60]):
                self.fails(answer, "gave no usable answer")

    def test_bad_challenge_id(self) -> None:
        """Only 32 hexadecimal digits become part of a URL."""
        self.fails(created(challenge_id="../../x"), "invalid challenge ID format")

    def test_bad_fields(self) -> None:
        """Fields of other types than agreed are as if absent."""
        odd = created(expires_in="soon", verification_url=7, user_code=["A"], client_config=[], status=1)
        helper = self.helper(in_turn(odd, approved(grace_remaining="long")))
        self.assertEqual(helper.run(), 0, helper.output)

    def test_refused_connection(self) -> None:
        """A server that is down is tried again for some seconds; then the line says what to do."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        helper = self.helper(None, IDENTREE_SERVER_URL=f"http://127.0.0.1:{port}")
        self.assertEqual(helper.run(), 1)
        self.assertIn("trying again for 6 s", helper.output)
        self.assertIn("cannot be reached (connection refused). Check this host's network", helper.output)

    def test_unknown_name(self) -> None:
        """A name without address is the same; Ctrl-C does not have to wait for it."""
        helper = self.helper(None, IDENTREE_SERVER_URL="http://no-such-host.invalid")
        helper.start()
        helper.read_until("trying again", "output")
        helper.signal(signal.SIGINT)
        self.assertEqual(helper.finish(), 1)

    def test_restarting_server(self) -> None:
        """A gateway that says 503 for a moment is bridged."""
        helper = self.helper(in_turn(Answer(503, {}), Answer(502, b"<html>"), created(), approved()))
        self.assertEqual(helper.run(), 0, helper.output)
        self.assertIn("HTTP 503", helper.output)

    def test_configuration_mistakes(self) -> None:
        """Each names its key, and nobody is asked."""
        for key, value in (
            ("IDENTREE_SERVER_URL", ""),
            ("IDENTREE_SERVER_URL", "ftp://x"),
            ("IDENTREE_SERVER_URL", "http://user@x"),
            ("IDENTREE_SHARED_SECRET", "short"),
            ("IDENTREE_HOSTNAME", "web 01"),
        ):
            with self.subTest(f"{key}={value}"):
                helper = self.helper(None, **{"IDENTREE_SERVER_URL": "http://127.0.0.1:1", key: value})
                self.assertEqual(helper.run(), 1)
                self.assertIn(key, helper.output)

    def test_plain_http_needs_permission(self) -> None:
        """An http URL is refused unless it was permitted."""
        helper = self.helper(in_turn(created()), IDENTREE_INSECURE_ALLOW_HTTP_ESCROW="")
        self.assertEqual(helper.run(), 1)
        self.assertIn("https://", helper.output)


# The agent with a system log that writes to standard error.
LOGGED = """
import os, sys, types
fake = types.ModuleType("syslog")
fake.LOG_PID, fake.LOG_AUTHPRIV, fake.LOG_WARNING, fake.LOG_INFO, fake.LOG_ERR = 1, 80, 4, 6, 3
fake.openlog = lambda *a: None
fake.syslog = lambda priority, text: os.write(2, f"LOG {priority} {text}\\n".encode())
sys.modules["syslog"] = fake
sys.path.insert(0, sys.argv.pop(1))
from identree.agent.main import main
main()
"""


class LogTests(FlowTestCase):
    """The host's own record."""

    def log(self, *answers: Answer, **conf: str) -> list[str]:
        helper = self.helper(in_turn(*answers), IDENTREE_SYSLOG="true", **conf)
        helper.run(code=LOGGED)
        return [line[4:] for line in helper.output.splitlines() if line.startswith("LOG ")]

    def test_approved(self) -> None:
        """Request and result are recorded with the first digits of the challenge, never the whole id or the secret."""
        self.assertEqual(
            self.log(created(), approved()),
            ["6 user=alice challenge=00112233 result=pending", "6 user=alice challenge=00112233 result=approved"],
        )

    def test_forged(self) -> None:
        """What looks like an attack is a warning."""
        lines = self.log(created(), denied(denial_token="x"), approved(approval_token="x"))
        self.assertEqual(
            lines[1:],
            [
                '4 user=alice challenge=00112233 result=ignored reason="denial without this host\'s signature"',
                "4 user=alice challenge=00112233 result=forged reason=forged_approval",
            ],
        )

    def test_denied(self) -> None:
        """A denial is recorded with its reason."""
        lines = self.log(created(), denied(deny_reason="not now"))
        self.assertEqual(
            lines[-1], '6 user=alice challenge=00112233 result=denied reason=denied_reason detail="not now"'
        )

    def test_refused(self) -> None:
        """A refusal names its class and status."""
        self.assertEqual(self.log(Answer(401, {})), ["4 user=alice result=refused reason=refused status=401"])

    def test_without_secret(self) -> None:
        """A host that cannot verify says so in its log."""
        lines = self.log(created(), approved(), IDENTREE_SHARED_SECRET="")
        self.assertIn("answers are not verified", lines[0])

    def test_switched_off(self) -> None:
        """IDENTREE_SYSLOG=false leaves no record."""
        helper = self.helper(in_turn(created(), approved()))
        helper.run(code=LOGGED)
        self.assertNotIn("LOG", helper.output)


class TerminalTests(FlowTestCase):
    """On the person's own terminal."""

    def test_code_and_live_line(self) -> None:
        """The QR code is drawn, one line lives and is erased, and nothing goes through pam_exec."""
        helper = self.helper(in_turn(created(), pending(required_approvals=2, current_approvals=1), approved()))
        self.assertEqual(helper.run(on_terminal=True, TERM="xterm-256color", LANG="C.UTF-8"), 0)
        self.assertEqual(helper.output, "")
        self.assertIn("▄▄▄▄▄ █", helper.terminal)
        self.assertIn("1 of 2 approvals", helper.terminal)
        self.assertTrue(helper.terminal.rstrip().endswith("\r\x1b[K  \x1b[32msudo approved\x1b[39m"), helper.terminal)

    def test_no_color(self) -> None:
        """NO_COLOR leaves no colour and no link, only the living line's movements."""
        helper = self.helper(in_turn(created(), approved()))
        helper.run(on_terminal=True, TERM="xterm-256color", LANG="C.UTF-8", NO_COLOR="1")
        self.assertIn(f"code: {CODE}", helper.terminal)
        self.assertEqual(helper.terminal.replace("\x1b[K", "").count("\x1b"), 0)

    def test_small_terminal(self) -> None:
        """A code that does not fit is not drawn."""
        for size in ((50, 59), (20, 100)):
            helper = self.helper(in_turn(created(), approved()))
            helper.run(on_terminal=True, size=size, TERM="xterm", LANG="C.UTF-8")
            self.assertNotIn("▄", helper.terminal)

    def test_ascii_terminal(self) -> None:
        """Without UTF-8 everything is ASCII."""
        helper = self.helper(in_turn(created(), denied(deny_reason="später")))
        helper.run(on_terminal=True, TERM="xterm", LANG="de_DE.ISO-8859-1")
        self.assertTrue(helper.terminal.isascii(), helper.terminal)
        self.assertIn("sudo denied (reason: sp?ter)", helper.terminal)

    def test_dumb_terminal(self) -> None:
        """A dumb terminal gets plain lines through pam_exec."""
        helper = self.helper(in_turn(created(), approved()))
        helper.run(on_terminal=True, TERM="dumb")
        self.assertEqual(helper.terminal, "")
        self.assertIn("sudo approved", helper.output)

    def test_not_a_terminal(self) -> None:
        """Another file under PAM_TTY is not written to."""
        for path in ("/dev/null", "/etc/passwd", "/dev/../etc/passwd"):
            helper = self.helper(in_turn(created(), approved()))
            helper.run(PAM_TTY=path, TERM="xterm")
            self.assertIn("sudo approved", helper.output)

    def ask(self, *typed: str) -> Helper:
        def script(request: Request) -> Answer:
            if request.method == "GET":
                return approved()
            return created() if request.json.get("reason") else Answer(422, CHOICES)

        helper = self.helper(script)
        helper.start(on_terminal=True, TERM="xterm", LANG="C.UTF-8")
        helper.read_until("choice [3]: ")
        helper.type(typed[0])
        for text in typed[1:]:
            helper.read_until("reason: ")
            helper.type(text)
        helper.finish()
        return helper

    def reason(self, helper: Helper) -> object:
        assert helper.server
        return helper.server.seen("POST")[-1].json.get("reason")

    def test_choice(self) -> None:
        """A number chooses; choices are shown and sent without control characters."""
        helper = self.ask("1\n")
        self.assertEqual((helper.code, self.reason(helper)), (0, "Incident[31m"))
        self.assertIn("[2] Deployment", helper.terminal)

    def test_free_text(self) -> None:
        """The last choice, or just Enter, asks for a text."""
        for choice in ("3\n", "\n"):
            helper = self.ask(choice, "disk full\n")
            self.assertEqual((helper.code, self.reason(helper)), (0, "disk full"))

    def test_text_at_once(self) -> None:
        """What is no offered number is the reason itself."""
        self.assertEqual(self.reason(self.ask("4 disks failed\n")), "4 disks failed")

    def test_no_reason(self) -> None:
        """An empty text ends it, and names SUDO_REASON."""
        helper = self.ask("\n", "\n")
        self.assertEqual(helper.code, 1)
        self.assertIn("SUDO_REASON", helper.terminal)

    def test_no_terminal_to_ask_at(self) -> None:
        """Without terminal the line names SUDO_REASON."""
        helper = self.helper(in_turn(Answer(422, CHOICES)))
        self.assertEqual(helper.run(), 1)
        self.assertIn("SUDO_REASON", helper.output)

    def test_control_c(self) -> None:
        """Tried by hand, Ctrl-C withdraws the request and ends."""
        helper = self.helper(in_turn(created(), Answer(200, {"status": "pending"}, hold=threading.Event())))
        helper.start(on_terminal=True, TERM="xterm", LANG="C.UTF-8")
        assert helper.server
        helper.server.wait_for("GET")
        helper.type("\x03")
        helper.server.wait_for("DELETE")
        self.assertEqual(helper.finish(), 1)
        self.assertIn("cancelled; the request was withdrawn", helper.terminal)


class SudoTests(FlowTestCase):
    """With a parent that is named sudo and keeps signals pending."""

    def test_command(self) -> None:
        """Command line, directory, reason, remote address and locale come from sudo's process."""
        helper = self.helper(in_turn(created(), approved()))
        helper.run(
            sudo="sudo|-n|systemctl|restart|my unit",
            SUDO_REASON=" disk\tfull ",
            SSH_CONNECTION="192.0.2.7 1 192.0.2.1 22",
            LANG="de_DE.UTF-8",
        )
        assert helper.server
        sent = helper.server.seen("POST")[0].json
        self.assertEqual(sent["command"], "systemctl restart 'my unit'")
        self.assertEqual((sent["reason"], sent["remote_host"]), ("disk full", "192.0.2.7"))
        self.assertEqual(sent["cwd"], os.getcwd())

    def test_without_asking(self) -> None:
        """``sudo -n`` does not wait for a person: the request is withdrawn and the helper ends."""
        helper = self.helper(in_turn(created(), pending()))
        self.assertEqual(helper.run(sudo="sudo|-n|id"), 1)
        self.assertIn("sudo -n does not wait", helper.output)
        assert helper.server
        self.assertEqual([r.method for r in helper.server.requests], ["POST", "DELETE"])

    def test_without_asking_in_grace(self) -> None:
        """``sudo -n`` with a grace session goes on."""
        helper = self.helper(in_turn(created(status="approved", approval_token=token("approved"))))
        self.assertEqual(helper.run(sudo="sudo|-n|id"), 0)

    def test_pending_interrupt(self) -> None:
        """A Ctrl-C that stays pending in sudo withdraws the request and ends."""
        helper = self.helper(in_turn(created(), Answer(200, {"status": "pending"}, hold=threading.Event())))
        helper.start(sudo="sudo|id")
        assert helper.server
        helper.server.wait_for("GET")
        helper.signal(signal.SIGINT)
        helper.server.wait_for("DELETE")
        self.assertEqual(helper.finish(), 1)
        self.assertIn("cancelled", helper.output)

    def test_old_server(self) -> None:
        """A server that cannot cancel changes nothing."""

        def script(request: Request) -> Answer:
            if request.method == "DELETE":
                return Answer(405, {"error": "method not allowed"})
            if request.method == "POST":
                return created()
            return Answer(200, {"status": "pending"}, hold=threading.Event())

        helper = self.helper(script)
        helper.start(sudo="sudo|id")
        assert helper.server
        helper.server.wait_for("GET")
        helper.signal(signal.SIGQUIT)
        self.assertEqual(helper.finish(), 1)
        self.assertIn("cancelled", helper.output)

    def test_parent_dies(self) -> None:
        """When sudo is killed nobody waits any more: the request is withdrawn."""
        helper = self.helper(in_turn(created(), Answer(200, {"status": "pending"}, hold=threading.Event())))
        helper.start(sudo="sudo|id")
        assert helper.server
        helper.server.wait_for("GET")
        helper.signal(signal.SIGKILL)
        helper.server.wait_for("DELETE")
        helper.finish()
