"""Live updates (spec/http-api section 11, spec/web-ui section 9)."""

from __future__ import annotations

import re

from twisted.trial.unittest import SynchronousTestCase

from identree.core.challenge import Live
from identree.core.errors import StorageUnavailable
from identree.web.events import JOURNAL_FRAMES, KEEPALIVE_SECONDS, MAX_BEHIND, SLICE
from tests.web.front import Connection, Front

CREATED = "event: update\ndata: challenge_created\n\n"


class Events:
    """What a browser reads from one stream."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._position = connection.raw.index(b"\r\n\r\n") + 4

    @property
    def head(self) -> bytes:
        return self.connection.raw.partition(b"\r\n\r\n")[0]

    def read(self) -> str:
        """What came since the last time, without the framing of HTTP."""
        rest = self.connection.raw[self._position :]
        text = b""
        while rest:
            line, _, rest = rest.partition(b"\r\n")
            size = int(line, 16)
            text += rest[:size]
            rest = rest[size + 2 :]
        self._position = len(self.connection.raw)
        return text.decode()


class EventTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.front = Front()
        self.addCleanup(self.front.close)
        self.world = self.front.world
        self.clock = self.world.clock

    def open(self, username: str = "alice", role: str = "user", last_id: str = "") -> Events:
        self.front.sign_in(username, role)
        headers = {"Last-Event-ID": last_id} if last_id else {}
        stream = Events(self.front.start("GET", "/api/events", headers))
        self.clock.advance(0)
        return stream

    def hear(self, event: str, username: str, id: str = "") -> None:
        self.front.streams.heard(Live(event=event, username=username, challenge_id=id))
        self.clock.advance(0)


class ContractTests(EventTestCase):
    def test_headers(self) -> None:
        """The headers that keep proxies from buffering."""
        head = self.open().head
        for line in (
            b"HTTP/1.1 200 OK",
            b"Content-Type: text/event-stream",
            b"Cache-Control: no-cache",
            b"Connection: keep-alive",
            b"X-Accel-Buffering: no",
        ):
            self.assertIn(line, head)
        self.assertNotIn(b"no-store", head)

    def test_connected(self) -> None:
        """The first thing is a comment."""
        self.assertEqual(self.open().read(), ": connected\n\n")

    def test_frames(self) -> None:
        """The old frame and the typed one, with its id."""
        stream = self.open()
        stream.read()
        self.hear("challenge_created", "alice", "c" * 32)
        self.assertEqual(
            stream.read(),
            CREATED + 'id: 0123abcd-1\nevent: challenge_created\ndata: {"challenge":"' + "c" * 32 + '"}\n\n',
        )

    def test_real_changes(self) -> None:
        """A creation and a decision arrive, each once."""
        stream = self.open()
        stream.read()
        id = self.front.create().json["challenge_id"]
        self.front.post("/api/challenges/approve", challenge_id=id)
        self.clock.advance(0)
        self.assertEqual(re.findall("data: (\\w+)\n", stream.read()), ["challenge_created", "challenge_resolved"])

    def test_keepalive(self) -> None:
        """A comment every half minute."""
        stream = self.open()
        stream.read()
        self.clock.pump([1] * KEEPALIVE_SECONDS)
        self.assertEqual(stream.read(), ": keepalive\n\n")
        self.clock.pump([1] * KEEPALIVE_SECONDS)
        self.assertEqual(stream.read(), ": keepalive\n\n")

    def test_own_events_only(self) -> None:
        """Nobody hears of others' requests."""
        stream = self.open()
        stream.read()
        self.hear("challenge_created", "bob", "c" * 32)
        self.assertEqual(stream.read(), "")

    def test_admins_hear_everything_once(self) -> None:
        """Also of their own requests."""
        stream = self.open("carol", "admin")
        stream.read()
        self.hear("challenge_created", "bob")
        self.hear("challenge_created", "carol")
        self.assertEqual(stream.read().count("event: update"), 2)

    def test_refusals(self) -> None:
        """Nobody signed in, and a wrong method, are plain text."""
        response = self.front.ask("GET", "/api/events")
        self.assertEqual((response.code, response.body), (401, b"unauthorized\n"))
        response = self.front.ask("POST", "/api/events")
        self.assertEqual((response.code, response.body), (405, b"method not allowed\n"))

    def test_no_time_out(self) -> None:
        """A quiet stream stays open."""
        stream = self.open()
        self.clock.pump([1] * 300)
        self.assertFalse(stream.connection.closed)


