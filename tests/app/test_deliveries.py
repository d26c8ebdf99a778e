"""From audit records to messages, through crashes, refusals and time."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from identree.app.challenges import Draft
from identree.app.deliveries import LEASE, Dispatcher, NoticePlanner, parse_record
from identree.app.ports import DeliveryFailed
from identree.core import tokens
from identree.core.challenge import Challenge, Live
from identree.core.errors import StorageUnavailable
from identree.core.events import PushDeviceAdded, ServerRestarted
from identree.core.notices import Channel, Configuration, Notice, Preference, Quiet, Route
from identree.core.policy import Policies
from identree.core.verdict import Approver
from identree.storage.interface import Delivery, PushDevice
from tests.app.world import GLOBAL, World, now_result

OPS = Channel(name="ops", backend="webhook", url="https://x.example/")
CHAT = Channel(name="chat", backend="discord", url="https://discord.example/")


class FakeMessenger:
    """
    :ivar sent: channel, notice, device, previous of each attempt.
    :ivar answers: what comes next by turns: a reference, a failure, or a Deferred.
    """

    def __init__(self) -> None:
        self.sent: list[tuple[str, Notice, str, str]] = []
        self.answers: list[Any] = []

    async def send(
        self, channel: Channel, notice: Notice, *, device: PushDevice | None = None, previous: str = ""
    ) -> str:
        self.sent.append((channel.name, notice, device.id if device is not None else "", previous))
        answer = self.answers.pop(0) if self.answers else "ref"
        if isinstance(answer, Deferred):
            answer = await answer
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    def edits(self, channel: Channel) -> bool:
        return channel.backend in ("discord", "webpush")


class DeliveryCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.world.change_rules(challenge_ttl=timedelta(minutes=10))
        self.world.metrics.know_channels(["ops", "chat", "webpush"])
        self.messenger = FakeMessenger()
        self.configuration = Configuration(channels=(OPS,), routes=(Route(channels=("ops",)),))
        self.preferences: tuple[Preference, ...] = ()
        self.roster: list[Approver] = []
        self.planner = NoticePlanner(
            store=self.world.store,
            configuration=lambda: self.configuration,
            preferences=lambda: self.preferences,
            policies=lambda: self.world.policies,
            group=lambda hostname: "",
            roster=lambda groups: self.roster,
            edits=self.messenger.edits,
            keys=self.world.keys,
            external_url="https://identree.example",
            give_up_after=timedelta(minutes=10),
            now=self.world.now,
        )
        self.planned = 0
        self.dispatcher = self.start("one")

    def start(self, owner: str) -> Dispatcher:
        dispatcher = Dispatcher(
            store=self.world.store,
            messenger=self.messenger,
            configuration=lambda: self.configuration,
            planner=self.planner,
            metrics=self.world.metrics,
            clock=self.world.clock,
            now=self.world.now,
            monotonic=self.world.clock.seconds,
            owner=owner,
            journal=self.world.journal,
        )
        dispatcher.startService()
        self.addCleanup(self.stop, dispatcher)
        return dispatcher

    def stop(self, dispatcher: Dispatcher) -> None:
        if dispatcher.running:
            dispatcher.stopService()

    def follow(self) -> None:
        """Plan what has been recorded since, as the follower would, and let the dispatcher look."""
        records = self.world.store.log.records
        now_result(self.planner.plan(*(parse_record(record.plain) for record in records[self.planned :])))
        self.planned = len(records)
        self.dispatcher.heard(Live(event="deliveries_planned", username=""))

    def create(self, **more: Any) -> Challenge:
        draft = Draft(username="alice", hostname="web01", reason="disk full", **more)
        challenge = now_result(self.world.challenges.create(draft, GLOBAL, "192.0.2.1")).challenge
        self.follow()
        return challenge

    def log(self) -> list[tuple[str, str, str]]:
        """Channel, state and error of each delivery, the oldest first."""
        return [
            (one.planned.channel, one.state.value, one.error)
            for one in reversed(now_result(self.world.store.deliveries()))
        ]

    def only(self) -> Delivery:
        [found] = now_result(self.world.store.deliveries())
        return found

    def count(self, status: str, channel: str = "ops") -> float:
        return self.world.sample("identree_notifications_total", status=status, channel=channel)


class PageTests(DeliveryCase):
    def test_told(self) -> None:
        """Pages with the log are told when something has become of messages, once in a second at most."""
        heard: list[str] = []
        self.world.store.subscribe(lambda live: heard.append(live.event))
        for _ in range(5):
            self.create()
        self.assertEqual(heard.count("deliveries_changed"), 1)
        self.world.clock.advance(1.1)
        self.assertEqual(heard.count("deliveries_changed"), 2)
        self.world.clock.advance(60)
        self.assertEqual(heard.count("deliveries_changed"), 2)
        self.assertEqual(len(self.messenger.sent), 5)

    def test_told_later(self) -> None:
        """A database that is away when pages are to be told delays it."""
        heard: list[str] = []
        self.world.store.subscribe(lambda live: heard.append(live.event))
        works = self.world.store.deliveries_changed

        async def away() -> None:
            raise StorageUnavailable("locked")

        self.world.store.deliveries_changed = away  # type: ignore[method-assign]
        self.create()
        self.world.store.deliveries_changed = works  # type: ignore[method-assign]
        self.assertNotIn("deliveries_changed", heard)
        self.world.clock.advance(20)
        self.assertEqual(heard.count("deliveries_changed"), 1)


class PlanTests(DeliveryCase):
    def test_request(self) -> None:
        """A request is told at once, with links that work for it, and what the host told."""
        challenge = self.create()
        [(channel, notice, _, _)] = self.messenger.sent
        self.assertEqual(
            (channel, notice.username, notice.hostname, notice.reason), ("ops", "alice", "web01", "disk full")
        )
        self.assertEqual(notice.approval_url, f"https://identree.example/approve/{challenge.user_code}")
        token = notice.onetap_url.rpartition("/")[2]
        self.assertTrue(tokens.one_tap_valid(self.world.keys, tokens.read_one_tap(token), "alice", "web01"))
        self.assertEqual((notice.expires_in, self.log()), (600, [("ops", "sent", "")]))
        self.assertEqual(self.count("sent"), 1)

    def test_once(self) -> None:
        """The same record planned again, as after a crash, sends nothing more."""
        self.create()
        self.planned = 0
        self.follow()
        self.assertEqual(len(self.messenger.sent), 1)

    def test_others(self) -> None:
        """Events of other kinds are told without links; those of the catalogue that are only audited are not."""
        now = self.world.now()
        now_result(self.world.store.record([ServerRestarted(at=now, username="carol", actor="carol")]))
        now_result(self.world.store.record([PushDeviceAdded(at=now, username="carol", actor="carol")]))
        self.follow()
        [(_, notice, _, _)] = self.messenger.sent
        self.assertEqual((notice.event, notice.url, notice.expires_in), ("server_restarted", "", 0))

    def test_history(self) -> None:
        """What is long past is not told, nor a request that is over."""
        now_result(self.world.store.record([ServerRestarted(at=self.world.now(), username="c", actor="c")]))
        draft = Draft(username="alice", hostname="web01")
        now_result(self.world.challenges.create(draft, GLOBAL, "192.0.2.1"))
        self.world.clock.advance(2 * 3600)
        self.follow()
        self.assertEqual((self.messenger.sent, self.log()), ([], []))

    def test_nobody(self) -> None:
        """Where nobody is told of anything, events cost no look at their requests; where somebody is, one each."""
        asked: list[str] = []
        works, devices = self.world.store.challenge_by_code, self.world.store.push_devices

        async def counted(code: str) -> Challenge | None:
            asked.append(code)
            return await works(code)

        async def counted_devices(*arguments: Any, **options: Any) -> list[PushDevice]:
            asked.append("devices")
            return await devices(*arguments, **options)

        self.patch(self.world.store, "challenge_by_code", counted)
        self.patch(self.world.store, "push_devices", counted_devices)
        for configuration in (Configuration(), Configuration(channels=(OPS,), routes=(Route(channels=("ops",)),))):
            self.configuration = configuration
            asked.clear()
            drafts = [Draft(username="alice", hostname=f"web0{number}") for number in range(3)]
            made = [now_result(self.world.challenges.create(draft, GLOBAL, "192.0.2.1")) for draft in drafts]
            self.follow()
            codes = [one.challenge.user_code for one in made] if configuration.channels else []
            self.assertEqual((asked, len(self.messenger.sent)), (["devices", *codes], len(codes)))

    def test_nobody_any_more(self) -> None:
        """A message that waits goes once its request is decided, also when the last channel is gone."""
        self.messenger.answers = [DeliveryFailed("away", retry_after=60)]
        challenge = self.create()
        self.configuration = Configuration()
        now_result(self.world.decisions.reject(self.world.caller("alice"), challenge.id))
        self.follow()
        self.assertEqual(self.log(), [("ops", "skipped", "decided before it was sent")])

    def test_policy_channels(self) -> None:
        """The channels of the policy are told too."""
        self.configuration = Configuration(channels=(OPS, CHAT), routes=(Route(channels=("ops",)),))
        self.world.policies = Policies.from_fields([{"name": "p", "notify_channels": ["chat", "ops", "gone"]}])
        self.create()
        self.assertEqual([channel for channel, *_ in self.messenger.sent], ["ops", "chat"])

    def test_quiet(self) -> None:
        """In quiet hours a message is left out, and the log says why."""
        quiet = Quiet(hours="00:00-23:59")
        self.configuration = Configuration(
            channels=(Channel(name="ops", backend="webhook", url=OPS.url, quiet=quiet),),
            routes=(Route(channels=("ops",)),),
        )
        self.create()
        self.assertEqual(self.log(), [("ops", "skipped", "quiet hours")])

    def test_nonsense(self) -> None:
        """A record that is none plans nothing."""
        for raw in (b"", b"[]", b"{", b'{"event":"challenge_created"}'):
            now_result(self.planner.plan(parse_record(raw)))
        self.assertEqual(self.log(), [])


class EscalationTests(DeliveryCase):
    def setUp(self) -> None:
        super().setUp()
        route = Route(channels=("ops",), escalate_after=timedelta(seconds=60), escalate_to=("chat",))
        self.configuration = Configuration(channels=(OPS, CHAT), routes=(route,))

    def test_escalates(self) -> None:
        """Where nobody decides in time others hear of it, with the time that is left."""
        self.create()
        self.world.clock.advance(59)
        self.assertEqual(len(self.messenger.sent), 1)
        self.world.clock.pump([1, 1, 1])
        self.assertEqual([channel for channel, *_ in self.messenger.sent], ["ops", "chat"])
        self.assertTrue(self.messenger.sent[1][1].expires_in <= 540)

    def test_decided(self) -> None:
        """Once it is decided nobody is bothered."""
        challenge = self.create()
        now_result(self.world.decisions.approve(self.world.caller("alice"), challenge.id))
        self.follow()
        self.world.clock.pump([15] * 8)
        sent = [(channel, notice.event) for channel, notice, *_ in self.messenger.sent]
        self.assertNotIn(("chat", "challenge_created"), sent)
        self.assertIn(("chat", "skipped", "decided before it was sent"), self.log())


class DispatchTests(DeliveryCase):
    def test_tried_again(self) -> None:
        """A receiver that is away gets it later, after pauses that double; it counts once."""
        self.messenger.answers = [DeliveryFailed("away"), DeliveryFailed("away"), DeliveryFailed("away")]
        self.create()
        times = []
        for _ in range(120):
            self.world.clock.advance(1)
            if len(self.messenger.sent) > len(times) + 1:
                times.append(self.world.clock.seconds())
            if len(self.messenger.sent) == 4:
                break
        self.assertEqual(len(self.messenger.sent), 4)
        gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
        self.assertEqual(gaps, sorted(gaps))
        self.assertEqual((self.log(), self.count("sent"), self.count("failed")), ([("ops", "sent", "")], 1, 0))

    def test_patience(self) -> None:
        """It waits as long as the receiver asks."""
        self.messenger.answers = [DeliveryFailed("slow down", retry_after=40)]
        self.create()
        self.world.clock.pump([1] * 39)
        self.assertEqual(len(self.messenger.sent), 1)
        self.world.clock.pump([1] * 3)
        self.assertEqual(len(self.messenger.sent), 2)

    def test_given_up(self) -> None:
        """When the request is over, so is trying; the log says what was wrong."""
        self.messenger.answers = [DeliveryFailed("away")] * 100
        self.create()
        self.world.clock.pump([10] * 70)
        [(channel, state, error)] = self.log()
        self.assertIn(state, ("failed", "skipped"))
        self.assertEqual((channel, error), ("ops", "away"))
        self.assertTrue(3 < len(self.messenger.sent) < 100)

    def test_permanent(self) -> None:
        """What will never be taken is not tried again."""
        self.messenger.answers = [DeliveryFailed("server returned 404", permanent=True)]
        self.create()
        self.world.clock.pump([10] * 10)
        self.assertEqual((len(self.messenger.sent), self.count("failed")), (1, 1))
        self.assertEqual(self.log(), [("ops", "failed", "server returned 404")])

    def test_command(self) -> None:
        """A command is run once."""
        self.configuration = Configuration(
            channels=(Channel(name="ops", backend="custom", command="x"),), routes=(Route(channels=("ops",)),)
        )
        self.messenger.answers = [DeliveryFailed("status 3")]
        self.create()
        self.world.clock.pump([10] * 10)
        self.assertEqual(len(self.messenger.sent), 1)

    def test_crash(self) -> None:
        """What a process had in hand when it died is sent by another one, with the same key: at least once."""
        self.messenger.answers = [Deferred()]
        self.create()
        self.assertEqual(self.log()[0][1], "sending")
        self.start("two")
        self.world.clock.pump([10] * int(LEASE.total_seconds() // 10 - 1))
        self.assertEqual(len(self.messenger.sent), 1)
        self.world.clock.pump([10] * 4)
        self.assertEqual(len(self.messenger.sent), 2)
        self.assertEqual(self.messenger.sent[0][1].key, self.messenger.sent[1][1].key)
        self.assertEqual(self.log(), [("ops", "sent", "")])

    def test_database_away(self) -> None:
        """Without a database it waits, says so once, and goes on."""
        claim = self.world.store.claim_deliveries

        async def away(*arguments: Any) -> list[Delivery]:
            raise StorageUnavailable("locked")

        self.world.store.claim_deliveries = away  # type: ignore[method-assign]
        self.create()
        self.assertEqual(self.messenger.sent, [])
        self.world.store.claim_deliveries = claim  # type: ignore[method-assign]
        self.world.clock.pump([5] * 4)
        self.assertEqual(len(self.messenger.sent), 1)

    def test_bounded(self) -> None:
        """No more than so many run at a time, of one channel and all together; the others wait and are sent."""
        self.messenger.answers = [Deferred() for _ in range(30)]
        waiting = list(self.messenger.answers)
        for number in range(30):
            now = self.world.now()
            now_result(self.world.store.record([ServerRestarted(at=now, username=f"u{number}", actor="c")]))
        self.follow()
        self.assertEqual(len(self.messenger.sent), 10)
        for answer in waiting:
            answer.callback("")
        self.world.clock.pump([1] * 40)
        self.assertEqual(len({notice.username for _, notice, *_ in self.messenger.sent}), 30)
        self.assertEqual({state for _, state, _ in self.log()}, {"sent"})

    def test_channel_gone(self) -> None:
        """A message of a channel that was deleted meanwhile is left out."""
        self.messenger.answers = [DeliveryFailed("away")]
        self.create()
        self.configuration = Configuration()
        self.world.clock.pump([1] * 5)
        self.assertEqual(self.log(), [("ops", "skipped", "there is no such channel any more")])

    def test_stop(self) -> None:
        """At the end what is being sent is finished; what is not begun stays."""
        self.messenger.answers = [answer := Deferred()]
        self.create()
        stopped = self.dispatcher.stopService()
        self.assertNoResult(stopped)
        answer.callback("")
        self.successResultOf(stopped)
        self.assertEqual(self.log(), [("ops", "sent", "")])
        self.create()
        self.assertEqual(self.log()[-1][1], "queued")

    def test_stop_late(self) -> None:
        """What does not end is left after a while, and sent again by whoever comes next."""
        self.messenger.answers = [Deferred()]
        self.create()
        stopped = self.dispatcher.stopService()
        self.world.clock.advance(46)
        self.successResultOf(stopped)
        self.assertEqual(self.log()[0][1], "sending")


class UpdateTests(DeliveryCase):
    def setUp(self) -> None:
        super().setUp()
        self.configuration = Configuration(
            channels=(CHAT,), routes=(Route(channels=("chat",), events=("challenge_created",)),)
        )
        self.world.policies = Policies.from_fields([{"name": "p", "min_approvals": 2}])

    def test_brought_up_to_date(self) -> None:
        """A message that can be changed shows progress, then the outcome and by whom, and asks no longer."""
        self.messenger.answers = ["m1"]
        challenge = self.create()
        now_result(self.world.decisions.approve(self.world.caller("alice"), challenge.id))
        self.follow()
        now_result(self.world.decisions.approve(self.world.caller("carol", "admin"), challenge.id))
        self.follow()
        _, progress, outcome = self.messenger.sent
        self.assertEqual((progress[3], progress[1].approvals, progress[1].required), ("m1", 1, 2))
        self.assertTrue(progress[1].approval_url)
        self.assertEqual((outcome[3], outcome[1].outcome, outcome[1].actor), ("m1", "approved", "carol"))
        self.assertEqual((outcome[1].approval_url, outcome[1].onetap_url, outcome[1].expires_in), ("", "", 0))

    def test_decided_while_sending(self) -> None:
        """A message that was on its way when the request was decided is brought up to date when it has arrived."""
        self.messenger.answers = [answer := Deferred()]
        challenge = self.create()
        now_result(self.world.decisions.reject(self.world.caller("carol", "admin"), challenge.id))
        self.follow()
        self.assertEqual(len(self.messenger.sent), 1)
        answer.callback("m1")
        self.world.clock.pump([1] * 3)
        _, update = self.messenger.sent
        self.assertEqual((update[3], update[1].outcome, update[1].actor), ("m1", "rejected", "carol"))

    def test_expired(self) -> None:
        """Also when nobody decided."""
        self.create()
        self.world.clock.advance(601)
        now_result(self.world.challenges.expire_overdue())
        self.follow()
        self.assertEqual(self.messenger.sent[-1][1].outcome, "expired")

    def test_without_reference(self) -> None:
        """What cannot be changed is left as it is."""
        self.messenger.answers = [""]
        challenge = self.create()
        now_result(self.world.decisions.reject(self.world.caller("alice"), challenge.id))
        self.follow()
        self.assertEqual(len(self.messenger.sent), 1)

    def test_unsent(self) -> None:
        """What was not sent yet is not sent once the request is decided."""
        self.messenger.answers = [DeliveryFailed("away", retry_after=60)]
        challenge = self.create()
        now_result(self.world.decisions.reject(self.world.caller("alice"), challenge.id))
        self.follow()
        self.world.clock.pump([10] * 10)
        self.assertEqual(len(self.messenger.sent), 1)
        self.assertEqual(self.log(), [("chat", "skipped", "decided before it was sent")])


class PushTests(DeliveryCase):
    def setUp(self) -> None:
        super().setUp()
        self.configuration = Configuration()
        self.roster = [
            Approver(username="carol", is_admin=True),
            Approver(username="dora", is_admin=False, groups=frozenset({"dba"})),
        ]
        for name in ("alice", "bob", "carol", "dora"):
            self.device(name)
        self.follow()

    def device(self, username: str, *patterns: str) -> None:
        now = self.world.now()
        device = PushDevice(
            id=f"{username}-device",
            username=username,
            endpoint=f"https://push.example/{username}",
            p256dh="p",
            auth="a",
            events=patterns,
            created_at=now,
        )
        now_result(
            self.world.store.add_push_device(device, PushDeviceAdded(at=now, username=username, actor=username), 9)
        )

    def told(self) -> list[str]:
        return sorted(device for _, _, device, _ in self.messenger.sent)

    def test_who_may(self) -> None:
        """A request is pushed to those whose approval would count, and to nobody else."""
        self.create()
        self.assertEqual(self.told(), ["alice-device", "carol-device"])

    def test_policy(self) -> None:
        """The policy says whose that is."""
        self.world.policies = Policies.from_fields([{"name": "p", "approver_groups": ["dba"]}])
        self.create()
        self.assertEqual(self.told(), ["dora-device"])

    def test_patterns(self) -> None:
        """A device hears of what its person wants."""
        self.device("alice", "break_glass*")
        self.create()
        self.assertEqual(self.told(), ["carol-device"])

    def test_outcome(self) -> None:
        """The requester hears what became of it; the others' message is replaced."""
        challenge = self.create()
        now_result(self.world.decisions.approve(self.world.caller("alice"), challenge.id))
        self.messenger.sent.clear()
        self.follow()
        outcomes = [(device, notice.outcome) for _, notice, device, _ in self.messenger.sent]
        self.assertIn(("carol-device", "approved"), outcomes)
        self.assertIn(("alice-device", "approved"), outcomes)

    def test_gone(self) -> None:
        """A browser that gave its subscription up is forgotten, with an event."""
        self.messenger.answers = [DeliveryFailed("server returned 410", permanent=True, gone=True)] * 2
        self.create()
        left = [one.username for one in now_result(self.world.store.push_devices())]
        self.assertEqual(left, ["bob", "dora"])
        events = [json.loads(record.plain)["event"] for record in self.world.store.log.records]
        self.assertEqual(events.count("push_device_removed"), 2)
