"""What every store must do with hosts (identree.storage.interface)."""

from __future__ import annotations

import json
from abc import abstractmethod
from datetime import UTC, datetime, timedelta
from typing import Any

from identree.core.challenge import GraceSession, HistoryEntry, Live
from identree.core.events import (
    BreakglassEscrowed,
    BreakglassRotationRequested,
    BreakGlassUsed,
    CertificateIssued,
    Event,
    HostRegistered,
    HostRemoved,
    RevealedBreakglass,
)
from identree.core.hosts import HostEntry
from identree.storage import fleet
from identree.storage.interface import Agent, Beat, EscrowRecord, GraceChange, HostCertificate, Rotation
from identree.storage.store import SqlStore

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def agent(hostname: str = "web1", at: datetime = NOW, **texts: str) -> Agent:
    texts = {"version": "1.0", "os_info": "Debian 12 (amd64)", "address": "192.0.2.1", **texts}
    return Agent(hostname=hostname, first_seen=at, last_seen=at, **texts)


def line(action: str, username: str, hostname: str = "web1", *, actor: str = "", **more: Any) -> HistoryEntry:
    return HistoryEntry(
        **{"at": NOW, "username": username, "action": action, "hostname": hostname, "actor": actor or username, **more}
    )


def told(kind: type[Event], hostname: str = "web1") -> Event:
    return kind(at=NOW, username="root", hostname=hostname, actor="root")


