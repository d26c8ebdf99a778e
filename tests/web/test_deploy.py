"""Deploying over SSH as browsers see it (spec/http-api section 9.1, spec/notifications-and-policy section 10)."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

from identree.app.deploys import Deploys, Parts
from identree.app.people import Caller
from identree.core import tokens
from identree.core.addresses import Network
from identree.core.deploy import Access
from identree.core.errors import StorageUnavailable
from identree.storage.hostkeys import DeployStore
from identree.web.deploy import (
    BODY_LIMITS,
    CANCEL_PATH,
    DEPLOY_PAGE,
    DEPLOY_PATH,
    FORGET_PATH,
    KEEPALIVE_SECONDS,
    PAGE_PATH,
    PUBLIC_KEY_PATH,
    REMOVE_PATH,
    STREAM_PREFIX,
    USERS_PATH,
    DeployCalls,
    DeployDesk,
    DeployRoutes,
    KeyHolder,
)
from identree.web.fleet import AdminCalls
from identree.web.reading import Addresses
from identree.web.render import Renderer
from identree.web.root import Root, _tables
from identree.web.sessions import BrowserSessions
from identree.web.site import Request, Site
from tests.app.test_deploys import FakeSsh
from tests.web.front import Connection, Response, encoded
from tests.web.house import EXTERNAL_URL, House
from tests.web.test_render import Document, PageCase

ADDRESS = "192.0.2.7"


def deploy_site(
    house: House, desk: DeployDesk, trusted: Callable[[], Sequence[Network]] = tuple, more: Sequence[Any] = ()
) -> Site:
    """The pages of a house, these, and ``more`` routes."""
    sessions = BrowserSessions(house.people, lambda: house.rules)
    exact, prefixes, templates = _tables(
        one.router
        for one in (
            *more,
            DeployCalls(
                desk=desk,
                calls=AdminCalls(people=house.people, sessions=sessions),
                sessions=sessions,
                addresses=Addresses(trusted),
                clock=house.reactor,
            ),
            DeployRoutes(
                desk=desk,
                decisions=house.decisions,
                sessions=sessions,
                render=Renderer(now=house.now, rules=lambda: house.rules, admin_pages=[DEPLOY_PAGE]),
                rules=lambda: house.rules,
                ends_at=house.people.session_ends_at,
            ),
        )
    )
    return Site(
        Root(
            {**house.root._exact, **exact},
            {**dict(house.root._prefixes), **prefixes},
            str,
            {**house.root._templates, **templates},
        ),
        reactor=house.reactor,
        external_url=house.rules.external_url,
        token=secrets.token_hex,
        body_limits=BODY_LIMITS,
    )


class DeployCase(PageCase):
    def setUp(self) -> None:
        self.house = House()
        self.clock = self.house.reactor
        self.ssh = FakeSsh()
        self.holders: Sequence[KeyHolder] | Exception = ()
        self.script_fails = False
        self.trusted: tuple[Network, ...] = ()
        numbers = iter(range(1, 1000))
        self.removed: list[str] = []
        self.deploys = Deploys(
            ssh=self.ssh,
            records=DeployStore(self.house.store.driver),
            parts=Parts(
                server_url=lambda: "https://get.example/",
                install_script=self.script,
                uninstall_script=self.uninstall,
                access=self.access,
                remove_host=self.remove_host,
                secrets=lambda: ["the shared secret"],
            ),
            clock=self.clock,
            monotonic=self.clock.seconds,
            now=self.house.now,
            token=lambda n: f"{next(numbers):0{2 * n}x}",
            journal=self.house.journal,
        )
        desk = DeployDesk(deploys=self.deploys, key_holders=self.key_holders, server_url=lambda: "https://get.example/")
        self.site = deploy_site(self.house, desk, lambda: self.trusted)
        self.cookie = self.house.cookie("carol", "admin")

    async def script(self) -> bytes:
        if self.script_fails:
            raise OSError("gone")
        return b"echo\n"

    async def uninstall(self, pam: bool, files: bool) -> bytes:
        if self.script_fails:
            raise OSError("gone")
        return f"pam={pam} files={files}\n".encode()

    async def access(self, who: Caller, hostname: str, address: str) -> Access:
        return Access(token=f"identree-enrol-{hostname}")

    async def remove_host(self, who: Caller, hostname: str, address: str) -> None:
        self.removed.append(hostname)

    async def key_holders(self) -> Sequence[KeyHolder]:
        if isinstance(self.holders, Exception):
            raise self.holders
        return self.holders

    # -- talking ------------------------------------------------------------------------------------------------------
    def open(self, method: str, path: str, body: bytes = b"", **headers: str | None) -> Connection:
        connection = Connection(self.site, ADDRESS)
        self.addCleanup(connection.hang_up)
        sent: dict[str, str | None] = {"Cookie": f"pam_session={self.cookie}", **headers}
        named = {name.replace("_", "-"): value for name, value in sent.items() if value is not None}
        connection.send(encoded(method, path, named, body))
        return connection

    def get(self, path: str, **headers: str | None) -> Response:
        response = self.open("GET", path, **headers).response()
        assert response is not None
        return response

    def call(self, path: str, value: Any, **headers: str | None) -> Response:
        """With the headers of a signed-in script; one given as None is left out."""
        ts = int(self.house.now().timestamp())
        sent: dict[str, str | None] = {
            "Content-Type": "application/json",
            "X-CSRF-Token": tokens.csrf_token(self.house.keys, "carol", ts),
            "X-CSRF-Ts": str(ts),
            **{name.replace("_", "-"): text for name, text in headers.items()},
        }
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        response = self.open("POST", path, body, **sent).response()
        assert response is not None
        return response

    def wish(self, **changed: Any) -> dict[str, Any]:
        value = {"hostname": "web1", "private_key": "key", "host_key": self.ssh.shows.fingerprint, **changed}
        return {name: member for name, member in value.items() if member is not None}

    def started(self, path: str = DEPLOY_PATH, **changed: Any) -> str:
        response = self.call(path, self.wish(**changed))
        self.assertEqual(response.code, 200, response.text)
        self.clock.advance(15)
        return str(response.json["id"])

    def refused(self, code: int, error: str, response: Response) -> None:
        self.assertEqual((response.code, response.json["error"]), (code, error))

    def say(self, text: str) -> None:
        self.ssh.output(text.encode(), True)
        self.clock.advance(0)

    def frames(self, connection: Connection) -> list[str]:
        """What a stream has sent so far, without its headers and chunk sizes."""
        text = connection.raw.partition(b"\r\n\r\n")[2].decode()
        pieces = text.split("\r\n")
        return [frame for piece in pieces[1::2] for frame in piece.split("\n\n") if frame]


class AuthenticationTests(DeployCase):
    def test_posts(self) -> None:
        """JSON of a signed-in administrator: session, role, form token, content type."""
        for path in (DEPLOY_PATH, REMOVE_PATH, PUBLIC_KEY_PATH, CANCEL_PATH, FORGET_PATH):
            with self.subTest(path=path):
                self.refused(401, "unauthorized", self.call(path, self.wish(), Cookie=None))
                user = f"pam_session={self.house.cookie('carol')}"
                self.refused(401, "unauthorized", self.call(path, self.wish(), Cookie=user))
                self.refused(403, "missing CSRF headers", self.call(path, self.wish(), X_CSRF_Token=None))
                self.refused(403, "invalid CSRF token", self.call(path, self.wish(), X_CSRF_Token="0" * 64))
                wrong = self.call(path, self.wish(), Content_Type="text/plain")
                self.refused(415, "content-type must be application/json", wrong)
                self.refused(405, "method not allowed", self.get(path))
        self.assertEqual(self.ssh.keys, [])

    def test_sessions_only(self) -> None:
        """The list and the stream need no more than an administrator's session."""
        for path in (USERS_PATH, STREAM_PREFIX + "0" * 32):
            self.refused(401, "unauthorized", self.get(path, Cookie=None))
            user = f"pam_session={self.house.cookie('carol')}"
            self.refused(401, "unauthorized", self.get(path, Cookie=user))


