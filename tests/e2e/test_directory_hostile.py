"""
Clients that mean ill, against a running server: idle by the thousand, slow, lying about lengths, guessing passwords,
and deaf to their answers. The server's memory stays bounded, and somebody else is answered all the time.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import pytest

from tests.e2e import directory
from tests.e2e.ldaptools import SUB, Client, encode_filter, integer, message, parse_filter, search_request, text, tlv
from tests.e2e.pocketid import PocketIdServer, username
from tests.e2e.provider import CLIENT_ID, CLIENT_SECRET
from tests.e2e.server import Server, free_port
from tests.e2e.slapd import BASE_DN, BIND_DN, BIND_PASSWORD

pytestmark = pytest.mark.e2e

# An answer with all of them is some megabytes.
USERS, GROUPS, RULES = 1500, 20, 5
IDLE = 1000
# What the server's process may grow by for one connection that does nothing, and for all else that a test does to it.
BYTES_PER_CONNECTION = 32 << 10
BYTES_OF_NOISE = 16 << 20
# Whoever behaves waits no longer than this, whatever the others do.
PATIENCE_SECONDS = 10.0
# The system's own share of what a deaf client has not read.
DEAF_BUFFER_BYTES = 4096
DEAF, DEAF_REQUESTS, DEAF_ROUNDS = 50, 40, 60
# The server's CPU time for a few megabytes of nonsense.
NONSENSE_CPU_SECONDS = 5.0
OPEN_FILES = 4096


@dataclass(frozen=True)
class World:
    """:ivar usual: bytes of memory that the server occupied before anything here was done to it."""

    server: Server
    port: int
    usual: int = 0

    @property
    def _pid(self) -> int:
        assert self.server.process is not None
        return self.server.process.pid

    def resident(self) -> int:
        """Bytes of memory that the server occupies."""
        pages = int(Path(f"/proc/{self._pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def growth(self) -> int:
        """Bytes of memory that the server occupies beyond what is usual."""
        return self.resident() - self.usual

    def cpu_seconds(self) -> float:
        user, system = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def refused(self, reason: str) -> float:
        name = f'identree_ldap_connections_refused_total{{reason="{reason}"}}'
        # a reason that never was has no line
        with suppress(AssertionError):
            return directory.metric(self.server.port, name)
        return 0.0


@pytest.fixture(scope="module", autouse=True)
def many_files() -> Iterator[None]:
    """For the clients' ends of the connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# each class has its own: memory that was freed is not always given back, and would hide what a later test takes
@pytest.fixture(scope="class")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    place, port = tmp_path_factory.mktemp("hostile"), free_port()
    provider = {
        "IDENTREE_OIDC_ISSUER_URL": f"http://127.0.0.1:{free_port()}",
        "IDENTREE_OIDC_CLIENT_ID": CLIENT_ID,
        "IDENTREE_OIDC_CLIENT_SECRET": CLIENT_SECRET,
    }
    with (
        PocketIdServer(USERS, GROUPS, RULES) as pocketid,
        Server(place, {**provider, **directory.settings(place, pocketid, port)}) as server,
    ):
        directory.until(lambda: directory.served(port, f"uid={username(1)}"), "the directory")
        made = World(server, port)
        # what every server has sooner or later: memory for large answers, the reply memo
        with directory.bound(port) as client:
            for _ in range(3):
                assert len(client.search(BASE_DN, SUB, ("*", "objectClass")).entries) > USERS
        yield replace(made, usual=made.resident())


