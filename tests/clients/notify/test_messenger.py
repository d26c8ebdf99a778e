"""Messages on their way: requests, answers, receivers that can edit, commands."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import shutil
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import ResponseDone
from twisted.web.http_headers import Headers

from identree.app.ports import DeliveryFailed
from identree.clients.guarded import Denied
from identree.clients.notify.messenger import Notifiers
from identree.clients.notify.webpush import VapidKey
from identree.core.notices import Channel
from identree.storage.interface import PushDevice
from tests.clients.notify.test_payloads import HOSTILE, RICH, TESTED
from tests.clients.notify.test_webpush import Browser

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HOOK = Channel(name="hook", backend="webhook", url="https://hooks.example/services/T000/abcdefghijklmnopqrst")


class FakeResponse:
    def __init__(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.code = code
        self.headers = Headers({name.replace("_", "-"): [value] for name, value in headers.items()})
        self._body = body

    def deliverBody(self, protocol: Any) -> None:
        protocol.makeConnection(_Transport())
        protocol.dataReceived(self._body)
        protocol.connectionLost(Failure(ResponseDone()))


class _Transport:
    def loseConnection(self) -> None: ...


class FakeHTTP:
    """
    :ivar requests: method, URL, headers and body.
    :ivar answers: what comes next; a Deferred stays open.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answers: list[Any] = []

    def request(self, method: str, url: str, **options: Any) -> Any:
        assert options["allow_redirects"] is False
        self.requests.append((method, url, dict(options["headers"]), options["data"]))
        answer = self.answers.pop(0) if self.answers else FakeResponse(200)
        if isinstance(answer, Deferred):
            return answer
        return fail(answer) if isinstance(answer, Exception) else succeed(answer)


class MessengerCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.http, self.clock = FakeHTTP(), Clock()
        self.notifiers = self.make(self.clock)

    def make(self, clock: Any, mailer: Any = None) -> Notifiers:
        return Notifiers(
            http=self.http,
            mailer=mailer,
            clock=clock,
            now=lambda: NOW,
            timeout_seconds=lambda: 15.0,
            user_agent="identree/1.2",
            vapid=VapidKey(b"s" * 32),
            contact="mailto:ops@example.com",
            random=os.urandom,
            environment={"PATH": os.environ["PATH"], "HOME": "/root", "SECRET": "no"},
        )

    def send(self, channel: Channel = HOOK, notice: Any = RICH, **more: Any) -> Any:
        return Deferred.fromCoroutine(self.notifiers.send(channel, notice, **more))

    def failed(self, channel: Channel = HOOK, **more: Any) -> DeliveryFailed:
        value = self.failureResultOf(self.send(channel, **more), DeliveryFailed).value
        assert isinstance(value, DeliveryFailed)
        return value