class StartTests(DeployCase):
    def test_installing(self) -> None:
        """The id of the contract; the defaults; the token of the host."""
        self.assertEqual(self.started(), f"{1:032x}")
        self.assertEqual(
            self.ssh.sent,
            [("bash -s 'https://get.example/'", b"export IDENTREE_ENROL_TOKEN='identree-enrol-web1'\necho\n")],
        )

    def test_another_name(self) -> None:
        """Where SSH goes to an address, the host can be named."""
        self.started(hostname="192.0.2.1", known_as="Web1", ssh_user="ops", port=2222, pocketid_user="alice")
        self.assertIn(b"identree-enrol-web1", self.ssh.sent[0][1])

    def test_removing(self) -> None:
        """The id is shorter; the host is forgotten when it worked."""
        self.assertEqual(self.started(REMOVE_PATH, unconfigure_pam=True, remove_files=False), f"{1:016x}")
        self.assertEqual(self.ssh.sent, [("bash", b"pam=True files=False\n")])
        self.ssh.running[0].callback(0)
        self.assertEqual(self.removed, ["web1"])

    def test_texts(self) -> None:
        """The refusals of the contract."""
        for changed, error in (
            ({"hostname": None}, "hostname required"),
            ({"hostname": "a b"}, "invalid hostname"),
            ({"ssh_user": "a b"}, "invalid ssh_user"),
            ({"port": 70000}, "invalid port"),
            ({"port": "22"}, "invalid JSON"),
            ({"private_key": None}, "private_key required"),
            ({"private_key": "x"}, "invalid private key: no key"),
            ({"known_as": "a b"}, "invalid known_as"),
        ):
            with self.subTest(error=error):
                self.refused(400, error, self.call(DEPLOY_PATH, self.wish(**changed)))
                self.clock.advance(15)
        self.refused(400, "invalid JSON", self.call(DEPLOY_PATH, b"[]"))

    def test_texts_of_a_removal(self) -> None:
        """They differ."""
        for changed, error in (
            ({"hostname": "a b"}, "hostname required"),
            ({"port": 1.5}, "invalid request body"),
            ({"unconfigure_pam": "yes"}, "invalid request body"),
        ):
            self.refused(400, error, self.call(REMOVE_PATH, self.wish(**changed)))
            self.clock.advance(15)
        self.refused(400, "invalid request body", self.call(REMOVE_PATH, b"{"))
        self.clock.advance(15)
        locked = self.call(REMOVE_PATH, self.wish(unconfigure_pam=False, remove_files=True))
        self.assertIn("sudo would not work any more", locked.json["error"])

    def test_a_long_body(self) -> None:
        """It is cut, and so no JSON any more."""
        response = self.call(DEPLOY_PATH, json.dumps(self.wish(private_key="x" * 70_000)).encode())
        self.refused(400, "invalid JSON", response)

    def test_too_soon(self) -> None:
        """One start per address, counted before the body is looked at; the address behind our proxies counts."""
        self.call(DEPLOY_PATH, b"{")
        response = self.call(DEPLOY_PATH, self.wish())
        self.refused(429, "too many requests — wait before retrying", response)
        self.assertEqual(response.header("Retry-After"), "15")
        self.refused(429, "too many requests — wait before retrying", self.call(REMOVE_PATH, self.wish()))

    def test_too_many(self) -> None:
        """Three at a time."""
        for _ in range(3):
            self.started()
        response = self.call(DEPLOY_PATH, self.wish())
        self.refused(503, "server busy — too many concurrent deploys", response)

    def test_no_script(self) -> None:
        """The text of the contract."""
        self.script_fails = True
        self.refused(500, "failed to render install script", self.call(DEPLOY_PATH, self.wish()))
        self.flushLoggedErrors(OSError)

    def test_no_database(self) -> None:
        """Nothing was done, and trying again may help."""

        async def unavailable(*asked: object) -> None:
            raise StorageUnavailable("locked")

        self.patch(self.deploys._records, "host_key", unavailable)
        self.assertEqual(self.call(DEPLOY_PATH, self.wish()).code, 503)

    def test_the_body_is_wiped(self) -> None:
        """The posted key does not stay in the request."""
        bodies: list[BytesIO] = []

        class Body(BytesIO):
            def close(self) -> None:
                """It is looked at afterwards."""

        class Kept(Request):
            def gotLength(self, length: int | None) -> None:
                self.content = Body()
                bodies.append(self.content)

        self.site.requestFactory = Kept
        self.call(DEPLOY_PATH, self.wish(private_key="key material"))
        self.assertEqual(set(bodies[0].getvalue()), {0})