class FleetContract:
    """To be mixed into a test case that opens a store."""

    store: SqlStore
    log: Any
    assertEqual: Any
    assertIs: Any
    patch: Any

    @abstractmethod
    async def open(self, **options: Any) -> SqlStore: ...

    async def session(self, username: str, hostname: str, expires_at: datetime = NOW + 3600 * SECOND) -> None:
        session = GraceSession(username=username, hostname=hostname, expires_at=expires_at)
        await self.store.change_grace(username, hostname, lambda _: GraceChange(session=session))

    async def escrowed(self, hostname: str, at: datetime = NOW) -> None:
        await self.store.record_escrow(
            EscrowRecord(hostname=hostname, escrowed_at=at),
            line("rotated_breakglass", "", hostname),
            BreakglassEscrowed(at=at, username=hostname, hostname=hostname),
        )
        await self.store.store_ciphertext(hostname, "text")

    async def rotated(self, hostname: str, at: datetime) -> None:
        await self.store.request_rotation([hostname], at, [], [], [])

    async def histories(self, *usernames: str) -> dict[str, list[tuple[str, str, str]]]:
        return {
            name: [(one.action, one.actor, one.reason) for one in await self.store.history(name)] for name in usernames
        }

    # -- heartbeats ----------------------------------------------------------------------------------------------------
    async def test_heartbeat(self) -> None:
        """The latest counts, the first time stays, and what is not told is not forgotten."""
        self.assertEqual(await self.store.record_heartbeat(agent()), Beat(accepted=True))
        later = NOW + 300 * SECOND
        await self.store.record_heartbeat(agent(at=later, version="", os_info="Debian 13", address="192.0.2.2"))
        self.assertEqual(
            await self.store.agents(),
            [
                Agent(
                    hostname="web1",
                    version="1.0",
                    os_info="Debian 13",
                    address="192.0.2.2",
                    first_seen=NOW,
                    last_seen=later,
                )
            ],
        )

    async def test_heartbeat_by_a_late_clock(self) -> None:
        """A replica whose clock is behind does not make the host seem older."""
        await self.store.record_heartbeat(agent())
        await self.store.record_heartbeat(agent(at=NOW - SECOND))
        self.assertEqual([one.last_seen for one in await self.store.agents()], [NOW])

    async def test_heartbeat_tells_rotation(self) -> None:
        """When the host was asked to rotate, and when it last did."""
        await self.rotated("web1", NOW)
        await self.escrowed("web1", NOW - SECOND)
        beat = await self.store.record_heartbeat(agent())
        self.assertEqual(beat, Beat(accepted=True, rotated_at=NOW, escrowed_at=NOW - SECOND))

    async def test_too_many_agents(self) -> None:
        """No place for a new one, unless another was silent for a month; those that are known are always heard."""
        self.patch(fleet, "MOST_AGENTS", 2)
        await self.store.record_heartbeat(agent("a"))
        await self.store.record_heartbeat(agent("b", NOW + SECOND))
        self.assertEqual(await self.store.record_heartbeat(agent("c", NOW + SECOND)), Beat(accepted=False))
        self.assertEqual(await self.store.record_heartbeat(agent("a", NOW + 2 * SECOND)), Beat(accepted=True))
        late = NOW + fleet.FORGOTTEN_AFTER + 2 * SECOND
        self.assertEqual(await self.store.record_heartbeat(agent("c", late)), Beat(accepted=True))
        self.assertEqual([one.hostname for one in await self.store.agents()], ["a", "c"])

    async def test_agents(self) -> None:
        """A page at a time, by name."""
        for name in ("c", "a", "b"):
            await self.store.record_heartbeat(agent(name))
        self.assertEqual([one.hostname for one in await self.store.agents(limit=2)], ["a", "b"])
        self.assertEqual([one.hostname for one in await self.store.agents("b")], ["c"])

    # -- rotation ------------------------------------------------------------------------------------------------------
    async def test_rotation(self) -> None:
        """Times, history, events and wake-ups in one commit."""
        before, woken = len(self.log.records), []
        self.store.subscribe(woken.append)
        await self.store.request_rotation(
            ["web2", "web1"],
            NOW,
            [line("rotation_requested", "root", "web1"), line("rotation_requested", "root", "web2")],
            [told(BreakglassRotationRequested), told(BreakglassRotationRequested, "web2")],
            [Live(event="host_changed", username="root")],
        )
        self.assertEqual(
            await self.store.rotations(),
            [Rotation(hostname="web1", requested_at=NOW), Rotation(hostname="web2", requested_at=NOW)],
        )
        self.assertEqual(await self.store.rotations("web1", 1), [Rotation(hostname="web2", requested_at=NOW)])
        self.assertEqual(await self.histories("root"), {"root": [("rotation_requested", "", "")] * 2})
        kinds = [b"breakglass_rotation_requested" in one.plain for one in self.log.records[before:]]
        self.assertEqual((kinds, woken), ([True, True], [Live(event="host_changed", username="root")]))

    async def test_rotation_never_goes_back(self) -> None:
        """An earlier time changes nothing, a later one does."""
        for at in (NOW, NOW - SECOND):
            await self.rotated("web1", at)
            self.assertEqual(await self.store.rotations(), [Rotation(hostname="web1", requested_at=NOW)])
        await self.rotated("web1", NOW + SECOND)
        self.assertEqual(await self.store.rotations(), [Rotation(hostname="web1", requested_at=NOW + SECOND)])

    # -- reveals and uses ----------------------------------------------------------------------------------------------
    async def test_reveal(self) -> None:
        """Everybody active on the host finds it in the own history, with who did it and why; so does the admin."""
        await self.store.append_history([line("approved", "alice"), line("approved", "eve", "web2")])
        await self.session("bob", "web1")
        entry = line("revealed_breakglass", "root", reason="disk full")
        before = len(self.log.records)
        await self.store.record_reveal(entry, told(RevealedBreakglass), NOW, [])
        others = [("revealed_breakglass", "root", "disk full")]
        found = await self.histories("alice", "bob", "root", "eve")
        self.assertEqual(found["alice"][-1:] if found["alice"][0][0] == "approved" else found["alice"][:1], others)
        self.assertEqual(found["bob"], others)
        self.assertEqual(found["root"], [("revealed_breakglass", "", "disk full")])
        self.assertEqual(found["eve"], [("approved", "", "")])
        self.assertEqual([b"revealed_breakglass" in one.plain for one in self.log.records[before:]], [True])
        self.assertEqual(await self.store.rotations(), [Rotation(hostname="web1", requested_at=NOW)])

    async def test_reveal_by_somebody_active(self) -> None:
        """Once for an admin who is active on the host; and without a rotation if none is wanted."""
        await self.session("root", "web1")
        await self.store.record_reveal(line("revealed_breakglass", "root"), told(RevealedBreakglass), None, [])
        self.assertEqual(await self.histories("root"), {"root": [("revealed_breakglass", "", "")]})
        self.assertEqual(await self.store.rotations(), [])

    async def test_reveal_beside_the_server(self) -> None:
        """All the same but for the audit chain: the event waits for a server, which takes it once, with its time."""
        await self.session("bob", "web1")
        entry = line("revealed_breakglass", "root", reason="it is down")
        event = RevealedBreakglass(at=NOW, username="root", hostname="web1", actor="root", reason="it is down")
        before = len(self.log.records)
        await self.store.record_reveal(entry, event, NOW, [], outside=True)
        self.assertEqual(len(self.log.records), before)
        self.assertIs((await self.store.registry_look()).outside, True)
        self.assertEqual(
            await self.histories("bob", "root"),
            {
                "bob": [("revealed_breakglass", "root", "it is down")],
                "root": [("revealed_breakglass", "", "it is down")],
            },
        )
        self.assertEqual(await self.store.rotations(), [Rotation(hostname="web1", requested_at=NOW)])
        self.assertEqual([await self.store.take_outside_events() for _ in range(2)], [1, 0])
        [record] = [json.loads(one.plain) for one in self.log.records[before:]]
        told = [record[key] for key in ("event", "timestamp", "username", "actor", "hostname", "reason")]
        self.assertEqual(told, ["revealed_breakglass", "2026-03-01T12:00:00Z", "root", "root", "web1", "it is down"])

    async def test_use(self) -> None:
        """For everybody active and the one who did it; the same once more is not told again."""
        await self.session("bob", "web1")
        entry = line("breakglass_used", "alice")
        before = len(self.log.records)
        self.assertIs(await self.store.record_use(entry, told(BreakGlassUsed), []), True)
        self.assertIs(await self.store.record_use(entry, told(BreakGlassUsed), []), False)
        self.assertEqual(len(self.log.records) - before, 1)
        self.assertEqual(
            await self.histories("alice", "bob"),
            {"alice": [("breakglass_used", "", "")], "bob": [("breakglass_used", "alice", "")]},
        )

    async def test_other_uses(self) -> None:
        """Another time, person or host is another use; with a reason it is the reason that tells them apart."""
        first = line("breakglass_used", "alice")
        self.assertIs(await self.store.record_use(first, told(BreakGlassUsed), []), True)
        for entry in (
            line("breakglass_used", "alice", at=NOW + SECOND),
            line("breakglass_used", "bob"),
            line("breakglass_used", "alice", "web2"),
            line("breakglass_used", "alice", reason="an odd time"),
        ):
            self.assertIs(await self.store.record_use(entry, told(BreakGlassUsed), []), True)
        again = line("breakglass_used", "alice", reason="an odd time", at=NOW + 9 * SECOND)
        self.assertIs(await self.store.record_use(again, told(BreakGlassUsed), []), False)

    # -- which hosts there are -----------------------------------------------------------------------------------------
    async def known(self) -> list[str]:
        return [one.hostname for one in await self.store.known_hosts() if one.present]

    async def test_known_hosts(self) -> None:
        """Every name of a host in the history, once; not what stands there for a group."""
        await self.store.append_history(
            [
                line("approved", "alice", "web2"),
                line("approved", "bob", "web2"),
                line("approved", "alice", "web1"),
                line("approved", "alice", ""),
                line("claims_updated", "root", "admins"),
                line("sudo_rule_modified", "root", "ops"),
            ]
        )
        self.assertEqual(await self.known(), ["web1", "web2"])

    async def test_known_hosts_by_page(self) -> None:
        """From one page to the next none is missed."""
        names = [f"web{number}" for number in range(7)]
        await self.store.append_history([line("approved", "alice", name) for name in names])
        found: list[str] = []
        while page := await self.store.known_hosts(found[-1] if found else "", 3):
            self.assertEqual(len(page) <= 3, True)
            found += [one.hostname for one in page]
        self.assertEqual(found, names)

    async def test_removed_host_is_unknown(self) -> None:
        """Until something happens on it again."""
        await self.store.append_history([line("approved", "alice")])
        await self.store.remove_host(line("removed_host", "root"), told(HostRemoved), [])
        self.assertEqual(await self.known(), [])
        await self.store.append_history([line("approved", "alice")])
        self.assertEqual(await self.known(), ["web1"])

    async def test_session_hosts(self) -> None:
        """Open sessions are counted by host."""
        await self.session("alice", "web1")
        await self.session("bob", "web1")
        await self.session("bob", "web2", NOW)
        await self.session("bob", "web3", NOW + SECOND)
        self.assertEqual(await self.store.session_hosts(NOW), {"web1": 2, "web3": 1})
        self.assertEqual(await self.store.session_hosts(NOW, "web1", 1), {"web3": 1})

    # -- removal -------------------------------------------------------------------------------------------------------
    async def test_removed_host(self) -> None:
        """All that is known of it goes, in every spelling; its history and other hosts stay."""
        for name in ("web1", "WEB1.", "web2"):
            await self.session("alice", name)
            await self.escrowed(name)
            await self.rotated(name, NOW)
            await self.store.record_heartbeat(agent(name))
        certificate = HostCertificate(hostname="web1", serial="1", issued_at=NOW, expires_at=NOW + 9 * SECOND)
        issued = CertificateIssued(at=NOW, username="web1", hostname="web1", code="1")
        await self.store.record_certificate(certificate, issued, force=True)
        before, woken = len(self.log.records), []
        self.store.subscribe(woken.append)
        changed = Live(event="host_changed", username="root")
        await self.store.remove_host(line("removed_host", "root"), told(HostRemoved), [changed])
        self.assertEqual(await self.store.session_hosts(NOW), {"web2": 1})
        self.assertEqual([one.hostname for one in await self.store.escrow_records()], ["web2"])
        self.assertEqual([one.hostname for one in await self.store.ciphertexts()], ["web2"])
        self.assertEqual([one.hostname for one in await self.store.rotations()], ["web2"])
        self.assertEqual([one.hostname for one in await self.store.agents()], ["web2"])
        self.assertIs(await self.store.host_certificate("web1"), None)
        self.assertEqual(await self.histories("root"), {"root": [("removed_host", "", "")]})
        self.assertEqual([b"host_removed" in one.plain for one in self.log.records[before:]], [True])
        self.assertEqual(woken, [changed, Live(event="session_changed", username="alice")])

    async def test_registered_host_is_removed(self) -> None:
        """Its registration goes with the rest, in one commit and with one event."""
        entry = HostEntry(name="web1", digest=b"d" * 32, users=frozenset(["*"]))
        await self.store.register_host(entry, told(HostRegistered), first=True)
        before = len(self.log.records)
        await self.store.remove_host(line("removed_host", "root"), told(HostRemoved), [])
        self.assertEqual([b"host_removed" in one.plain for one in self.log.records[before:]], [True])
        self.assertEqual((await self.store.registry_page()).entries, ())

    async def test_unknown_host_is_removed(self) -> None:
        """The same for a host that nobody knows."""
        await self.store.remove_host(line("removed_host", "root"), told(HostRemoved), [])
        self.assertEqual(await self.histories("root"), {"root": [("removed_host", "", "")]})
