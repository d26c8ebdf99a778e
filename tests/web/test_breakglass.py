"""Escrow, reports, heartbeats and the list of agents, on the wire (spec/http-api sections 7.4, 7.6, 7.7)."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from identree.app.escrow import EscrowFailed
from identree.core.errors import StorageUnavailable
from identree.storage import escrow as escrow_storage
from identree.web.breakglass import AGENTS_PATH, ESCROW_PATH, HEARTBEAT_PATH, REPORT_PATH
from tests.web.front import Response
from tests.web.house import SECRET, START, House, result
from tests.web.yard import ESCROW_SECRET, MemoryEscrow, Yard

HOST_SECRET = "f" * 64
OTHER_SECRET = "e" * 64
JSON = {"Content-Type": "application/json"}
OK = {"status": "ok"}


class YardCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.yard = Yard()
        self.addCleanup(self.yard.close)

    def said(self, response: Response, code: int, value: object) -> None:
        self.assertEqual((response.code, response.json), (code, value))

    def refused(self, response: Response, code: int, text: str) -> None:
        self.assertEqual((response.code, response.json["error"]), (code, text))

    def post(self, path: str, value: object, secret: str = SECRET, **headers: str) -> Response:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.yard.ask("POST", path, {**JSON, "X-Shared-Secret": secret, **headers}, body)

    def break_store(self, name: str) -> None:
        async def unavailable(*_: object, **__: object) -> object:
            raise StorageUnavailable("locked")

        setattr(self.yard.store, name, unavailable)

    def lines(self, *starts: str) -> list[str]:
        """The log lines that begin so."""
        return [message for message, _ in self.yard.log if message.startswith(starts)]

    @property
    def escrow(self) -> MemoryEscrow:
        assert isinstance(self.yard.escrow, MemoryEscrow)
        return self.yard.escrow


class EscrowTests(YardCase):
    def test_stored(self) -> None:
        """The password is kept, recorded, counted, told to the log and to the audit trail."""
        self.said(self.yard.send_escrow(), 200, OK)
        self.assertEqual(self.escrow.passwords, {"web1": "correct-horse"})
        record = result(self.yard.store.escrow_record("web1"))
        assert record is not None
        self.assertEqual((record.escrowed_at, record.item_id, record.vault_id), (START, "item of web1", "vault"))
        self.assertEqual(self.yard.sample("identree_breakglass_escrow_total", status="success"), 1)
        [event] = self.yard.events()
        self.assertEqual(
            [event.get(name) for name in ("event", "username", "hostname", "actor", "remote_addr")],
            ["breakglass_escrowed", "web1", "web1", None, "192.0.2.7"],
        )
        self.assertEqual(
            self.yard.log,
            [
                ("BREAKGLASS password escrowed", {"host": "web1"}),
                (
                    "BREAKGLASS_ESCROWED",
                    {
                        "host": "web1",
                        "backend": "local",
                        "timestamp": "2026-03-04T09:30:00Z",
                        "remote_addr": "192.0.2.7",
                    },
                ),
            ],
        )

    def test_history(self) -> None:
        """Everybody active on the host sees that there is another password; with nobody there is no entry."""
        self.yard.house.session("alice", "web1", timedelta(hours=1))
        self.yard.send_escrow()
        self.assertEqual(self.yard.history("alice"), [("rotated_breakglass", "web1", "", "")])
        self.assertEqual(self.yard.history("web1"), [])

    def test_hostname_is_normalised(self) -> None:
        """The token is made of what was sent; all else goes by the host's one name."""
        self.said(self.yard.send_escrow("WEB1."), 200, OK)
        self.assertEqual(list(self.escrow.passwords), ["web1"])
        self.assertEqual(self.yard.events()[0]["hostname"], "web1")

    def test_either_secret_signs(self) -> None:
        """Agents that know only the shared secret are heard, also where there is an escrow secret."""
        self.said(self.yard.send_escrow(token=SECRET), 200, OK)
        self.said(self.yard.send_escrow("web2", token=ESCROW_SECRET), 200, OK)
        self.refused(self.yard.send_escrow("web3", token="x" * 32), 403, "invalid escrow token for hostname")

    def test_vector(self) -> None:
        """The token of the contract."""
        secret, host = "0123456789abcdef0123456789abcdef", "web01.example.com"
        at = datetime.fromtimestamp(1767225600, UTC)
        yard = Yard(House(start=at), shared_secret=secret, secrets=(secret,))
        self.addCleanup(yard.close)
        headers = {
            **JSON,
            "X-Shared-Secret": secret,
            "X-Escrow-Ts": "1767225600",
            "X-Escrow-Token": "c1305d6de2c3125ed707cc6025bac42a7ab58a5af293e546f41a471aa948208a",
        }
        body = json.dumps({"hostname": host, "password": "p"}).encode()
        self.said(yard.ask("POST", ESCROW_PATH, headers, body), 200, OK)

    # -- refusals, in the order of section 7.6 ------------------------------------------------------------------------
    def test_wrong_method(self) -> None:
        self.refused(self.yard.ask("GET", ESCROW_PATH), 405, "method not allowed")

    def test_nothing_proves_a_host(self) -> None:
        """Neither shared secret nor registry nor certificate: before anything else."""
        yard = Yard(shared_secret="", secrets=())
        self.addCleanup(yard.close)
        answer = yard.ask("POST", ESCROW_PATH, {}, b"")
        self.refused(answer, 403, "escrow endpoint requires shared secret authentication")

    def test_throttled(self) -> None:
        """After ten failures, with a hint when to come again; a right secret is always admitted."""
        for _ in range(10):
            self.assertEqual(self.yard.send_escrow(secret="wrong").code, 401)
        answer = self.yard.send_escrow(secret="wrong")
        self.refused(answer, 429, "too many authentication failures")
        self.assertEqual(answer.header("Retry-After"), "60")
        self.said(self.yard.send_escrow(), 200, OK)

    def test_wrong_secret(self) -> None:
        """401, counted, with the log line of the contract."""
        self.refused(self.yard.send_escrow(secret="wrong"), 401, "unauthorized")
        self.assertEqual(self.yard.sample("identree_auth_failures_total"), 1)
        expected = {"path": "POST /api/breakglass/escrow", "remote_addr": "192.0.2.7"}
        self.assertEqual(self.yard.log, [("AUTH_FAILURE invalid shared secret", expected)])

    def test_body(self) -> None:
        """Content type, then form, then password, then host."""
        plain = {**self.yard.escrow_headers("web1"), "Content-Type": "text/plain"}
        answer = self.yard.ask("POST", ESCROW_PATH, plain, b"{}")
        self.refused(answer, 415, "content-type must be application/json")
        for value, text in (
            (b"", "invalid request body"),
            (b"[]", "invalid request body"),
            ({"password": 1, "hostname": "web1"}, "invalid request body"),
            (b'{"hostname": "web1", "password": "\xff"}', "invalid request body"),
            (b'{"hostname": "web1", "password": "\\ud800"}', "invalid request body"),
            (json.dumps({"hostname": "web1", "password": "p" * 1024}).encode(), "invalid request body"),
            ({"hostname": "web1"}, "password required"),
            ({"password": ""}, "password required"),
            ({"password": "p"}, "hostname required"),
            ({"password": "p", "hostname": "web 1"}, "invalid hostname format"),
            ({"password": "p", "hostname": "."}, "invalid hostname format"),
            ({"password": "p", "hostname": ".."}, "invalid hostname format"),
            ({"password": "p", "hostname": "web1.."}, "invalid hostname format"),
            ({"password": "p", "hostname": "h" * 254}, "invalid hostname format"),
        ):
            self.refused(self.post(ESCROW_PATH, value), 400, text)
        self.assertEqual(self.escrow.passwords, {})

    def test_complete_within_the_limit(self) -> None:
        """Whatever follows a complete value."""
        body = b'{"hostname": "web1", "password": "p"}' + b" " * 2000
        self.said(self.yard.ask("POST", ESCROW_PATH, self.yard.escrow_headers("web1"), body), 200, OK)

    def test_token_refusals(self) -> None:
        """Each with its text, its log line, and without burning anything."""
        good = self.yard.escrow_headers("web1")
        body = json.dumps({"hostname": "web1", "password": "p"}).encode()
        for changes, text in (
            ({"X-Escrow-Ts": ""}, "missing escrow timestamp"),
            ({"X-Escrow-Ts": "now"}, "invalid escrow timestamp"),
            ({"X-Escrow-Ts": "1.5"}, "invalid escrow timestamp"),
            ({"X-Escrow-Ts": "9" * 400}, "invalid escrow timestamp"),
            ({"X-Escrow-Token": ""}, "invalid escrow token for hostname"),
            ({"X-Escrow-Token": "0" * 64}, "invalid escrow token for hostname"),
            (self.yard.escrow_headers("web2"), "invalid escrow token for hostname"),
        ):
            self.refused(self.yard.ask("POST", ESCROW_PATH, {**good, **changes}, body), 403, text)
        self.assertEqual(len(self.lines("AUTH_FAILURE escrow")), 7)
        self.said(self.yard.ask("POST", ESCROW_PATH, good, body), 200, OK)

    def test_window(self) -> None:
        """A minute either way, and the log tells the difference."""
        for age in (60, -60):
            self.said(self.yard.send_escrow(age=age), 200, OK)
        for age in (61, -61):
            self.refused(self.yard.send_escrow(age=age), 403, "escrow timestamp out of window")
        diffs = [attributes["diff"] for message, attributes in self.yard.log if "out of window" in message]
        self.assertEqual(diffs, ["61s", "-61s"])

    def test_replay(self) -> None:
        """A token that was used is 410; the log says so."""
        self.yard.send_escrow()
        self.refused(self.yard.send_escrow(password="another"), 410, "escrow token already used")
        self.assertEqual(self.escrow.passwords, {"web1": "correct-horse"})
        self.assertEqual(self.lines("REPLAY"), ["REPLAY escrow token already used"])

    def test_replay_in_another_spelling_of_the_time(self) -> None:
        """Leading zeros make no new token."""
        self.yard.send_escrow()
        headers = self.yard.escrow_headers("web1")
        headers["X-Escrow-Ts"] = "00" + headers["X-Escrow-Ts"]
        body = json.dumps({"hostname": "web1", "password": "p"}).encode()
        self.refused(self.yard.ask("POST", ESCROW_PATH, headers, body), 410, "escrow token already used")

    def test_too_many_tokens(self) -> None:
        """429 with a hint."""
        self.patch(escrow_storage, "MOST_USED_TOKENS", 1)
        self.yard.send_escrow()
        answer = self.yard.send_escrow("web2")
        self.refused(answer, 429, "escrow rate limit exceeded")
        self.assertEqual(answer.header("Retry-After"), "60")

    def test_not_configured(self) -> None:
        """501 makes agents rotate without escrow; the token stays good for when there is a back end."""
        backend, self.yard.escrow = self.yard.escrow, None
        self.refused(self.yard.send_escrow(), 501, "escrow not configured on server")
        self.assertEqual(len(self.lines("BREAKGLASS escrow received but not configured")), 1)
        self.yard.escrow = backend
        self.said(self.yard.send_escrow(), 200, OK)

    def test_busy(self) -> None:
        """Five at a time; the sixth may come again with the same token."""
        waits: list[Deferred[None]] = []

        def waiting() -> Deferred[None]:
            waits.append(Deferred())
            return waits[-1]

        self.escrow.waiting = waiting
        running = [
            self.yard.start(
                "POST",
                ESCROW_PATH,
                self.yard.escrow_headers(name),
                json.dumps({"hostname": name, "password": "p"}).encode(),
            )
            for name in ("db1", "db2", "db3", "db4", "db5")
        ]
        self.assertEqual([one.response() for one in running], [None] * 5)
        answer = self.yard.send_escrow("web2")
        self.refused(answer, 503, "too many concurrent escrow operations")
        self.assertEqual(answer.header("Retry-After"), "5")
        self.escrow.waiting = None
        for wait in waits:
            wait.callback(None)
        answers = [one.response() for one in running]
        self.assertEqual([answer.code for answer in answers if answer], [200] * 5)
        self.said(self.yard.send_escrow("web2"), 200, OK)

    def test_failure(self) -> None:
        """500, counted, logged with the reason; the same token is good once more."""
        self.escrow.failure = EscrowFailed("vault said no")
        self.refused(self.yard.send_escrow(), 500, "escrow failed")
        self.assertEqual(self.yard.sample("identree_breakglass_escrow_total", status="failure"), 1)
        told = {"backend": "local", "host": "web1", "err": "vault said no"}
        self.assertEqual(self.yard.log, [("BREAKGLASS escrow failed", told)])
        self.assertEqual((self.yard.events(), result(self.yard.store.escrow_record("web1"))), ([], None))
        self.escrow.failure = None
        self.said(self.yard.send_escrow(), 200, OK)

    def test_command_failure(self) -> None:
        """A custom command has its own text, and its output goes to the log."""
        self.escrow.name = "command"
        self.escrow.failure = EscrowFailed("exit status 1", "no such vault")
        self.refused(self.yard.send_escrow(), 500, "escrow command failed")
        told = {"host": "web1", "err": "exit status 1", "output": "no such vault"}
        self.assertEqual(self.yard.log, [("BREAKGLASS escrow command failed", told)])

    def test_not_recorded(self) -> None:
        """What is stored but cannot be recorded is no success."""
        self.break_store("record_escrow")
        answer = self.yard.send_escrow()
        self.assertEqual((answer.code, answer.header("Retry-After")), (503, "2"))
        self.assertEqual(self.yard.sample("identree_breakglass_escrow_total", status="failure"), 1)

    def test_host_hangs_up(self) -> None:
        """What the back end was sent is recorded all the same: old agents wait for five seconds only."""
        wait: Deferred[None] = Deferred()
        self.escrow.waiting = lambda: wait
        body = json.dumps({"hostname": "web1", "password": "p"}).encode()
        connection = self.yard.start("POST", ESCROW_PATH, self.yard.escrow_headers("web1"), body)
        connection.hang_up()
        self.assertEqual(self.yard.break_glass.running, 1)
        wait.callback(None)
        self.assertEqual((self.yard.break_glass.running, self.yard.store.events), (0, ["breakglass_escrowed"]))

    def test_server_stops(self) -> None:
        """What is under way is given up, and its token is not used."""
        self.escrow.waiting = Deferred
        body = json.dumps({"hostname": "web1", "password": "p"}).encode()
        connection = self.yard.start("POST", ESCROW_PATH, self.yard.escrow_headers("web1"), body)
        result(self.yard.break_glass.stop())
        self.assertEqual(self.yard.break_glass.running, 0)
        answer = connection.response()
        self.assertEqual(answer and answer.code, 503)
        self.escrow.waiting = None
        self.said(self.yard.send_escrow(), 200, OK)

    def test_no_secret_in_the_log(self) -> None:
        """Whatever happens."""
        self.escrow.failure = EscrowFailed("no")
        self.yard.send_escrow()
        self.escrow.failure = None
        self.yard.send_escrow()
        self.yard.send_escrow(token="x" * 32)
        text = repr(self.yard.log) + repr(self.yard.events())
        token = self.yard.escrow_headers("web1")["X-Escrow-Token"]
        self.assertEqual([word for word in ("correct-horse", SECRET, token) if word in text], [])