class InternalEventTests(EventTestCase):
    def test_not_for_browsers(self) -> None:
        """What replicas tell each other does not reach a browser."""
        stream = self.open()
        stream.read()
        self.hear("revoked", "alice")
        self.assertEqual(stream.read(), "")


class LimitTests(EventTestCase):
    def test_per_person(self) -> None:
        """So many streams per person; admins do not share a limit."""
        for _ in range(3):
            self.open("carol", "admin")
        self.front.sign_in("carol", "admin")
        response = self.front.ask("GET", "/api/events")
        self.assertEqual((response.code, response.body), (429, b"too many connections\n"))
        self.open("dora", "admin")

    def test_in_all(self) -> None:
        """So many in all."""
        for number in range(8):
            self.open(f"user{number}")
        self.front.sign_in("another")
        self.assertEqual(self.front.ask("GET", "/api/events").code, 429)

    def test_room_again(self) -> None:
        """A browser that goes away makes room, and leaves nothing."""
        streams = [self.open() for _ in range(3)]
        for stream in streams:
            stream.connection.hang_up()
        self.assertEqual(len(self.front.streams), 0)
        self.clock.advance(1)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.open()


class ReplayTests(EventTestCase):
    def test_what_was_missed(self) -> None:
        """A browser that comes back gets what it missed, and only that."""
        for event in ("challenge_created", "challenge_updated", "challenge_resolved"):
            self.hear(event, "alice")
        self.hear("challenge_created", "bob")
        stream = self.open(last_id="0123abcd-1")
        self.assertEqual(re.findall("id: (\\S+)", stream.read()), ["0123abcd-2", "0123abcd-3"])

    def test_nothing_missed(self) -> None:
        """Who saw the last one gets nothing."""
        self.hear("challenge_created", "alice")
        self.assertEqual(self.open(last_id="0123abcd-1").read(), ": connected\n\n")

    def test_first_visit(self) -> None:
        """Without an id nothing is replayed."""
        self.hear("challenge_created", "alice")
        self.assertEqual(self.open().read(), ": connected\n\n")

    def test_another_process(self) -> None:
        """Ids of another process, future ones and nonsense mean: read the page again."""
        self.hear("challenge_created", "alice")
        for number, last_id in enumerate(("ffffffff-1", "0123abcd-2", "0123abcd", "x", "0123abcd--1")):
            stream = self.open(f"user{number}", last_id=last_id)
            self.assertIn("id: 0123abcd-1\nevent: resync\ndata: {}\n\n", stream.read(), last_id)

    def test_too_long_ago(self) -> None:
        """What is no longer in the journal cannot be replayed."""
        for _ in range(JOURNAL_FRAMES + 2):
            self.hear("challenge_created", "bob")
        self.assertIn("event: resync", self.open(last_id="0123abcd-1").read())

    def test_too_much(self) -> None:
        """Very many missed changes are one: read the page again."""
        for _ in range(MAX_BEHIND + 1):
            self.hear("challenge_created", "alice")
        self.assertEqual(self.open(last_id="0123abcd-0").read().count("event:"), 1)

    def test_quiet_stream(self) -> None:
        """Who hears nothing for long has missed nothing."""
        stream = self.open()
        stream.read()
        for _ in range(JOURNAL_FRAMES + 2):
            self.hear("challenge_created", "bob")
        self.hear("challenge_created", "alice")
        self.assertNotIn("resync", stream.read())

    def test_store_lost_sight(self) -> None:
        """When changes of other replicas may have been missed, everybody reads again."""
        stream = self.open()
        stream.read()
        self.hear("resync", "")
        self.assertIn("event: resync", stream.read())
        self.assertIn("event: resync", self.open("bob", last_id="0123abcd-0").read())