class HostKeyTests(DeployCase):
    def test_confirming(self) -> None:
        """409 with the key; the same with it starts at once, without waiting for the next start."""
        response = self.call(DEPLOY_PATH, self.wish(host_key=None))
        self.assertEqual((response.code, response.json["key"]), (409, "host_key_unknown"))
        shown = response.json["host_key"]
        self.assertEqual(shown, {"type": "ssh-ed25519", "fingerprint": self.ssh.shows.fingerprint})
        self.assertIn(shown["fingerprint"], response.json["error"])
        self.assertEqual(self.call(DEPLOY_PATH, self.wish(host_key=shown["fingerprint"])).code, 200)

    def test_nonsense(self) -> None:
        """It says what a host key looks like."""
        response = self.call(DEPLOY_PATH, self.wish(host_key="yes"))
        self.assertEqual(response.code, 400)
        self.assertIn("expected SHA256:", response.json["error"])

    def test_changed_and_forgotten(self) -> None:
        """Another key than the known one is refused until that is forgotten."""
        self.started()
        other = "SHA256:" + "x" * 43
        response = self.call(DEPLOY_PATH, self.wish(host_key=other))
        self.assertEqual((response.code, response.json["key"]), (409, "host_key_changed"))
        asked = {"hostname": "WEB1", "port": 22}
        self.assertEqual(self.call(FORGET_PATH, asked).json, {"forgotten": True})
        self.assertEqual(self.call(FORGET_PATH, asked).json, {"forgotten": False})
        self.refused(400, "invalid hostname", self.call(FORGET_PATH, {"hostname": "a b"}))
        self.refused(400, "invalid JSON", self.call(FORGET_PATH, b"1"))

    def test_unreachable(self) -> None:
        """The first look at a host says why it fails."""
        self.ssh.unreachable = "web1:22 refuses connections"
        response = self.call(DEPLOY_PATH, self.wish(host_key=None))
        self.refused(502, "web1:22 refuses connections", response)