class EscrowByRegistryTests(YardCase):
    def setUp(self) -> None:
        super().setUp()
        self.yard.register(web1=HOST_SECRET, web2=OTHER_SECRET)

    def test_own_secret(self) -> None:
        """The host's own secret is enough, however the name is spelled, and can be used again."""
        value = {"hostname": "WEB1", "password": "p"}
        for _ in range(2):
            self.said(self.post(ESCROW_PATH, value, HOST_SECRET), 200, OK)
        self.assertEqual(self.escrow.passwords, {"web1": "p"})

    def test_other_credentials(self) -> None:
        """Neither the global secret, with whatever token, nor another host's."""
        self.refused(self.yard.send_escrow(), 403, "invalid credential for hostname")
        answer = self.post(ESCROW_PATH, {"hostname": "web1", "password": "p"}, OTHER_SECRET)
        self.refused(answer, 403, "invalid credential for hostname")
        told = ("AUTH_FAILURE escrow credential mismatch", {"host": "web1", "remote_addr": "192.0.2.7"})
        self.assertEqual(self.yard.log, [told, told])

    def test_unregistered(self) -> None:
        """No secret is an unknown host's."""
        answer = self.post(ESCROW_PATH, {"hostname": "web3", "password": "p"}, HOST_SECRET)
        self.refused(answer, 403, "invalid credential for hostname")