class SlowReaderTests(EventTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.stream = self.open()
        self.stream.read()
        self.protocol = self.stream.connection.protocol
        self.protocol.pauseProducing()

    def test_nothing_is_written(self) -> None:
        """While the connection is full, nothing is added to it."""
        self.hear("challenge_created", "alice")
        self.clock.pump([1] * KEEPALIVE_SECONDS)
        self.assertEqual(self.stream.read(), "")

    def test_catches_up(self) -> None:
        """Then it gets what it missed, in order."""
        self.hear("challenge_created", "alice")
        self.hear("challenge_resolved", "alice")
        self.protocol.resumeProducing()
        self.clock.advance(0)
        self.assertEqual(re.findall("id: (\\S+)", self.stream.read()), ["0123abcd-1", "0123abcd-2"])

    def test_too_far_behind(self) -> None:
        """Or is told to read again when that is too much; afterwards all goes on."""
        for _ in range(MAX_BEHIND + 1):
            self.hear("challenge_created", "alice")
        self.protocol.resumeProducing()
        self.clock.advance(0)
        self.assertIn("event: resync", self.stream.read())
        self.hear("challenge_created", "alice")
        self.assertIn(CREATED, self.stream.read())

    def test_dropped(self) -> None:
        """Who reads nothing for a minute is dropped."""
        self.clock.pump([1] * (2 * KEEPALIVE_SECONDS))
        self.assertTrue(self.stream.connection.transport.disconnected)


class EndTests(EventTestCase):
    def test_signed_out(self) -> None:
        """When the session ends the stream says so, and ends."""
        stream = self.open()
        stream.read()
        self.front.post("/signout")
        self.clock.pump([1] * KEEPALIVE_SECONDS)
        self.assertTrue(stream.read().endswith("event: ended\ndata: {}\n\n"))
        self.assertEqual(len(self.front.streams), 0)

    def test_expired(self) -> None:
        """A session that runs out ends it too."""
        stream = self.open()
        self.clock.pump([1] * (1801 + KEEPALIVE_SECONDS))
        self.assertIn("event: ended", stream.read())

    def test_no_longer_an_admin(self) -> None:
        """Who is no admin any more hears only of himself."""
        stream = self.open("carol", "admin")
        connection = self.world.store.connection
        unix = int(self.world.now().timestamp())
        connection.execute("INSERT INTO revoked_admin_sessions VALUES ('carol', ?)", (unix,))
        self.clock.pump([1] * KEEPALIVE_SECONDS)
        stream.read()
        self.hear("challenge_created", "bob")
        self.assertEqual(stream.read(), "")
        self.hear("challenge_created", "carol")
        self.assertIn(CREATED, stream.read())

    def test_database_away(self) -> None:
        """A session that cannot be checked does not end."""
        stream = self.open()

        async def unavailable() -> object:
            raise StorageUnavailable("locked")

        self.world.store.revocations = unavailable  # type: ignore[assignment, method-assign]
        self.clock.pump([1] * KEEPALIVE_SECONDS)
        self.assertNotIn("ended", stream.read())

    def test_shutdown(self) -> None:
        """The server ends all streams cleanly, and opens no further ones."""
        stream = self.open()
        self.front.streams.close()
        self.assertTrue(stream.connection.raw.endswith(b"0\r\n\r\n"))
        self.assertEqual(self.front.site.busy(), 0)
        self.assertEqual(self.front.ask("GET", "/api/events").code, 503)


class FairnessTests(EventTestCase):
    def test_slices(self) -> None:
        """Many streams are written to in slices, so that others work in between."""
        self.front.streams.limit = self.front.site._max_connections = 10_000
        streams = [self.open(f"user{number}", "admin") for number in range(SLICE + 1)]
        for stream in streams:
            stream.read()
        self.front.streams.heard(Live(event="challenge_created", username="bob"))
        turn = min(self.clock.getDelayedCalls(), key=lambda call: call.getTime())
        turn.func()
        self.assertEqual(sum(1 for stream in streams if stream.read()), SLICE)
        self.clock.advance(0)
        self.assertEqual(sum(1 for stream in streams if stream.read()), 1)