class SmallCallTests(DeployCase):
    def test_public_key(self) -> None:
        """Fingerprint and type, or why it is none."""
        response = self.call(PUBLIC_KEY_PATH, {"private_key": "key"})
        self.assertEqual(response.json, {"fingerprint": "SHA256:of-the-admin", "type": "ssh-ed25519"})
        self.refused(400, "invalid key: no key", self.call(PUBLIC_KEY_PATH, {"private_key": "x"}))
        self.refused(400, "invalid JSON", self.call(PUBLIC_KEY_PATH, b"{"))
        self.refused(400, "invalid JSON", self.call(PUBLIC_KEY_PATH, {"private_key": 1}))

    def test_users(self) -> None:
        """Who has keys; nobody is an empty list; a failure says nothing more."""
        self.assertEqual(self.get(USERS_PATH).body, b"[]")
        self.holders = [
            KeyHolder(username="alice", email="a@example.com", ssh_keys=("ssh-ed25519 AAAA",)),
            KeyHolder(username="bob", email="", ssh_keys=()),
        ]
        self.assertEqual(
            self.get(USERS_PATH).json,
            [{"username": "alice", "email": "a@example.com", "ssh_keys": ["ssh-ed25519 AAAA"]}],
        )
        self.holders = OSError("the source's address")
        response = self.get(USERS_PATH)
        self.assertEqual((response.code, response.json), (500, {"error": "failed to fetch users"}))

    def test_cancelling(self) -> None:
        """It ends the job, and is answered the same when that has ended."""
        id = self.started()
        for _ in range(2):
            self.assertEqual(self.call(CANCEL_PATH, {"id": id}).json, {"id": id, "status": "failed"})
        self.refused(404, "job not found", self.call(CANCEL_PATH, {"id": "0" * 32}))
        self.refused(400, "invalid job id", self.call(CANCEL_PATH, {}))