class HTTPTests(MessengerCase):
    def test_request(self) -> None:
        """JSON by POST, with token, our name, and a key by which a repetition is known."""
        self.assertEqual(self.successResultOf(self.send(replace(HOOK, token="t0k"))), "")
        self.successResultOf(self.send())
        (method, url, headers, body), (_, _, again, _) = self.http.requests
        self.assertEqual((method, url), ("POST", HOOK.url))
        self.assertEqual(headers["Content-Type"], "application/json")
        self.assertEqual((headers["Authorization"], headers["User-Agent"]), ("Bearer t0k", "identree/1.2"))
        self.assertEqual(headers["Idempotency-Key"], again["Idempotency-Key"])
        self.assertNotIn("Authorization", again)
        self.assertEqual(json.loads(body)["username"], "alice")

    def test_signed(self) -> None:
        """With a key the time and the body are signed."""
        self.successResultOf(self.send(replace(HOOK, secret="k3y")))
        _, _, headers, body = self.http.requests[0]
        stamp = headers["X-Identree-Timestamp"]
        wanted = hmac.new(b"k3y", stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
        self.assertEqual((stamp, headers["X-Identree-Signature"]), (str(int(NOW.timestamp())), f"sha256={wanted}"))

    def test_unsigned(self) -> None:
        """Without one nothing is claimed."""
        self.successResultOf(self.send())
        self.assertNotIn("X-Identree-Signature", self.http.requests[0][2])

    def test_statuses(self) -> None:
        """What is below 400 is taken; what may pass is tried again, the rest is final."""
        for status, permanent in ((400, True), (401, True), (404, True), (408, False), (425, False), (429, False)):
            self.http.answers = [FakeResponse(status)]
            self.assertEqual(self.failed().permanent, permanent, status)
        for status in (500, 502, 503, 599):
            self.http.answers = [FakeResponse(status)]
            self.assertFalse(self.failed().permanent)
        for status in (200, 204, 302):
            self.http.answers = [FakeResponse(status)]
            self.successResultOf(self.send())

    def test_retry_after(self) -> None:
        """A receiver may ask for patience, in seconds or by a date; nonsense asks for none."""
        date = (NOW + timedelta(seconds=90)).strftime("%a, %d %b %Y %H:%M:%S GMT")
        for text, seconds in (("7", 7.0), (date, 90.0), ("soon", None), ("-5", None), ("9" * 30, None)):
            self.http.answers = [FakeResponse(429, retry_after=text)]
            self.assertEqual(self.failed().retry_after, seconds, text)

    def test_words(self) -> None:
        """What the receiver says is shown in one line, cut, without our secrets and without hidden characters."""
        body = b"bad\r\ntoken t0k at " + HOOK.url.encode() + "\u202e".encode() + b"z" * 5000
        self.http.answers = [FakeResponse(400, body)]
        said = str(self.failed(replace(HOOK, token="t0k")))
        self.assertTrue(said.startswith("server returned 400: bad token *** at ***z"), said[:80])
        self.assertTrue(len(said) <= 1024 + 40)

    def test_network(self) -> None:
        """A broken connection and a denied address may pass; both are said without the address."""
        self.http.answers = [Refused()]
        self.assertFalse(self.failed().permanent)
        self.http.answers = [Denied("hooks.example is at a private address")]
        self.assertIn("private", str(self.failed()))

    def test_time(self) -> None:
        """An attempt ends after ten seconds, or sooner where the channel says so."""
        for channel, seconds in ((HOOK, 10), (replace(HOOK, timeout=timedelta(seconds=3)), 3)):
            self.http.answers = [Deferred()]
            sending = self.send(channel)
            self.clock.advance(seconds - 0.5)
            self.assertNoResult(sending)
            self.clock.advance(1)
            self.assertFalse(self.failureResultOf(sending, DeliveryFailed).value.permanent)

    def test_no_address(self) -> None:
        """A channel without an address fails for good."""
        self.assertTrue(self.failed(Channel(name="x", backend="teams")).permanent)
        self.assertTrue(self.failed(Channel(name="x", backend="ntfy", url="https://ntfy.sh")).permanent)
        self.assertEqual(self.http.requests, [])

    def test_backends(self) -> None:
        """Each back end has its own body; one that is unknown is a webhook."""
        url = "https://x.example/topic"
        for backend, member in (
            ("ntfy", "topic"),
            ("slack", "blocks"),
            ("discord", "embeds"),
            ("teams", "attachments"),
            ("apprise", "body"),
            ("webhook", "user_code"),
            ("whatever", "user_code"),
        ):
            self.http.requests.clear()
            self.successResultOf(self.send(Channel(name="x", backend=backend, url=url), HOSTILE))
            self.assertIn(member, json.loads(self.http.requests[0][3]), backend)


class EditTests(MessengerCase):
    def test_slack_bot(self) -> None:
        """The bot's message is known by channel and time, and updated; an error in the body is one."""
        bot = Channel(name="s", backend="slack", url="https://slack.com/api/chat.postMessage", token="x", topic="#ops")
        self.http.answers = [FakeResponse(200, b'{"ok":true,"ts":"1.2","channel":"C1"}')]
        reference = self.successResultOf(self.send(bot))
        self.http.answers = [FakeResponse(200, b'{"ok":true,"ts":"1.2","channel":"C1"}')]
        self.successResultOf(self.send(bot, previous=reference))
        _, url, _, body = self.http.requests[1]
        value = json.loads(body)
        self.assertEqual((url, value["ts"], value["channel"]), ("https://slack.com/api/chat.update", "1.2", "C1"))
        self.assertTrue(self.notifiers.edits(bot))
        for error, permanent in (("channel_not_found", True), ("ratelimited", False)):
            self.http.answers = [FakeResponse(200, json.dumps({"ok": False, "error": error}).encode())]
            self.assertEqual(self.failed(bot).permanent, permanent)

    def test_slack_webhook(self) -> None:
        """A webhook of Slack cannot edit."""
        hook = Channel(name="s", backend="slack", url="https://hooks.slack.com/services/x")
        self.http.answers = [FakeResponse(200, b"ok")]
        self.assertEqual(self.successResultOf(self.send(hook)), "")
        self.assertFalse(self.notifiers.edits(hook))

    def test_ntfy(self) -> None:
        """A message is brought up to date by its sequence, where the server says that it knows what that is."""
        channel = Channel(name="n", backend="ntfy", url="https://ntfy.example/alerts")
        self.assertTrue(self.notifiers.edits(channel))
        first = self.send(channel)
        sequence = json.loads(self.http.requests[0][3])["sequence_id"]
        self.assertRegex(sequence, "^[-_A-Za-z0-9]{1,64}$")
        # before 2.16
        self.assertEqual(self.successResultOf(first), "")
        self.http.answers = [FakeResponse(200, json.dumps({"id": "x", "sequence_id": sequence}).encode())] * 2
        self.assertEqual(self.successResultOf(self.send(channel)), sequence)
        edited = self.send(channel, replace(RICH, key="i:9", outcome="approved"), previous=sequence)
        self.assertEqual(self.successResultOf(edited), sequence)
        self.assertEqual({json.loads(body)["sequence_id"] for *_, body in self.http.requests}, {sequence})
        self.successResultOf(self.send(channel, replace(RICH, key="")))
        self.assertNotIn("sequence_id", json.loads(self.http.requests[-1][3]))

    def test_discord(self) -> None:
        """The message's id is asked for, and used to change it; an odd one is none."""
        channel = Channel(name="d", backend="discord", url="https://discord.com/api/webhooks/1/abc?thread_id=7")
        self.http.answers = [FakeResponse(200, b'{"id":"123"}')]
        self.assertEqual(self.successResultOf(self.send(channel)), "123")
        self.successResultOf(self.send(channel, previous="123"))
        self.assertEqual(
            [(method, url) for method, url, *_ in self.http.requests],
            [
                ("POST", "https://discord.com/api/webhooks/1/abc?thread_id=7&wait=true"),
                ("PATCH", "https://discord.com/api/webhooks/1/abc/messages/123?thread_id=7"),
            ],
        )
        self.http.answers = [FakeResponse(200, b'{"id":"../x"}')]
        self.assertEqual(self.successResultOf(self.send(channel)), "")


class PushTests(MessengerCase):
    def setUp(self) -> None:
        super().setUp()
        self.browser = Browser()
        self.device = PushDevice(
            id="d",
            username="carol",
            endpoint="https://push.example/send/secret",
            p256dh=self.browser.p256dh,
            auth=self.browser.auth,
            created_at=NOW,
        )
        self.channel = Channel(name="webpush", backend="webpush")

    def test_sent(self) -> None:
        """Encrypted for the browser, with the headers that push services want; the outcome takes its place."""
        self.successResultOf(self.send(self.channel, device=self.device))
        over = replace(RICH, outcome="approved", event="challenge_approved", approval_url="", onetap_url="")
        self.successResultOf(self.send(self.channel, over, device=self.device))
        (_, url, headers, body), (_, _, later, _) = self.http.requests
        self.assertEqual((url, headers["Content-Encoding"]), (self.device.endpoint, "aes128gcm"))
        self.assertEqual((headers["TTL"], headers["Urgency"]), ("120", "high"))
        self.assertTrue(headers["Authorization"].startswith("vapid t="))
        self.assertEqual((headers["Topic"], len(headers["Topic"])), (later["Topic"], 32))
        shown = json.loads(self.browser.decrypt(body))
        self.assertEqual((shown["title"], shown["code"]), ("Sudo approval needed", RICH.user_code))

    def test_gone(self) -> None:
        """A browser that gave the subscription up is gone for good; other refusals are not that."""
        for status, gone in ((404, True), (410, True), (400, False), (429, False)):
            self.http.answers = [FakeResponse(status)]
            self.assertEqual(self.failed(self.channel, device=self.device).gone, gone)

    def test_no_device(self) -> None:
        """Without a device there is nobody, and with broken keys nothing can be sent."""
        self.assertTrue(self.failed(self.channel).permanent)
        self.assertTrue(self.failed(self.channel, device=replace(self.device, p256dh="AAAA")).permanent)

    def test_address_is_secret(self) -> None:
        """What a push service says never shows the address."""
        self.http.answers = [FakeResponse(400, b"no such https://push.example/send/secret")]
        self.assertNotIn("secret", str(self.failed(self.channel, device=self.device)))


def running(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


class CommandTests(TestCase):
    """Real processes."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        case = MessengerCase()
        case.http = FakeHTTP()
        self.notifiers = MessengerCase.make(case, reactor)

    def channel(self, command: str, seconds: float = 20) -> Channel:
        return Channel(name="cmd", backend="custom", command=command, timeout=timedelta(seconds=seconds))

    async def failed(self, channel: Channel) -> DeliveryFailed:
        try:
            await self.notifiers.send(channel, RICH)
        except DeliveryFailed as e:
            return e
        raise AssertionError("it succeeded")

    async def test_environment(self) -> None:
        """It gets PATH, HOME and what the message says, and nothing else; no input."""
        file = self.directory / "env"
        await self.notifiers.send(self.channel(f"env > {file}; cat >> {file}"), TESTED)
        names = {line.partition("=")[0] for line in file.read_text().splitlines()}
        ours = {name for name in names if name not in ("PWD", "SHLVL", "_", "OLDPWD")}
        self.assertEqual({name for name in ours if not name.startswith("NOTIFY_")}, {"PATH", "HOME"})
        self.assertIn("NOTIFY_EVENT=test", file.read_text())

    async def test_failed(self) -> None:
        """Any other status than 0 is final, with the beginning of what it said."""
        failure = await self.failed(self.channel("echo no luck >&2; head -c 3000000 /dev/zero | tr '\\0' x; exit 3"))
        self.assertTrue(failure.permanent)
        self.assertIn("status 3", str(failure))
        self.assertTrue(len(str(failure)) < 600)

    async def test_late(self) -> None:
        """What takes too long is killed with all that it has started."""
        file = self.directory / "pid"
        began = time.monotonic()
        failure = await self.failed(self.channel(f"sleep 1000 & echo $! > {file}; wait", 1))
        self.assertIn("killed", str(failure))
        self.assertTrue(time.monotonic() - began < 60)
        pid = int(file.read_text())
        end = time.monotonic() + 20
        # the signal has been sent to all of them; each dies in its own time
        while running(pid) and time.monotonic() < end:
            await deferLater(reactor, 0.02)
        self.assertFalse(running(pid))

    async def test_none(self) -> None:
        """A channel without a command fails for good."""
        self.assertTrue((await self.failed(self.channel(" "))).permanent)
