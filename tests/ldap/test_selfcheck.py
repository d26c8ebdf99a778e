"""``identree directory check`` against our own server in memory, and against servers that answer wrongly or never."""

from __future__ import annotations

import io
import ssl
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import pytest
from ldaptor.protocols import pureldap
from twisted.trial.unittest import SynchronousTestCase

from identree.directory.draft import Draft
from identree.ldap import selfcheck
from identree.ldap.selfcheck import Subject, Target, check, result_name
from tests.directory import drafts
from tests.ldap.harness import BASE, PASSWORD, SERVICE, World, message, messages

# ldaptor's reading of filters uses names of pyparsing that have newer ones
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ldaptor.*")

TARGET = Target(url="ldap://directory.example", base_dn=BASE, bind_dn=SERVICE, password=PASSWORD.decode())


class Line:
    """
    The client's end of a connection, as much of a socket as the check uses.

    :param answer: is given what was sent, and returns what comes back.
    """

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self._answer = answer
        self._waiting = b""
        self.closed = False

    def sendall(self, data: bytes) -> None:
        self._waiting += self._answer(data)

    def recv(self, size: int) -> bytes:
        if not self._waiting:
            raise TimeoutError("timed out")
        given, self._waiting = self._waiting[:size], self._waiting[size:]
        return given

    def settimeout(self, seconds: float) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def ours(world: World) -> Line:
    """A connection to a whole server."""
    client = world.connect()

    def answer(data: bytes) -> bytes:
        client.feed(data)
        for _ in range(100):
            world.turn()
        raw: bytes = client.wire.value()
        client.wire.clear()
        return raw

    return Line(answer)


def always(answers: Callable[[Any], list[Any]]) -> Line:
    """A server that answers each request by itself; :param answers: is given the operation."""

    def answer(data: bytes) -> bytes:
        [request] = messages(data)
        return b"".join(message(each, request.id) for each in answers(request.value))

    return Line(answer)


def obliging(operation: Any) -> list[Any]:
    """Success, and nothing else."""
    if isinstance(operation, pureldap.LDAPBindRequest):
        return [pureldap.LDAPBindResponse(resultCode=0)]
    if isinstance(operation, pureldap.LDAPExtendedRequest):
        return [pureldap.LDAPExtendedResponse(resultCode=0, response=b"dn:somebody")]
    return [pureldap.LDAPSearchResultDone(resultCode=0)]


class Case(SynchronousTestCase):
    def run_check(
        self, line: Line | Exception, subject: Subject | None = None, target: Target = TARGET
    ) -> tuple[int, str]:
        """The exit status, and what was said."""
        out, ticks = io.StringIO(), _ticks()
        outcome = {"side_effect": line} if isinstance(line, Exception) else {"return_value": line}
        with patch("socket.create_connection", **outcome) as self.connected:
            status = check(target, subject or Subject(host="web1.example.com"), out, lambda: next(ticks))
        if isinstance(line, Line):
            self.assertTrue(line.closed)
        return status, out.getvalue()

    def world(self, entries: list[Draft] | None = None) -> World:
        world = World()
        world.snapshot = drafts.snapshot(entries if entries is not None else drafts.company(30, 4, 3))
        return world


def _ticks() -> Iterator[float]:
    """A clock that goes on by 2.5 ms whenever it is read."""
    now = 0.0
    while True:
        yield now
        now += 0.0025