class StreamTests(DeployCase):
    def stream(self, id: str, **headers: str | None) -> Connection:
        connection = self.open("GET", STREAM_PREFIX + id, **headers)
        self.clock.advance(0)
        return connection

    def test_from_the_start_to_the_end(self) -> None:
        """Headers, what was said already, what is said now, how it ended, and then the end."""
        id = self.started()
        connection = self.stream(id)
        head = connection.raw.partition(b"\r\n\r\n")[0].decode().lower()
        for line in ("content-type: text/event-stream", "cache-control: no-cache", "x-accel-buffering: no"):
            self.assertIn(line, head)
        self.say("one\ntwo the shared secret\n")
        self.assertEqual(
            self.frames(connection),
            [
                ": connected",
                "id: 1\ndata: Connecting to web1:22 as root …",
                f"id: 2\ndata: Host key verified: ssh-ed25519 {self.ssh.shows.fingerprint}",
                "id: 3\ndata: Connected. Running install script …",
                "id: 4\ndata: one",
                "id: 5\ndata: two ***",
            ],
        )
        self.ssh.running[0].callback(0)
        self.clock.advance(0)
        self.assertEqual(
            self.frames(connection)[-2:],
            ["id: 6\ndata: Install completed successfully.", "event: status\ndata: done"],
        )
        self.assertTrue(connection.raw.endswith(b"\r\n0\r\n\r\n"))

    def test_afterwards(self) -> None:
        """It replays everything, also to who comes later."""
        id = self.started()
        self.ssh.running[0].callback(1)
        frames = self.frames(self.stream(id.upper()))
        self.assertEqual(
            (len(frames), frames[-2:]),
            (
                6,
                [
                    "id: 4\ndata: ERROR: the script ended with exit status 1",
                    "event: status\ndata: failed",
                ],
            ),
        )

    def test_coming_back(self) -> None:
        """A browser that says what it has gets the rest; one that says nonsense gets everything."""
        id = self.started()
        self.assertEqual(self.frames(self.stream(id, Last_Event_ID="2"))[1][:6], "id: 3\n")
        self.assertEqual(self.frames(self.stream(id, Last_Event_ID="x"))[1][:6], "id: 1\n")
        self.assertEqual(self.frames(self.stream(id, Last_Event_ID="999")), [": connected"])

    def test_silence(self) -> None:
        """After half a minute, and again."""
        connection = self.stream(self.started())
        self.clock.advance(KEEPALIVE_SECONDS - 1)
        self.say("one\n")
        self.clock.advance(KEEPALIVE_SECONDS - 1)
        self.assertNotIn(": keepalive", self.frames(connection))
        self.clock.advance(1)
        self.assertEqual(self.frames(connection)[-1], ": keepalive")

    def test_who_may_not(self) -> None:
        """No id, no job, another administrator's job; any method is answered."""
        id = self.started()
        self.refused(400, "invalid job id", self.get(STREAM_PREFIX + "xyz"))
        self.refused(400, "invalid job id", self.get(STREAM_PREFIX + "a/b"))
        self.refused(404, "job not found", self.get(STREAM_PREFIX + "0" * 32))
        other = f"pam_session={self.house.cookie('dave', 'admin')}"
        self.refused(403, "forbidden", self.get(STREAM_PREFIX + id, Cookie=other))
        posted = self.open("POST", STREAM_PREFIX + id)
        self.assertIn(b"200 OK", posted.raw)

    def test_a_slow_reader(self) -> None:
        """Nothing is written to who does not read, nothing is lost, and who never reads is cut off."""
        id = self.started()
        connection = self.stream(id)
        request = connection.protocol.requests[0]
        before = len(connection.raw)
        connection.transport.producer.pauseProducing()
        self.say("one\n" * 100)
        self.assertEqual(len(connection.raw), before)
        connection.transport.producer.resumeProducing()
        self.clock.advance(0)
        self.assertEqual(len(self.frames(connection)), 104)
        connection.transport.producer.pauseProducing()
        self.clock.advance(KEEPALIVE_SECONDS)
        self.clock.advance(KEEPALIVE_SECONDS)
        self.assertTrue(connection.transport.disconnected or request.channel.transport.disconnecting)

    def test_hanging_up(self) -> None:
        """The job goes on, and nothing is left of the stream."""
        id = self.started()
        connection = self.stream(id)
        job = self.deploys.job(self.house.caller("carol", "admin"), id)
        self.assertEqual(job.readers, 1)
        connection.hang_up()
        self.assertEqual(job.readers, 0)
        self.say("one\n")
        self.assertEqual(job.lines[-1], "one")

    def test_too_many_readers(self) -> None:
        """Ten of one job."""
        id = self.started()
        for _ in range(10):
            self.stream(id)
        self.refused(429, "too many connections", self.get(STREAM_PREFIX + id))