class EscrowByCertificateTests(YardCase):
    def setUp(self) -> None:
        super().setUp()
        self.yard.certificate = "web1"

    def escrow_as(self, hostname: str) -> Response:
        body = json.dumps({"hostname": hostname, "password": "p"}).encode()
        return self.yard.ask("POST", ESCROW_PATH, JSON, body)

    def test_own_name(self) -> None:
        """A host that has nothing but its certificate can rotate, with and without a registry."""
        self.said(self.escrow_as("web1"), 200, OK)
        self.yard.register(web1=HOST_SECRET)
        self.said(self.escrow_as("web1"), 200, OK)

    def test_without_any_secret(self) -> None:
        """Also where the server has no secret at all; but not for another name."""
        yard = self.yard = Yard(shared_secret="", secrets=())
        self.addCleanup(yard.close)
        yard.certificate = "web1"
        self.said(self.escrow_as("web1"), 200, OK)
        self.refused(self.escrow_as("web2"), 403, "invalid credential for hostname")

    def test_other_name(self) -> None:
        """A certificate says nothing about another host."""
        self.refused(self.escrow_as("web2"), 403, "missing escrow timestamp")
        self.yard.register(web1=HOST_SECRET, web2=OTHER_SECRET)
        self.refused(self.escrow_as("web2"), 403, "invalid credential for hostname")


