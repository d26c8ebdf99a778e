"""What every store must do with the host registry and enrolment tokens (identree.storage.interface)."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Coroutine
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from identree.core import hosts
from identree.core.challenge import Live
from identree.core.events import (
    CertificateIssued,
    EnrolmentTokenCreated,
    HostRegistered,
    HostRegistrationChanged,
    HostRemoved,
    HostSecretRotated,
)
from identree.core.hosts import (
    BadToken,
    FirstHost,
    HostEntry,
    HostExists,
    OtherHost,
    TooManyHosts,
    UnknownHost,
    digest_of,
)
from identree.storage import registry
from identree.storage.interface import EnrolmentToken, HostCertificate, Redeem, RegistryLook
from identree.storage.store import SqlStore

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


def host(name: str = "web1", secret: str = "a", users: tuple[str, ...] = ("*",), group: str = "") -> HostEntry:
    return HostEntry(
        name=name, digest=digest_of(secret), users=frozenset(users), group=group, registered_at=NOW.replace(minute=1)
    )


def token(text: str = "t", hostname: str = "web1", **more: Any) -> EnrolmentToken:
    values: dict[str, Any] = {
        "users": None,
        "group": "",
        "again": False,
        "created_by": "ada",
        "created_at": NOW,
        "expires_at": NOW + HOUR,
    }
    return EnrolmentToken(digest=digest_of(text), hostname=hostname, **(values | more))


def wish(text: str = "t", hostname: str = "web1", secret: str = "s", now: datetime = NOW) -> Redeem:
    return Redeem(token=digest_of(text), hostname=hostname, secret=digest_of(secret), now=now, remote_addr="192.0.2.1")


class RegistryContract:
    """To be mixed into a test case that opens a store."""

    store: SqlStore
    log: Any
    assertEqual: Any
    assertIs: Any
    assertIn: Any
    assertNotEqual: Any
    fail: Any
    patch: Any

    @abstractmethod
    async def open(self, **options: Any) -> SqlStore: ...

    async def refused(self, work: Coroutine[Any, Any, object]) -> Exception:
        try:
            await work
        except Exception as e:
            return e
        raise AssertionError("it was not refused")

    async def register(self, entry: HostEntry, *, first: bool = True, outside: bool = False) -> None:
        event = HostRegistered(at=NOW, username="ada", actor="ada", hostname=entry.name)
        await self.store.register_host(entry, event, first=first, outside=outside)

    async def add_token(self, token: EnrolmentToken, *, first: bool = True) -> None:
        event = EnrolmentTokenCreated(at=NOW, username="ada", actor="ada", hostname=token.hostname)
        await self.store.add_enrolment_token(token, event, first=first)

    async def entries(self) -> tuple[HostEntry, ...]:
        return (await self.store.registry_page()).entries

    def kinds(self) -> list[str]:
        return [json.loads(record.plain)["event"] for record in self.log.records]

    # -- hosts --------------------------------------------------------------------------------------------------------
    async def test_registry_of_a_new_database(self) -> None:
        """It was never used."""
        self.assertEqual(await self.store.registry_look(), RegistryLook(revision=0, imported=False, outside=False))
        self.assertEqual(await self.entries(), ())

    async def test_registered_host(self) -> None:
        """It comes back as it was, with its event in the log, and the revision moves."""
        one = host(users=("bob", "al_ice"), group="production")
        await self.register(one)
        self.assertEqual(await self.entries(), (one,))
        self.assertEqual((await self.store.registry_look()).revision, 1)
        self.assertEqual(self.kinds(), ["host_registered"])

    async def test_registered_host_without_users(self) -> None:
        """Nobody is not everybody."""
        await self.register(host(users=()))
        self.assertEqual((await self.entries())[0].users, frozenset())

    async def test_registering_twice(self) -> None:
        """The second one is refused, and changes neither secret nor revision."""
        await self.register(host())
        problem = await self.refused(self.register(host(secret="b")))
        self.assertEqual((type(problem), str(problem)), (HostExists, "web1"))
        self.assertEqual(await self.entries(), (host(),))
        self.assertEqual(((await self.store.registry_look()).revision, self.kinds()), (1, ["host_registered"]))

    async def test_registering_at_once(self) -> None:
        """Of several with one name, one is registered."""
        asked = [Deferred.fromCoroutine(self.refused(self.register(host(secret=f"{n}")))) for n in range(5)]
        results = await gatherResults([one.addErrback(lambda failure: None) for one in asked])
        self.assertEqual([type(one) for one in results].count(HostExists), 4)
        self.assertEqual(len(await self.entries()), 1)

    async def test_first_host(self) -> None:
        """The first one ever must be allowed to be that; one after all were removed need not."""
        self.assertEqual(type(await self.refused(self.register(host(), first=False))), FirstHost)
        self.assertEqual((await self.store.registry_look()).revision, 0)
        await self.register(host())
        await self.store.unregister_host("web1", HostRemoved(at=NOW, username="ada", hostname="web1"))
        await self.register(host("web2"), first=False)
        self.assertEqual([one.name for one in await self.entries()], ["web2"])

    async def test_full_registry(self) -> None:
        """There is a bound."""
        self.patch(registry, "MOST_HOSTS", 1)
        await self.register(host())
        self.assertEqual(type(await self.refused(self.register(host("web2")))), TooManyHosts)

    async def test_removed_host(self) -> None:
        """It is gone, with what could enrol it again; a second removal finds nothing."""
        await self.register(host())
        await self.add_token(token(again=True))
        removed = HostRemoved(at=NOW, username="ada", hostname="web1")
        await self.store.unregister_host("web1", removed)
        self.assertEqual(await self.entries(), ())
        self.assertEqual(type(await self.refused(self.store.redeem_enrolment_token(wish()))), BadToken)
        self.assertEqual(type(await self.refused(self.store.unregister_host("web1", removed))), UnknownHost)
        self.assertEqual(self.kinds()[2:], ["host_removed"])

    async def test_rotated_secret(self) -> None:
        """There is one secret, the new one; an unknown host has none."""
        await self.register(host(group="g"))
        rotated = HostSecretRotated(at=NOW, username="ada", hostname="web1")
        await self.store.rotate_host_secret("web1", digest_of("b"), rotated)
        self.assertEqual(await self.entries(), (host(secret="b", group="g"),))
        problem = await self.refused(self.store.rotate_host_secret("web2", digest_of("b"), rotated))
        self.assertEqual((type(problem), (await self.store.registry_look()).revision), (UnknownHost, 2))

    async def test_changed_host(self) -> None:
        """Users and group, each by itself; what is not said stays."""
        changed = HostRegistrationChanged(at=NOW, username="ada", hostname="web1")
        await self.register(host(group="g"))
        await self.store.change_host("web1", frozenset({"bob"}), None, changed)
        self.assertEqual(await self.entries(), (host(users=("bob",), group="g"),))
        await self.store.change_host("web1", None, "", changed)
        self.assertEqual(await self.entries(), (host(users=("bob",)),))
        problem = await self.refused(self.store.change_host("web2", None, "", changed))
        self.assertEqual(type(problem), UnknownHost)

    async def test_dropped_user(self) -> None:
        """A person goes off all lists; others with nearly that name, and everybody, stay."""
        await self.register(host("a", users=("al_ice", "bob")))
        await self.register(host("b", users=("alXice", "AL_ICE")))
        await self.register(host("c", users=("al_ice",)))
        await self.register(host("d"))
        self.assertEqual([await self.store.drop_host_user(name) for name in ("al_ice", "al_ice", "*")], [2, 0, 0])
        users = [sorted(one.users) for one in await self.entries()]
        self.assertEqual(users, [["bob"], ["AL_ICE", "alXice"], [], ["*"]])

    async def test_pages(self) -> None:
        """By name, each with the revision."""
        for name in ("web3", "web1", "web2"):
            await self.register(host(name))
        page = await self.store.registry_page(limit=2)
        self.assertEqual(([one.name for one in page.entries], page.revision), (["web1", "web2"], 3))
        self.assertEqual([one.name for one in (await self.store.registry_page("web2")).entries], ["web3"])

    async def test_end_of_certificate(self) -> None:
        """The last certificate's, or what the file said."""
        entry = replace(host(), certificate_ends=NOW)
        await self.register(entry)
        self.assertEqual(await self.entries(), (entry,))
        issued = HostCertificate(hostname="web1", serial="a1", issued_at=NOW, expires_at=NOW + HOUR)
        event = CertificateIssued(at=NOW, username="web1", hostname="web1", code="a1")
        await self.store.record_certificate(issued, event, force=True)
        self.assertEqual((await self.entries())[0].certificate_ends, NOW + HOUR)

    async def test_changes_wake(self) -> None:
        """Who follows the registry is woken, and the dashboards."""
        heard: list[Live] = []
        self.store.subscribe(heard.append)
        await self.register(host())
        self.assertEqual([live.event for live in heard], ["registry_changed", "host_changed"])

    # -- the file -----------------------------------------------------------------------------------------------------
    async def test_import(self) -> None:
        """Once; the registry counts as used then."""
        many = [host(f"web{n:03}", secret=f"{n}", users=("bob",)) for n in range(60)]
        self.assertIs(await self.store.import_registry(many, exported=False), True)
        self.assertEqual(await self.entries(), tuple(many))
        self.assertEqual(await self.store.registry_look(), RegistryLook(revision=1, imported=True, outside=False))
        self.assertIs(await self.store.import_registry([host("other")], exported=False), False)
        self.assertEqual(len(await self.entries()), 60)

    async def test_import_of_nothing(self) -> None:
        """An empty file leaves the registry as one that was never used."""
        self.assertIs(await self.store.import_registry([], exported=False), True)
        self.assertEqual(await self.store.registry_look(), RegistryLook(revision=0, imported=True, outside=False))

    async def test_import_beside_a_registered_host(self) -> None:
        """What is registered already stays as it is."""
        await self.register(host())
        self.assertIs(await self.store.import_registry([host(secret="b"), host("web2")], exported=False), True)
        self.assertEqual(await self.entries(), (host(), host("web2")))

    async def test_import_of_an_export(self) -> None:
        """It fills a new database, and never brings back what was removed from a used one."""
        await self.register(host())
        self.assertIs(await self.store.import_registry([host("gone")], exported=True), False)
        self.assertEqual((await self.store.registry_look()).imported, False)

    async def test_import_of_an_export_into_a_new_database(self) -> None:
        """That is how a registry is put back."""
        self.assertIs(await self.store.import_registry([host()], exported=True), True)
        self.assertEqual(await self.entries(), (host(),))

    async def test_import_of_too_many(self) -> None:
        """Nothing is taken over then."""
        self.patch(registry, "MOST_HOSTS", 1)
        problem = await self.refused(self.store.import_registry([host(), host("web2")], exported=False))
        self.assertEqual((type(problem), await self.entries()), (TooManyHosts, ()))
        self.assertEqual((await self.store.registry_look()).imported, False)

    # -- enrolment ----------------------------------------------------------------------------------------------------
    async def test_enrolment(self) -> None:
        """A token gives a host its secret, with users and group, and an event that names who had made it."""
        await self.add_token(token(users=frozenset({"bob"}), group="g"))
        done = await self.store.redeem_enrolment_token(wish())
        self.assertEqual((done.created_by, done.again), ("ada", False))
        [entry] = await self.entries()
        self.assertEqual((entry.digest, entry.users, entry.group), (digest_of("s"), frozenset({"bob"}), "g"))
        self.assertEqual(entry.registered_at, NOW)
        self.assertEqual(self.kinds(), ["enrolment_token_created", "host_enrolled"])
        record = json.loads(self.log.records[-1].plain)
        self.assertEqual([record[key] for key in ("actor", "hostname", "remote_addr")], ["ada", "web1", "192.0.2.1"])

    async def test_enrolment_for_everybody(self) -> None:
        """Without a list of users everybody is listed, as with add-host."""
        await self.add_token(token())
        await self.store.redeem_enrolment_token(wish())
        self.assertEqual((await self.entries())[0].users, frozenset({"*"}))

    async def test_token_used_at_once(self) -> None:
        """Of several that come with one token at the same time, one gets in."""
        await self.add_token(token(again=True))
        asked = [
            Deferred.fromCoroutine(self.refused(self.store.redeem_enrolment_token(wish(secret=f"{n}"))))
            for n in range(5)
        ]
        results = await gatherResults([one.addErrback(lambda failure: None) for one in asked])
        self.assertEqual(sum(isinstance(one, BadToken) and one.why == "used" for one in results), 4)
        self.assertEqual(self.kinds().count("host_enrolled"), 1)

    async def test_token_used_again(self) -> None:
        """It is void, for its host and for others, and says so to the log."""
        await self.add_token(token())
        await self.store.redeem_enrolment_token(wish())
        for hostname in ("web1", "web2"):
            problem = await self.refused(self.store.redeem_enrolment_token(wish(hostname=hostname)))
            self.assertEqual((type(problem), str(problem)), (BadToken, "used"))

    async def test_expired_token(self) -> None:
        """At the very second of its end it is too late."""
        await self.add_token(token())
        problem = await self.refused(self.store.redeem_enrolment_token(wish(now=NOW + HOUR)))
        self.assertEqual((type(problem), str(problem)), (BadToken, "expired"))
        await self.store.redeem_enrolment_token(wish(now=NOW + HOUR - timedelta(seconds=1)))

    async def test_unknown_token(self) -> None:
        """Nothing happens, not even to the revision."""
        problem = await self.refused(self.store.redeem_enrolment_token(wish()))
        self.assertEqual((type(problem), str(problem)), (BadToken, "unknown"))
        self.assertEqual((await self.store.registry_look()).revision, 0)

    async def test_token_of_another_host(self) -> None:
        """It is refused, and still good for its own."""
        await self.add_token(token())
        problem = await self.refused(self.store.redeem_enrolment_token(wish(hostname="web2")))
        self.assertEqual(type(problem), OtherHost)
        await self.store.redeem_enrolment_token(wish())

    async def test_token_for_a_registered_host(self) -> None:
        """Only one that says so: then the secret is replaced; users and group stay unless the token names others."""
        await self.register(host(users=("bob",), group="g"))
        self.assertEqual(type(await self.refused(self.add_token(token()))), HostExists)
        await self.add_token(token(again=True))
        self.assertIs((await self.store.redeem_enrolment_token(wish())).again, True)
        self.assertEqual(await self.entries(), (host(secret="s", users=("bob",), group="g"),))
        await self.add_token(token("u", again=True, users=frozenset({"cy"}), group="h"))
        await self.store.redeem_enrolment_token(wish("u", secret="z"))
        self.assertEqual(await self.entries(), (host(secret="z", users=("cy",), group="h"),))

    async def test_host_registered_in_between(self) -> None:
        """A token for a new host does not replace the secret of one that was registered since; it is not used up."""
        await self.add_token(token())
        await self.register(host())
        self.assertEqual(type(await self.refused(self.store.redeem_enrolment_token(wish()))), HostExists)
        self.assertEqual(await self.entries(), (host(),))
        await self.store.unregister_host("web1", HostRemoved(at=NOW, username="ada", hostname="web1"))

    async def test_newer_token(self) -> None:
        """It replaces the one before."""
        await self.add_token(token())
        await self.add_token(token("u"))
        self.assertEqual(str(await self.refused(self.store.redeem_enrolment_token(wish()))), "unknown")
        await self.store.redeem_enrolment_token(wish("u"))

    async def test_token_for_the_first_host(self) -> None:
        """As with a registration, it must be wanted."""
        self.assertEqual(type(await self.refused(self.add_token(token(), first=False))), FirstHost)
        await self.register(host("other"))
        await self.add_token(token(), first=False)

    async def test_many_tokens(self) -> None:
        """Open ones are bounded; those that have ended do not count, and are forgotten some time later."""
        self.patch(registry, "MOST_TOKENS", 1)
        await self.add_token(token())
        self.assertEqual(type(await self.refused(self.add_token(token("u", "web2")))), TooManyHosts)
        later = NOW + HOUR
        await self.add_token(token("u", "web2", created_at=later, expires_at=later + HOUR))
        self.assertEqual(str(await self.refused(self.store.redeem_enrolment_token(wish(now=later)))), "expired")
        last = NOW + registry.REMEMBERED + 2 * HOUR + timedelta(seconds=1)
        await self.add_token(token("v", "web3", created_at=last, expires_at=last + HOUR))
        self.assertEqual(str(await self.refused(self.store.redeem_enrolment_token(wish(now=later)))), "unknown")

    # -- other programs -----------------------------------------------------------------------------------------------
    async def test_outside_events(self) -> None:
        """What a program without an audit log has done is taken into the chain once, in order, with its time."""
        await self.register(host(), outside=True)
        removed = HostRemoved(at=NOW + HOUR, username="ada", actor="ada", hostname="web1", reason="remove-host")
        await self.store.unregister_host("web1", removed, outside=True)
        self.assertEqual((self.kinds(), (await self.store.registry_look()).outside), ([], True))
        taken = [await self.store.take_outside_events() for _ in range(2)]
        self.assertEqual((taken, self.kinds()), ([2, 0], ["host_registered", "host_removed"]))
        self.assertEqual((await self.store.registry_look()).outside, False)
        record = json.loads(self.log.records[-1].plain)
        told = [record[key] for key in ("timestamp", "username", "actor", "hostname", "reason")]
        self.assertEqual(told, ["2026-03-01T13:00:00Z", "ada", "ada", "web1", "remove-host"])

    async def test_no_secret_stored(self) -> None:
        """The tables have digests only."""
        self.assertEqual(hosts.digest_of("s").hex(), token("s").digest.hex())
        await self.add_token(token("token-text"))
        await self.store.redeem_enrolment_token(wish("token-text", secret="secret-text"))
        [entry] = await self.entries()
        self.assertEqual(entry.digest, digest_of("secret-text"))
        everything = b"".join(record.plain for record in self.log.records)
        for text in (b"token-text", b"secret-text", entry.digest.hex().encode()):
            self.assertEqual(text in everything, False)