class AllWellTests(Case):
    def test_everything(self) -> None:
        """Our own server passes, and the report says what came and how long it took."""
        status, said = self.run_check(ours(self.world()))
        self.assertEqual(status, 0, said)
        lines = said.splitlines()
        self.assertEqual(lines[-1], "all well")
        self.assertNotIn("FAIL", said)
        [people] = [line for line in lines if line.startswith("enumerate people")]
        self.assertEqual(people.split()[3:], ["30", "entries", "2.50", "ms", "ok"])

    def test_first_of_each(self) -> None:
        """Without a wish the first person and the first group that are listed are looked up."""
        world = self.world()
        _, said = self.run_check(ours(world))
        for name in ("person user0 by name", "person by uid", "primary group, gid", "groups of that person"):
            self.assertIn(name, said)
        self.assertRegex(said, r"(?m)^group \S+ by name +1 entries")

    def test_more_than_a_page(self) -> None:
        """Pages are put together."""
        with patch.object(selfcheck, "PAGE", 7):
            status, said = self.run_check(ours(self.world()))
        self.assertEqual(status, 0, said)
        self.assertRegex(said, r"(?m)^enumerate people, paged +30 entries")

    def test_rules_alone(self) -> None:
        """A directory of rules, without people and groups, is well."""
        entries = [*drafts.containers(names=("sudoers",)), drafts.role(1, ["%ops"])]
        status, said = self.run_check(ours(self.world(entries)))
        self.assertEqual(status, 0, said)
        self.assertNotIn("by name", said)
        self.assertRegex(said, r"(?m)^sudo rules, full refresh +1 entries")

    def test_rules_of_the_host(self) -> None:
        """Its rules by short and by full name, and none of other hosts."""
        entries = [
            *drafts.containers(),
            drafts.role(1, ["a"], hosts=["web1"]),
            drafts.role(2, ["a"], hosts=["web1.example.com"]),
            drafts.role(3, ["a"], hosts=["db1"]),
        ]
        _, said = self.run_check(ours(self.world(entries)))
        self.assertRegex(said, r"(?m)^sudo rules, full refresh +2 entries")


class FailureTests(Case):
    def test_nobody_of_that_name(self) -> None:
        """Is a failure, and what needs the entry is not asked."""
        status, said = self.run_check(ours(self.world()), Subject(user="nosuch", host="web1"))
        self.assertEqual(status, 1)
        self.assertRegex(said, r"(?m)^person nosuch by name .* FAIL  sssd needs exactly 1$")
        self.assertNotIn("person by uid", said)
        self.assertTrue(said.endswith("1 answers are not what sssd needs\n"))

    def test_name_is_literal(self) -> None:
        """A name is not a pattern."""
        status, said = self.run_check(ours(self.world()), Subject(user="user*", group="(", host="web1"))
        self.assertEqual(status, 1)
        self.assertEqual(said.count("sssd needs exactly 1"), 2, said)

    def test_no_sudoers(self) -> None:
        entries = drafts.containers(names=("people", "groups"))
        status, said = self.run_check(ours(self.world(entries)))
        self.assertEqual(status, 1)
        self.assertIn("FAIL  there is no sudoers branch", said)

    def test_nothing_served_yet(self) -> None:
        """A server that is busy fails by name, not by a number of entries."""
        world = self.world()
        world.snapshot = None
        status, said = self.run_check(ours(world))
        self.assertEqual(status, 1)
        self.assertRegex(said, r"FAIL  (busy \(51\)|unavailable \(52\))")

    def test_wrong_password(self) -> None:
        """Which is named by its DN, and is nowhere in the report."""
        target = Target(url=TARGET.url, base_dn=BASE, bind_dn=SERVICE, password="no-such-password")
        status, said = self.run_check(ours(self.world()), target=target)
        self.assertEqual(status, 1)
        self.assertIn(f"FAIL  bind as {SERVICE}: invalidCredentials (49)", said)
        self.assertNotIn("no-such-password", said + repr(target))

    def test_wrong_entries(self) -> None:
        """Too many for a name, rules that did not change, and things of which there are none: each is told."""
        entries = [
            pureldap.LDAPSearchResultEntry(
                f"uid=twin{n},{BASE}", [("uid", ["twin"]), ("cn", ["twin"]), ("uidNumber", ["1"]), ("gidNumber", ["1"])]
            )
            for n in range(2)
        ]

        def answers(operation: Any) -> list[Any]:
            searched = isinstance(operation, pureldap.LDAPSearchRequest)
            return [*(entries if searched else []), *obliging(operation)]

        status, said = self.run_check(always(answers))
        self.assertEqual(status, 1)
        for problem in (
            "sssd learns nothing of the server",
            "sssd needs exactly 1",
            "rules that did not change come again",
            "something that is none came",
        ):
            self.assertIn(f"FAIL  {problem}", said)

    def test_error_of_a_search(self) -> None:
        """By its name and the server's own words."""

        def answers(operation: Any) -> list[Any]:
            if isinstance(operation, pureldap.LDAPSearchRequest):
                return [pureldap.LDAPSearchResultDone(resultCode=53, errorMessage=b"not today")]
            return obliging(operation)

        status, said = self.run_check(always(answers))
        self.assertEqual(status, 1)
        self.assertIn("FAIL  unwillingToPerform (53) not today", said)