class ReportTests(YardCase):
    def report(self, secret: str = SECRET, **changes: Any) -> Response:
        value = {"hostname": "web1", "username": "alice", "timestamp": int(START.timestamp()) - 3600, **changes}
        return self.post(REPORT_PATH, value, secret)

    def test_told(self) -> None:
        """Event, log line and history, which has the time at which it was used."""
        self.yard.house.session("bob", "web1", timedelta(hours=1))
        self.said(self.report(), 200, OK)
        [event] = self.yard.events()
        self.assertEqual(
            [event.get(name) for name in ("event", "username", "hostname", "actor", "reason", "timestamp")],
            ["break_glass_used", "alice", "web1", None, None, "2026-03-04T09:30:00Z"],
        )
        self.assertEqual(self.yard.history("alice"), [("breakglass_used", "web1", "", "")])
        self.assertEqual(self.yard.history("bob"), [("breakglass_used", "web1", "alice", "")])
        self.assertEqual(result(self.yard.store.history("alice"))[0].at, START - timedelta(hours=1))
        expected = {
            "host": "web1",
            "user": "alice",
            "break_glass_time": "2026-03-04T08:30:00Z",
            "reported_at": "2026-03-04T09:30:00Z",
            "remote_addr": "192.0.2.7",
        }
        self.assertEqual(self.yard.log, [("BREAK_GLASS_USED", expected)])

    def test_told_again(self) -> None:
        """Agents repeat what may not have arrived; it is told once."""
        for _ in range(2):
            self.said(self.report(), 200, OK)
        self.assertEqual((self.yard.store.events, len(self.yard.log)), (["break_glass_used"], 1))
        self.report(timestamp=int(START.timestamp()) - 3599)
        self.assertEqual(len(self.yard.store.events), 2)

    def test_odd_times(self) -> None:
        """A clock that is wrong hides no use: it stands in the history at the time of the report."""
        for number, (timestamp, said) in enumerate(
            (
                (int(START.timestamp()) + 301, "2026-03-04T09:35:01Z"),
                (int(START.timestamp()) - 31 * 86400, "2026-02-01T09:30:00Z"),
                (-1, "1969-12-31T23:59:59Z"),
                (10**17, "100000000000000000"),
                (10**30, "a number that is no time"),
            )
        ):
            host = f"web{number}"
            for _ in range(2):
                self.said(self.report(hostname=host, timestamp=timestamp), 200, OK)
            [entry] = [one for one in result(self.yard.store.history("alice")) if one.hostname == host]
            self.assertEqual((entry.at, entry.reason), (START, f"the host's clock said {said}"))

    def test_no_time(self) -> None:
        """Absent is 0, and is not the host's clock's fault."""
        body = json.dumps({"hostname": "web1", "username": "alice"}).encode()
        self.said(self.yard.ask("POST", REPORT_PATH, {**JSON, "X-Shared-Secret": SECRET}, body), 200, OK)
        self.assertEqual(self.yard.history("alice"), [("breakglass_used", "web1", "", "")])

    def test_refusals(self) -> None:
        """In the order of section 7.7."""
        self.refused(self.yard.ask("GET", REPORT_PATH), 405, "method not allowed")
        self.refused(self.report("wrong"), 401, "unauthorized")
        plain = {"Content-Type": "text/plain", "X-Shared-Secret": SECRET}
        answer = self.yard.ask("POST", REPORT_PATH, plain, b"{}")
        self.refused(answer, 415, "content-type must be application/json")
        for value, text in (
            (b"x", "invalid request body"),
            ({"hostname": "web1", "username": "alice", "timestamp": "1"}, "invalid request body"),
            ({"hostname": "web1", "username": "alice", "timestamp": 1.5}, "invalid request body"),
            ({"hostname": "web1"}, "hostname and username required"),
            ({"username": "alice"}, "hostname and username required"),
            ({"hostname": "web 1", "username": "al ice"}, "invalid hostname format"),
            ({"hostname": "web1", "username": "al ice"}, "invalid username format"),
        ):
            self.refused(self.post(REPORT_PATH, value), 400, text)
        self.assertEqual(self.yard.events(), [])

    def test_throttled(self) -> None:
        """The text of this endpoint."""
        for _ in range(10):
            self.report("wrong")
        self.refused(self.report("wrong"), 429, "too many authentication failures")

    def test_other_host(self) -> None:
        """A host reports only its own uses; the global secret may name any."""
        self.yard.register(web1=HOST_SECRET, web2=OTHER_SECRET)
        self.refused(self.report(OTHER_SECRET), 403, "invalid credential for hostname")
        self.said(self.report(HOST_SECRET), 200, OK)
        self.said(self.report(hostname="web2"), 200, OK)

    def test_other_certificate(self) -> None:
        """The same with certificates."""
        self.yard.certificate = "web2"
        self.refused(self.report(""), 403, "invalid credential for hostname")
        self.said(self.report("", hostname="WEB2"), 200, OK)

    def test_not_recorded(self) -> None:
        """503, so that the agent keeps it."""
        self.break_store("record_use")
        self.assertEqual(self.report().code, 503)


