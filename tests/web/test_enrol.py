"""Enrolment as it stands on the wire."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from identree.app.registry import MOST_FROM_ONE, By, Enrolments, LiveRegistry, Registrar, RegistryFile
from identree.core.errors import StorageUnavailable
from identree.core.hosts import TOKEN_PREFIX
from identree.core.limits import FailureThrottle
from identree.web.enrol import ENROL_BODY_BYTES, ENROL_PATH, EnrolRoutes
from identree.web.hosts import HostRoutes
from identree.web.reading import Addresses
from identree.web.root import build_root
from identree.web.site import Site
from tests.app.provisioning import inline
from tests.app.world import World, now_result
from tests.web.front import Connection, Front, Response, encoded

PATH = ENROL_PATH.decode()
ADA = By(name="ada")
JSON = {"Content-Type": "application/json"}


class EnrolTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.world = world = World()
        self.live = LiveRegistry(
            store=world.store,
            mode="auto",
            file=RegistryFile(str(Path(directory.name) / "hosts.json")),
            clock=world.clock,
            in_thread=inline,
        )
        now_result(self.live.load())
        self.registrar = Registrar(store=world.store, registry=self.live, now=world.now, token=world.token)
        enrolments = Enrolments(
            store=world.store,
            registry=self.live,
            hosts=world.hosts,
            throttle=FailureThrottle(),
            now=world.now,
            monotonic=world.clock.seconds,
            token=world.token,
            journal=world.journal,
            metrics=world.metrics,
        )
        front = Front(world)
        self.addCleanup(front.close)
        addresses = Addresses(lambda: ())
        root = build_root(
            hosts=HostRoutes(challenges=world.challenges, hosts=world.hosts, addresses=addresses, clock=world.clock),
            streams=front.streams,
            routes=[EnrolRoutes(enrolments=enrolments, addresses=addresses, server_url="https://identree.example")],
        )
        self.site = Site(
            root,
            reactor=world.clock,
            external_url="https://identree.example",
            token=world.token,
            body_limits={ENROL_PATH: ENROL_BODY_BYTES},
        )

    def token(self, hostname: str = "web01") -> str:
        return now_result(self.registrar.enrolment_token(hostname, ADA, first=True))[1]

    def send(self, body: bytes, headers: dict[str, str] = JSON, method: str = "POST") -> Response:
        connection = Connection(self.site)
        self.addCleanup(connection.hang_up)
        connection.send(encoded(method, PATH, headers, body))
        response = connection.response()
        assert response is not None, connection.raw
        return response

    def ask(self, **members: Any) -> Response:
        return self.send(json.dumps(members).encode())

    def refused(self, response: Response, code: int, said: str) -> None:
        self.assertEqual(response.code, code, response.text)
        self.assertIn(said, response.json["error"])
        self.assertEqual(response.header("Cache-Control"), "no-store")

    def test_enrolled(self) -> None:
        """201, the name as it is registered, the secret, and where the server is; nothing may keep the answer."""
        response = self.ask(token=self.token(), hostname="WEB01.")
        self.assertEqual(response.code, 201, response.text)
        self.assertEqual(list(response.json), ["hostname", "secret", "server_url"])
        self.assertEqual(
            (response.json["hostname"], response.json["server_url"]), ("web01", "https://identree.example")
        )
        self.assertEqual(response.header("Cache-Control"), "no-store")
        self.assertTrue(self.live().matches("web01", response.json["secret"].encode()))

    def test_bad_tokens(self) -> None:
        """Used, unknown and malformed ones get one answer, with what to do."""
        token = self.token()
        self.ask(token=token, hostname="web01")
        for bad in (token, TOKEN_PREFIX + "0" * 64, "x"):
            response = self.ask(token=bad, hostname="web01")
            self.refused(response, 401, "unknown, expired or used")
            self.assertEqual(response.header("WWW-Authenticate"), "Identree")

    def test_other_host(self) -> None:
        """403, and the other name is not told."""
        response = self.ask(token=self.token("secret-name"), hostname="web01")
        self.refused(response, 403, "another host")
        self.assertNotIn("secret-name", response.text)

    def test_registered(self) -> None:
        """409 where the host has got a secret in another way since."""
        token = self.token()
        now_result(self.registrar.add("web01", None, "", ADA, first=True))
        self.refused(self.ask(token=token, hostname="web01"), 409, "registered already")

    def test_forms(self) -> None:
        """What is no request for enrolment is told what it lacks; the token is not used up."""
        token = self.token()
        self.refused(self.send(b"{}", {"Content-Type": "text/plain"}), 415, "application/json")
        for body in (b"", b"nonsense", b"[]", b'{"token": 5, "hostname": "web01"}'):
            self.refused(self.send(body), 400, "invalid request body")
        self.refused(self.ask(token=token), 400, "token and hostname required")
        self.refused(self.ask(hostname="web01"), 400, "token and hostname required")
        self.refused(self.ask(token=token, hostname="a b"), 400, "hostname")
        self.refused(self.ask(token=token, hostname="localhost"), 400, "reserved")
        self.refused(self.ask(token=token, hostname="web01", more="x" * ENROL_BODY_BYTES), 413, "too large")
        self.assertEqual(self.ask(token=token, hostname="web01").code, 201)

    def test_methods(self) -> None:
        """Only POST: a token must not stand in a URL."""
        for method in ("GET", "PUT"):
            response = self.send(b"", {}, method)
            self.assertEqual((response.code, response.header("Allow")), (405, "POST"))

    def test_too_many(self) -> None:
        """429 with the seconds to wait; before the token is looked at."""
        for _ in range(MOST_FROM_ONE):
            self.send(b"{}")
        response = self.ask(token=self.token(), hostname="web01")
        self.refused(response, 429, "too many")
        self.world.clock.advance(int(response.header("Retry-After") or "0"))
        self.assertEqual(self.ask(token=self.token(), hostname="web01").code, 201)

    def test_database_away(self) -> None:
        """503: nothing was done, the host may try again."""

        async def away(wish: object) -> Any:
            raise StorageUnavailable("unreachable")

        token = self.token()
        redeem = self.world.store.redeem_enrolment_token
        self.world.store.redeem_enrolment_token = away  # type: ignore[method-assign, assignment]
        response = self.ask(token=token, hostname="web01")
        self.refused(response, 503, "database")
        self.assertEqual(response.header("Retry-After"), "2")
        self.world.store.redeem_enrolment_token = redeem  # type: ignore[method-assign]
        self.assertEqual(self.ask(token=token, hostname="web01").code, 201)