class Bystander:
    """
    Somebody who looks people up all the time, on an old connection and on new ones, and must be answered.

    :ivar answers: how often that was so.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._problem: BaseException | None = None
        self.answers = 0

    def _run(self) -> None:
        try:
            with directory.bound(self._world.port) as old:
                old.socket.settimeout(PATIENCE_SECONDS)
                while not self._over.is_set():
                    self._look(old)
                    with Client(self._world.port, source="127.0.9.1") as new:
                        new.socket.settimeout(PATIENCE_SECONDS)
                        assert new.bind(BIND_DN, BIND_PASSWORD) == 0
                        self._look(new)
                    self.answers += 1
        except BaseException as problem:
            self._problem = problem

    def _look(self, client: Client) -> None:
        name = username(self.answers % USERS)
        found = client.search(f"ou=people,{BASE_DN}", SUB, parse_filter(f"(&(uid={name})(objectclass=posixAccount))"))
        assert (found.code, len(found.entries)) == (0, 1), found

    def waits_for(self, answers: int) -> None:
        """Until so many more answers have come."""
        wanted = self.answers + answers
        end = time.monotonic() + 3 * PATIENCE_SECONDS
        while self.answers < wanted and self._problem is None and time.monotonic() < end:
            time.sleep(0.005)
        assert self._problem is None, f"a bystander was not served: {self._problem!r}"
        assert self.answers >= wanted, "a bystander was not served in time"

    def __enter__(self) -> Bystander:
        self._thread.start()
        self.waits_for(3)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if kind is None:
            assert self._problem is None, f"a bystander was not served: {self._problem!r}"


def opened(stack: ExitStack, port: int, source: str = "") -> Client:
    return stack.enter_context(Client(port, source=source))


def is_cut(client: Client) -> bool:
    """Whether the server ends the connection, whatever it says before."""
    client.socket.settimeout(PATIENCE_SECONDS)
    try:
        while client.socket.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


class TestConnections:
    def test_idle(self, world: World) -> None:
        """A thousand that say nothing, half of them bound, cost little memory each, and no time."""
        with ExitStack() as stack, Bystander(world) as bystander:
            clients = [opened(stack, world.port, f"127.0.1.{number % 8 + 1}") for number in range(IDLE)]
            for client in clients[::2]:
                assert client.bind(BIND_DN, BIND_PASSWORD) == 0
            bystander.waits_for(20)
            assert directory.metric(world.server.port, "identree_ldap_connections") >= IDLE
            assert world.growth() < IDLE * BYTES_PER_CONNECTION + BYTES_OF_NOISE
            # still there, and answered when they ask
            found = clients[0].search(BASE_DN, 0, ("*", "objectClass"), ["1.1"])
            assert found.code == 0
        directory.until(lambda: directory.metric(world.server.port, "identree_ldap_connections") < 10, "the end of all")

    def test_too_many_of_one_address(self, world: World) -> None:
        """One address gets its share of the connections and no more; others are not concerned."""
        before = world.refused("address")
        with ExitStack() as stack, Bystander(world) as bystander:
            clients = [opened(stack, world.port, "127.0.2.1") for _ in range(1024 + 20)]
            directory.until(lambda: world.refused("address") == before + 20, "the refusals")
            assert is_cut(clients[-1])
            assert clients[0].bind(BIND_DN, BIND_PASSWORD) == 0
            bystander.waits_for(5)

    def test_slow_senders(self, world: World) -> None:
        """Hundreds that send one message a byte at a time keep nobody waiting, and are answered when it is whole."""
        request = message(1, search_request("", 0, ("*", "objectClass"), ["namingContexts"]))
        with ExitStack() as stack, Bystander(world) as bystander:
            clients = [opened(stack, world.port, f"127.0.3.{number % 4 + 1}") for number in range(300)]
            for place in range(len(request)):
                for client in clients:
                    client.socket.sendall(request[place : place + 1])
                if place % 20 == 0:
                    bystander.waits_for(1)
            for client in clients:
                number, tag, _, _ = client.receive()
                assert (number, tag) == (1, 0x64)
            assert world.growth() < len(clients) * BYTES_PER_CONNECTION + BYTES_OF_NOISE


class TestBytes:
    @pytest.mark.parametrize(
        ("bound", "sent"),
        [
            (False, b"\x30\x84\xff\xff\xff\xff"),
            (False, b"\x30\x88\x7f\xff\xff\xff\xff\xff\xff\xff"),
            (False, b"\x30\x80\x02\x01\x01"),
            (False, tlv(0x30, integer(1), tlv(0x60, b"x" * (128 << 10)))),
            (False, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
            (True, b"\x30\x84\x7f\xff\xff\xff\x02\x01\x05"),
            (True, b"\x30\x83\x20\x00\x01" + b"x" * 1000),
            (True, b"\xff" * 100_000),
        ],
        ids=["4GiB", "8EiB", "indefinite", "too-long", "http", "2GiB-bound", "2MiB-bound", "noise-bound"],
    )
    def test_cut(self, world: World, bound: bool, sent: bytes) -> None:
        """What cannot become a message of permitted length ends the connection before it is waited for or kept."""
        with Bystander(world), ExitStack() as stack:
            clients = [opened(stack, world.port, "127.0.4.1") for _ in range(20)]
            for client in clients:
                if bound:
                    assert client.bind(BIND_DN, BIND_PASSWORD) == 0
                try:
                    client.socket.sendall(sent)
                except OSError:
                    # cut while we were speaking
                    continue
            assert all(map(is_cut, clients))
            assert world.growth() < BYTES_OF_NOISE

    def test_nested_filters(self, world: World) -> None:
        """Filters within filters, as deep as a message of permitted length can hold: an error, quickly."""
        depth = 100_000
        inner = encode_filter(("*", "uid"))
        nested = bytearray(reversed(inner))
        for _ in range(depth):
            size = len(nested)
            length = bytes((size,)) if size < 0x80 else size.to_bytes((size.bit_length() + 7) // 8, "big")
            header = b"\xa2" + (b"" if size < 0x80 else bytes((0x80 | len(length),))) + length
            nested += bytes(reversed(header))
        filter = bytes(reversed(nested))
        operation = self.search(filter)
        assert len(operation) < 1 << 20
        cpu = world.cpu_seconds()
        with Bystander(world) as bystander:
            for _ in range(10):
                with Client(world.port, source="127.0.4.2") as client:
                    assert client.bind(BIND_DN, BIND_PASSWORD) == 0
                    client.send(operation)
                    client.socket.settimeout(PATIENCE_SECONDS)
                    try:
                        _, tag, _, _ = client.receive()
                        # an error or the notice of disconnection
                        assert tag in (0x65, 0x78)
                    except (EOFError, ConnectionResetError):
                        continue
            spent = world.cpu_seconds() - cpu
            bystander.waits_for(5)
        assert world.growth() < 2 * BYTES_OF_NOISE
        assert spent < NONSENSE_CPU_SECONDS

    def test_wide_filters(self, world: World) -> None:
        """Tens of thousands of terms: answered or refused, without keeping others from their answers."""
        terms = b"".join(encode_filter(("=", "description", b"%d" % number)) for number in range(30_000))
        operation = self.search(tlv(0xA1, terms))
        with Bystander(world) as bystander, Client(world.port, source="127.0.4.3") as client:
            assert client.bind(BIND_DN, BIND_PASSWORD) == 0
            for _ in range(3):
                number = client.send(operation)
                answered, tag, _, _ = client.receive()
                assert (answered, tag) in ((number, 0x65), (0, 0x78))
                if answered != number:
                    break
            bystander.waits_for(5)
        assert world.growth() < 8 * BYTES_OF_NOISE

    @staticmethod
    def search(filter: bytes) -> bytes:
        return tlv(
            0x63,
            text(BASE_DN),
            integer(2, 0x0A),
            integer(0, 0x0A),
            integer(0),
            integer(0),
            tlv(0x01, b"\0"),
            filter,
            tlv(0x30),
        )

    def test_unfinished_messages(self, world: World) -> None:
        """Half a megabyte of a message that never ends, from each of two hundred: kept only up to the bound of all."""
        half = b"\x30\x83\x0f\xff\x00" + b"\x02\x01\x05" + b"x" * (512 << 10)
        with ExitStack() as stack, Bystander(world) as bystander:
            for number in range(200):
                client = opened(stack, world.port, f"127.0.5.{number % 4 + 1}")
                assert client.bind(BIND_DN, BIND_PASSWORD) == 0
                try:
                    client.socket.sendall(half)
                except OSError:
                    continue
            bystander.waits_for(10)
            assert world.growth() < (64 << 20) + 2 * BYTES_OF_NOISE
            assert world.refused("buffers") > 0


class TestBinds:
    def test_flood(self, world: World) -> None:
        """
        Guesses from many addresses are throttled and cost the log little; who knows the password binds all the time,
        from other addresses and even from one that guesses, if it was right there before.
        """
        guesses = 150
        codes: list[int] = []

        def guess(source: str) -> None:
            for number in range(guesses):
                try:
                    with Client(world.port, source=source) as client:
                        codes.append(client.bind(BIND_DN, f"guess-{number}"))
                except (OSError, EOFError):
                    # cut by the back-off
                    codes.append(-1)

        with Client(world.port, source="127.0.6.1") as client:
            assert client.bind(BIND_DN, BIND_PASSWORD) == 0
        with Bystander(world) as bystander, ThreadPoolExecutor(8) as threads:
            guessing = [threads.submit(guess, f"127.0.6.{number}") for number in range(1, 9)]
            for each in guessing:
                each.result()
            bystander.waits_for(10)
            with Client(world.port, source="127.0.6.1") as client:
                assert client.bind(BIND_DN, BIND_PASSWORD) == 0
        assert len(codes) == 8 * guesses
        assert 0 not in codes
        assert directory.metric(world.server.port, "identree_ldap_binds_throttled_total") > 4 * guesses
        refusals = world.server.log.count("LDAP_BIND_REJECTED")
        assert 0 < refusals <= 8 * 20, "the log has grown with the flood"

    def test_pipelined(self, world: World) -> None:
        """Thousands of guesses in one breath on one connection end it after a few."""
        binds = b"".join(
            message(number, tlv(0x60, integer(3), text(BIND_DN), text(f"guess-{number}", 0x80)))
            for number in range(1, 5000)
        )
        with Bystander(world) as bystander, Client(world.port, source="127.0.7.1") as client:
            # it may be cut while we are speaking
            with suppress(OSError):
                client.socket.sendall(binds)
            assert is_cut(client)
            bystander.waits_for(5)


class TestDeaf:
    def test_large_answers(self, world: World) -> None:
        """Fifty that ask for everything again and again and read nothing: little of it is ever made."""
        everything = search_request(BASE_DN, SUB, ("*", "objectClass"), ["*", "+"])
        self.deaf(world, lambda number: everything)

    def test_different_answers(self, world: World) -> None:
        """The same with a question that is new each time, so that no answer serves twice."""
        self.deaf(
            world,
            lambda number: search_request(
                BASE_DN, SUB, ("&", ("*", "objectClass"), ("!", ("=", "uid", b"nobody%d" % number))), ["*", "+"]
            ),
        )

    @staticmethod
    def deaf(world: World, question: Callable[[int], bytes]) -> None:
        most = 0
        with ExitStack() as stack, Bystander(world) as bystander:
            clients = []
            for number in range(DEAF):
                source = f"127.0.8.{number % 5 + 1}"
                client = stack.enter_context(Client(world.port, source=source, receive_buffer=DEAF_BUFFER_BYTES))
                assert client.bind(BIND_DN, BIND_PASSWORD) == 0
                client.socket.setblocking(False)
                clients.append(client)
            for number in range(DEAF_REQUESTS):
                for place, client in enumerate(clients):
                    try:
                        client.socket.send(message(number + 2, question(number * DEAF + place)))
                    except BlockingIOError:
                        # it is not read either, as it should be
                        continue
                most = max(most, world.growth())
            # long enough for a server that goes on making answers to make many of them
            for _ in range(DEAF_ROUNDS):
                bystander.waits_for(10)
                most = max(most, world.growth())
        # what one answer has would be some megabytes for each of them, and there are thousands of questions
        assert most < DEAF * (256 << 10) + 3 * BYTES_OF_NOISE, f"{most >> 20} MiB"