class HeartbeatTests(YardCase):
    def beat(self, secret: str = SECRET, **changes: Any) -> Response:
        return self.post(HEARTBEAT_PATH, {"hostname": "web1", **changes}, secret)

    @property
    def agents(self) -> list[tuple[str, str, str, str]]:
        found = result(self.yard.store.agents())
        return [(one.hostname, one.version, one.os_info, one.address) for one in found]

    def test_alive(self) -> None:
        """204 without a body, whatever the content type; names are trimmed and normalised."""
        answer = self.beat(hostname=" WEB1 ", version=" 1.2 ", os_info="Debian 12 (amd64)")
        self.assertEqual((answer.code, answer.body), (204, b""))
        plain = {"Content-Type": "text/plain", "X-Shared-Secret": SECRET}
        self.assertEqual(self.yard.ask("POST", HEARTBEAT_PATH, plain, b'{"hostname": "web1"}').code, 204)
        self.assertEqual(self.agents, [("web1", "1.2", "Debian 12 (amd64)", "192.0.2.7")])
        self.assertEqual(self.yard.events(), [])

    def test_hostile_texts(self) -> None:
        """What cannot be shown is left out, what is too long is cut."""
        self.beat(version="1\u202e2\n" + "x" * 200, os_info="\x1b[31mDebian" + "y" * 900)
        [(_, version, os_info, _)] = self.agents
        self.assertEqual(
            (version[:3], len(version) <= 64, os_info[:10], len(os_info) <= 200), ("12x", True, "[31mDebian", True)
        )

    def test_refusals(self) -> None:
        """Form first, as deployed servers do."""
        answer = self.yard.ask("GET", HEARTBEAT_PATH)
        self.assertEqual((answer.code, answer.text), (405, "method not allowed\n"))
        for value in (b"", b"[1]", {"hostname": 1}, {"hostname": "web1", "version": []}):
            self.refused(self.post(HEARTBEAT_PATH, value, "wrong"), 400, "invalid JSON")
        for value in ({}, {"hostname": "  "}):
            self.refused(self.post(HEARTBEAT_PATH, value, "wrong"), 400, "hostname is required")
        self.refused(self.beat(hostname="web 1"), 400, "invalid hostname format")
        self.refused(self.beat(hostname="web1.."), 400, "invalid hostname format")
        self.refused(self.beat("wrong"), 401, "unauthorized")

    def test_throttled(self) -> None:
        """Guessing is counted here too."""
        for _ in range(10):
            self.beat("wrong")
        self.refused(self.beat("wrong"), 429, "too many authentication failures")

    def test_registry(self) -> None:
        """The global secret and the host's own; nobody else's, and no unknown host."""
        self.yard.register(web1=HOST_SECRET, web2=OTHER_SECRET)
        self.assertEqual([self.beat(secret).code for secret in (SECRET, HOST_SECRET)], [204, 204])
        self.refused(self.beat(OTHER_SECRET), 401, "unauthorized")
        self.refused(self.beat(hostname="web3"), 403, "hostname not registered")

    def test_certificate(self) -> None:
        """Of the same name."""
        self.yard.certificate = "web1"
        self.assertEqual(self.beat("").code, 204)
        self.refused(self.beat("", hostname="web2"), 401, "unauthorized")

    def test_too_many(self) -> None:
        """It says what helps."""
        from identree.storage import fleet

        self.patch(fleet, "MOST_AGENTS", 1)
        self.beat()
        answer = self.beat(hostname="web2")
        self.refused(answer, 429, "too many hosts; an admin has to remove some on the hosts page")

    def test_rotation(self) -> None:
        """The host is told until it has escrowed another password."""
        result(self.yard.store.request_rotation(["web1"], START, [], [], []))
        self.said(self.beat(), 200, {"rotate_breakglass_before": "2026-03-04T09:30:00Z"})
        self.yard.house.reactor.advance(1)
        self.yard.send_escrow()
        self.assertEqual(self.beat().code, 204)

    def test_global_rotation(self) -> None:
        """The later of the host's time and that of the settings counts."""
        from dataclasses import replace

        self.yard.house.rules = replace(self.yard.house.rules, rotate_before=START + timedelta(days=1))
        result(self.yard.store.request_rotation(["web1"], START, [], [], []))
        self.assertEqual(self.beat().json["rotate_breakglass_before"], "2026-03-05T09:30:00Z")