class TroubleTests(Case):
    """What ends the check: one line that says why."""

    def ends(self, line: Line | Exception, target: Target = TARGET) -> str:
        status, said = self.run_check(line, target=target)
        self.assertEqual(status, 1)
        last = said.splitlines()[-1]
        self.assertTrue(last.startswith("FAIL  "), said)
        return last

    def test_refused(self) -> None:
        said = self.ends(ConnectionRefusedError(111, "Connection refused"))
        self.assertIn("ldap://directory.example does not answer", said)
        self.assertIn("Is the directory on, at that port?", said)

    def test_ports(self) -> None:
        """389, 636 for ldaps, or the one of the URL."""
        for url, port in (("ldap://a", 389), ("ldaps://a", 636), ("ldap://a:1389", 1389), ("ldaps://[::1]:9", 9)):
            self.ends(OSError("no"), Target(url=url, base_dn=BASE))
            self.assertEqual(self.connected.call_args.args[0][1], port)

    def test_bad_urls(self) -> None:
        """Are told as such, and nothing is connected to."""
        for url in ("http://a", "ldap://", "directory.example", "ldapi:///run/slapd"):
            said = self.ends(OSError("not to be asked"), Target(url=url, base_dn=BASE))
            self.assertIn("is not ldap://host or ldaps://host", said)
            self.connected.assert_not_called()
        self.assertIn("does not answer", self.ends(OSError("no"), Target(url="ldap://a:99999", base_dn=BASE)))

    def test_silence(self) -> None:
        self.assertIn("no answer within sssd's patience", self.ends(Line(lambda data: b"")))

    def test_closed(self) -> None:
        """In the middle of an answer."""

        class Closing(Line):
            def recv(self, size: int) -> bytes:
                return super().recv(size) if self._waiting else b""

        said = self.ends(Closing(lambda data: b"\x30\x20\x02\x01"))
        self.assertIn("has closed the connection; its log says why", said)

    def test_closed_while_sending(self) -> None:
        def broken(data: bytes) -> bytes:
            raise BrokenPipeError(32, "Broken pipe")

        self.assertIn("has closed the connection", self.ends(Line(broken)))

    def test_endless(self) -> None:
        """An answer that never ends is not collected for ever."""
        with patch.object(selfcheck, "MESSAGE_BYTES", 1 << 20):
            said = self.ends(Line(lambda data: b"\x30\x84\x7f\xff\xff\xff" + bytes(2 << 20)))
        self.assertIn("larger than any that sssd would take", said)

    def test_another_answer(self) -> None:
        """To a search comes what answers something else."""
        said = self.ends(always(lambda operation: [pureldap.LDAPBindResponse(resultCode=0)]))
        self.assertIn("the answer to a search was a LDAPBindResponse", said)

    def test_no_starttls(self) -> None:
        """A server that refuses it is not spoken to in clear."""
        asked: list[Any] = []

        def answers(operation: Any) -> list[Any]:
            asked.append(operation)
            return [pureldap.LDAPExtendedResponse(resultCode=2)]

        target = Target(url=TARGET.url, base_dn=BASE, bind_dn=SERVICE, password="secret", start_tls=True)
        self.assertIn("StartTLS: protocolError (2)", self.ends(always(answers), target))
        self.assertEqual(len(asked), 1)

    def test_no_trust(self) -> None:
        """A certificate that is not trusted, or files that are not there: which options to look at."""
        target = Target(url="ldaps://directory.example", base_dn=BASE, ca_file="/nowhere/ca.pem")
        said = self.ends(Line(lambda data: b""), target)
        self.assertIn("no TLS", said)
        self.assertIn("Check --ca, --cert and --key.", said)
        refusing = patch.object(ssl.SSLContext, "wrap_socket", side_effect=ssl.SSLError(1, "unknown ca"))
        with refusing:
            said = self.ends(Line(lambda data: b""), Target(url="ldaps://directory.example", base_dn=BASE))
        self.assertIn("unknown ca", said)


class NameTests(SynchronousTestCase):
    def test_names(self) -> None:
        self.assertEqual(result_name(0), "success")
        self.assertEqual(result_name(49), "invalidCredentials (49)")
        self.assertEqual(result_name(99), "result (99)")
