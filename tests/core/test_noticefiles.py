"""The notification files, messages in words, and who is told (spec/notifications-and-policy sections 1 to 3 and 5)."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.core import notices, routing
from identree.core.noticefiles import (
    checked_url,
    environment_name,
    parse_channels,
    parse_preferences,
    write_channels,
    write_preferences,
)
from identree.core.notices import Channel, Configuration, Notice, Preference, Quiet, Route
from identree.core.routing import fits, is_quiet, recipients

NIGHT = datetime(2026, 3, 1, 23, 30, tzinfo=UTC)
NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
OLD = {
    "channels": [
        {
            "name": "ops-slack",
            "backend": "slack",
            "url": "https://hooks.example/x",
            "token": "t0k",
            "command": "",
            "timeout": 20,
        }
    ],
    "routes": [{"channels": ["ops-slack"], "events": ["challenge_*"], "hosts": ["*.prod"], "users": []}],
}


def load(value: object, environment: dict[str, str] | None = None) -> Any:
    return parse_channels(json.dumps(value).encode(), environment or {})


class ChannelFileTests(SynchronousTestCase):
    def test_deployed(self) -> None:
        """A file of deployed versions means what it says."""
        file = load(OLD)
        [channel] = file.configuration.channels
        self.assertEqual(
            (channel.name, channel.backend, channel.token, channel.timeout),
            ("ops-slack", "slack", "t0k", timedelta(seconds=20)),
        )
        self.assertEqual(
            file.configuration.routes,
            (Route(channels=("ops-slack",), events=("challenge_*",), hosts=("*.prod",)),),
        )
        self.assertEqual(file.stripped, ("ops-slack",))

    def test_lenient(self) -> None:
        """Keys in any case, null for absent, unknown keys passed over, an unknown back end is a webhook."""
        file = load({"Channels": [{"NAME": "a", "Backend": "fax", "url": None, "x": 1}], "routes": None, "more": {}})
        self.assertEqual(file.configuration.channels[0].backend, "webhook")
        self.assertEqual(load({}).configuration, Configuration())
        self.assertEqual(parse_channels(None, {}).configuration, Configuration())

    def test_refused(self) -> None:
        """A wrong type anywhere refuses the whole file, and says where."""
        for change in (
            [],
            {"channels": {}},
            {"channels": ["x"]},
            {"channels": [{"name": 1}]},
            {"channels": [{"name": "a", "timeout": "20"}]},
            {"channels": [{"name": "a", "timeout": True}]},
            {"routes": [{"channels": "ops"}]},
            {"routes": [{"events": [1]}]},
            {"routes": [{"escalate_after": "soon"}]},
            {"channels": [{"name": "a", "quiet_hours": {"hours": "late"}}]},
            {"channels": [{"name": "a", "quiet_hours": {"hours": "22:00-07:00", "time_zone": "Nowhere/Else"}}]},
        ):
            self.assertRaises(ValueError, load, change)
        for raw in (b"", b"{", b"[" * 100_000, b" " * (5 << 20)):
            self.assertRaises(ValueError, parse_channels, raw, {})

    @settings(max_examples=200, deadline=None)
    @given(st.binary(max_size=50))
    def test_bytes(self, raw: bytes) -> None:
        """Any bytes are a file or a ValueError."""
        for parse in (lambda: parse_channels(raw, {}), lambda: parse_preferences(raw)):
            try:
                parse()
            except ValueError:
                continue

    def test_environment(self) -> None:
        """Secrets of the environment come before those of the file; empty ones do not count."""
        names = {environment_name("ops-slack", "token"): "env", environment_name("ops-slack", "secret"): "k"}
        self.assertEqual(sorted(names)[1], "IDENTREE_NOTIFY_CHANNEL_OPS_SLACK_TOKEN")
        [channel] = load(OLD, names).configuration.channels
        self.assertEqual((channel.token, channel.secret), ("env", "k"))
        [channel] = load(OLD, {environment_name("ops-slack", "token"): ""}).configuration.channels
        self.assertEqual(channel.token, "t0k")

    def test_colliding(self) -> None:
        """Names that lead to the same variable are told."""
        file = load({"channels": [{"name": "a-b"}, {"name": "a.b"}, {"name": "c"}]})
        self.assertEqual(file.colliding, ("IDENTREE_NOTIFY_CHANNEL_A_B_TOKEN",))

    def test_written(self) -> None:
        """What is written has no secrets, keeps what we do not know, and means the same otherwise."""
        value = {**OLD, "comment": "x"}
        value["channels"] = [{**OLD["channels"][0], "owner": "me", "quiet_hours": {"hours": "22:00-07:00"}}]  # type: ignore[dict-item]
        before = load(value)
        written = write_channels(before, before.configuration)
        self.assertNotIn(b"t0k", written)
        document = json.loads(written)
        self.assertEqual((document["comment"], document["channels"][0]["owner"]), ("x", "me"))
        self.assertTrue(written.startswith(b'{\n  "channels"') and written.endswith(b"}\n"))
        after = parse_channels(written, {"IDENTREE_NOTIFY_CHANNEL_OPS_SLACK_TOKEN": "t0k"})
        self.assertEqual(after.configuration, before.configuration)

    def test_preferences(self) -> None:
        """They come back as they were."""
        kept = (
            Preference(username="carol", channels=("a",), events=("*",), hosts=("x",), enabled=True),
            Preference(username="dora", quiet=Quiet(hours="22:00-07:00", days="Mon-Fri", despite=("x",))),
        )
        self.assertEqual(parse_preferences(write_preferences(kept)), kept)
        self.assertRaises(ValueError, parse_preferences, b'{"username": "a"}')

    def test_addresses(self) -> None:
        """What a form sends as an address is checked by kind."""
        for backend, url, good in (
            ("ntfy", "https://ntfy.sh/x", True),
            ("ntfy", "http://10.0.0.1:8080/x", True),
            ("ntfy", "", False),
            ("custom", "", True),
            ("ntfy", "ftp://x/y", False),
            ("ntfy", "https://user:pw@x/y", False),
            ("ntfy", "https://x/ y", False),
            ("ntfy", "https://[::1", False),
            ("ntfy", "https://x:99999/", False),
            ("email", "smtp://bot@mail.example:587", True),
            ("email", "smtp://bot:pw@mail.example", False),
            ("email", "https://mail.example", False),
            ("webhook", "javascript:alert(1)", False),
        ):
            self.assertEqual(not checked_url(backend, url), good, url)


class RoutingTests(SynchronousTestCase):
    def told(self, configuration: Configuration, *preferences: Preference, **more: Any) -> Any:
        values: dict[str, Any] = {
            "policy": (),
            "event": "challenge_created",
            "hostname": "web01",
            "username": "alice",
            "now": NOON,
            **more,
        }
        policy = values.pop("policy")
        found, unknown = recipients(configuration, preferences, policy, **values)
        return [(one.channel, one.after, one.quiet) for one in found], unknown

    def channels(self, *names: str, **more: Any) -> tuple[Channel, ...]:
        return tuple(Channel(name=name, backend="webhook", **more) for name in names)

    def test_lists(self) -> None:
        """An empty list and a lone star fit everything; patterns do not cross slashes; malformed ones fit nothing."""
        self.assertTrue(fits((), "a/b") and fits(("*",), "a/b") and fits(("x", "*"), ""))
        self.assertFalse(fits(("**",), "a/b") or fits(("prod-*",), "") or fits(("[a",), "[a"))
        self.assertTrue(fits(("[a", "web*"), "web01"))

    def test_union(self) -> None:
        """All routes that fit, preferences and the policy add up, each channel once."""
        configuration = Configuration(
            channels=self.channels("a", "b", "c", "d", "e"),
            routes=(
                Route(channels=("a", "b"), events=("challenge_*",)),
                Route(channels=("b", "c"), hosts=("web*",), users=("alice",)),
                Route(channels=("e",), users=("bob",)),
            ),
        )
        preference = Preference(username="x", channels=("c", "d"), events=("*",), enabled=True)
        off = Preference(username="y", channels=("e",), events=("*",))
        told, unknown = self.told(configuration, preference, off, policy=("a", "gone"))
        self.assertEqual([name for name, *_ in told], ["a", "b", "c", "d"])
        self.assertEqual(unknown, ("gone",))

    def test_no_hostname(self) -> None:
        """An event without a host fits the empty list and the star, not a pattern."""
        for hosts, wanted in (((), 1), (("*",), 1), (("prod-*",), 0)):
            configuration = Configuration(channels=self.channels("a"), routes=(Route(channels=("a",), hosts=hosts),))
            self.assertEqual(len(self.told(configuration, hostname="")[0]), wanted)

    def test_escalation(self) -> None:
        """Later, once, and not to who is told at once anyway."""
        configuration = Configuration(
            channels=self.channels("a", "b"),
            routes=(
                Route(channels=("a",), escalate_after=timedelta(seconds=90), escalate_to=("a", "b")),
                Route(channels=("a",), escalate_after=timedelta(seconds=60), escalate_to=("b",)),
            ),
        )
        self.assertEqual(self.told(configuration)[0], [("a", None, False), ("b", timedelta(seconds=60), False)])

    def test_quiet(self) -> None:
        """A quiet channel is quiet; one that only quiet preferences name is too; one that anybody wants is not."""
        quiet = Quiet(hours="22:00-07:00")
        route = Configuration(channels=self.channels("a", quiet=quiet), routes=(Route(channels=("a",)),))
        self.assertEqual(self.told(route, now=NIGHT)[0], [("a", None, True)])
        self.assertEqual(self.told(route, now=NOON)[0], [("a", None, False)])
        self.assertEqual(self.told(route, now=NIGHT, event="break_glass_used")[0], [("a", None, False)])
        sleeper = Preference(username="x", channels=("a",), enabled=True, quiet=quiet)
        waker = Preference(username="y", channels=("a",), enabled=True)
        plain = Configuration(channels=self.channels("a"))
        self.assertEqual(self.told(plain, sleeper, now=NIGHT)[0], [("a", None, True)])
        self.assertEqual(self.told(plain, sleeper, waker, now=NIGHT)[0], [("a", None, False)])

    def test_quiet_zone(self) -> None:
        """By the clock of the zone, on the days that are named."""
        quiet = Quiet(hours="22:00-07:00", time_zone="Asia/Tokyo", days="Mon", despite=())
        # half past eleven at night in UTC is Monday morning in Tokyo, and not quiet; three hours before it is Sunday...
        self.assertFalse(is_quiet(quiet, "x", NIGHT))
        # ... and at 15:30 UTC it is half past midnight on Monday
        self.assertTrue(is_quiet(quiet, "x", NIGHT.replace(hour=15)))

    def test_same_name(self) -> None:
        """Of two channels with one name the last counts."""
        two = (Channel(name="a", backend="ntfy"), Channel(name="a", backend="slack"))
        found = routing.by_name(two, "a")
        assert found is not None
        self.assertEqual(found.backend, "slack")

    def test_dangling(self) -> None:
        """Names that belong to no channel."""
        configuration = Configuration(channels=self.channels("a"), routes=(Route(channels=("a", "x")),))
        self.assertEqual(routing.dangling(configuration, (), ("y", "webpush")), ("x", "y"))


class WordingTests(SynchronousTestCase):
    def test_titles(self) -> None:
        """Every event has its own words; one that is unheard of gets its name."""
        self.assertEqual(notices.title_of("challenge_created"), "Sudo approval needed")
        self.assertEqual(notices.title_of("config_changed"), "Configuration changed")
        self.assertEqual(notices.title_of("something_new"), "Something new")

    def test_lines(self) -> None:
        """No empty value; what asks has a button, what does not has none."""
        waiting = Notice(
            event="challenge_created", username="alice", hostname="web01", onetap_url="https://x/y", expires_in=60
        )
        said = notices.wording(waiting)
        self.assertEqual(said.lines, (("User", "alice"), ("Host", "web01"), ("Expires", "in 60 s")))
        self.assertEqual((said.button, said.tone), ("Approve", "ask"))
        over = notices.wording(Notice(event="challenge_created", username="alice"))
        self.assertEqual((over.button, over.url, over.tone), ("", "", "calm"))

    @settings(max_examples=200, deadline=None)
    @given(st.text(max_size=2000), st.text(max_size=2000))
    def test_clean(self, username: str, reason: str) -> None:
        """Whatever people write: single lines of bounded length, without characters that hide or turn text."""
        for label, value in notices.wording(Notice(event="user_removed", username=username, reason=reason)).lines:
            self.assertTrue(label and value and len(value) <= 500)
            self.assertFalse(set(value) & set("\n\r\t\x00\x1b\u202e\u200b\u2066\ufeff"))

    @settings(max_examples=100, deadline=None)
    @given(st.text(max_size=50), st.integers(0, 100))
    def test_stored(self, text: str, number: int) -> None:
        """A notice comes back as it was; members of a newer version are passed over."""
        notice = Notice(event="x", username=text, reason=text, approvals=number, key="k")
        self.assertEqual(notices.read_notice(notices.notice_json(notice)), notice)
        more = json.dumps({**json.loads(notices.notice_json(notice)), "newer": 1, "actor": 5})
        self.assertEqual(notices.read_notice(more), notice)

    def test_not_stored(self) -> None:
        """What is no notice is a ValueError."""
        for text in ("", "[]", "{}", '{"event":1}'):
            self.assertRaises(ValueError, notices.read_notice, text)