class AgentsTests(YardCase):
    def agents(self, user: str = "carol", role: str = "admin") -> Response:
        return self.yard.ask("GET", AGENTS_PATH, {"Cookie": f"pam_session={self.yard.house.cookie(user, role)}"})

    def test_listed(self) -> None:
        """The latest first, keys in the order of the contract, what is unknown left out."""
        self.yard.beat("web1", timedelta(minutes=10), version="1.0", os_info="Debian", address="192.0.2.1")
        self.yard.beat("web2", timedelta(seconds=12))
        self.yard.beat("web3", timedelta(minutes=60))
        answer = self.agents()
        self.assertEqual(
            [(one["hostname"], one["last_seen_ago"], one["status"]) for one in answer.json["agents"]],
            [
                ("web2", "12s", "green"),
                ("web1", "10m", "amber"),
                ("web3", "1h", "red"),
            ],
        )
        self.assertEqual(
            list(answer.json["agents"][1].items()),
            [
                ("hostname", "web1"),
                ("version", "1.0"),
                ("os_info", "Debian"),
                ("ip", "192.0.2.1"),
                ("first_seen", "2026-03-04T09:20:00Z"),
                ("last_seen", "2026-03-04T09:20:00Z"),
                ("last_seen_ago", "10m"),
                ("status", "amber"),
            ],
        )
        self.assertNotIn("version", answer.json["agents"][0])

    def test_empty(self) -> None:
        """A list."""
        answer = self.agents()
        self.assertEqual((answer.code, answer.body), (200, b'{"agents":[]}\n'))

    def test_many(self) -> None:
        """More than one piece is still one list."""
        for number in range(1201):
            self.yard.beat(f"web{number}")
        self.assertEqual(len({one["hostname"] for one in self.agents().json["agents"]}), 1201)

    def test_spellings(self) -> None:
        """Old rows in another spelling are the same host, as it was heard of last."""
        self.yard.beat("WEB1", timedelta(days=2))
        self.yard.beat("web1")
        self.assertEqual([one["hostname"] for one in self.agents().json["agents"]], ["web1"])

    def test_refusals(self) -> None:
        """Administrators only."""
        self.refused(self.agents("alice", "user"), 401, "admin session required")
        self.refused(self.yard.ask("GET", AGENTS_PATH), 401, "admin session required")
        answer = self.yard.ask("POST", AGENTS_PATH)
        self.assertEqual((answer.code, answer.text), (405, "method not allowed\n"))