class PageTests(DeployCase):
    def page(self, query: str = "", **headers: str | None) -> Document:
        response = self.get(PAGE_PATH + query, **headers)
        self.assertEqual(response.code, 200)
        self.text = response.text
        return Document(response.text)

    def inputs(self, page: Document) -> dict[str, str]:
        return {
            attributes["name"]: attributes.get("value", "")
            for tag, attributes in page.tags
            if tag == "input" and attributes.get("name")
        }

    def test_setting_up(self) -> None:
        """The form of the contract's fields, and the commands for who does it by hand."""
        page = self.page()
        inputs = self.inputs(page)
        self.assertEqual((inputs["port"], inputs["ssh_user"], inputs["hostname"]), ("22", "root", ""))
        self.assertIn("curl -fsSLO https://get.example/install.sh\nsudo bash install.sh https://get.example", self.text)
        self.assertNotIn("unconfigure_pam", inputs)

    def test_taking_off(self) -> None:
        """The same for a host that is there, with what is undone."""
        inputs = self.inputs(self.page("?host=web1&remove=1"))
        self.assertEqual((inputs["hostname"], inputs["known_as"]), ("web1", "web1"))
        self.assertTrue({"unconfigure_pam", "remove_files"} <= set(inputs))
        self.assertIn('data-path="/api/deploy/remove"', self.text)

    def test_hostile_names(self) -> None:
        """What is no host name is not on the page."""
        inputs = self.inputs(self.page("?host=%3Cscript%3E&remove=1"))
        self.assertEqual(inputs["hostname"], "")
        self.assertNotIn("unconfigure_pam", inputs)

    def test_others(self) -> None:
        """They are sent home, and strangers to the sign-in, which leads back."""
        user = self.get(PAGE_PATH, Cookie=f"pam_session={self.house.cookie('alice')}")
        self.assertEqual((user.code, user.header("Location")), (303, EXTERNAL_URL + "/"))
        stranger = self.get(PAGE_PATH + "?host=web1", Cookie=None)
        self.assertEqual(stranger.header("Location"), f"{EXTERNAL_URL}/sessions/login?next=/admin/deploy%3Fhost%3Dweb1")

    def test_language(self) -> None:
        """As on every page."""
        self.assertEqual(self.get(PAGE_PATH + "?lang=de&host=web1").code, 303)
