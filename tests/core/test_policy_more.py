"""What policies say beyond those of deployed versions: zones, commands, groups, order, explanations, documents."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.core.explanation import Clause, Explanation
from identree.core.policy import KEYS, Policies, Requirement
from identree.core.policywarnings import warnings

NOON = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "Pacific/Apia")
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


def load(*policies: dict[str, Any]) -> Policies:
    return Policies.parse(json.dumps({"policies": list(policies)}).encode())


def ask(policies: Policies, *, command: str = "", host: str = "web01", user: str = "alice", **more: Any) -> Requirement:
    values: dict[str, Any] = {"group": "", "now": NOON, **more}
    return policies.requirement(user, host, values["group"], values["now"], command)


class CommandTests(SynchronousTestCase):
    def test_fits(self) -> None:
        """Patterns of commands know no slash: a star is any run of characters."""
        policies = load({"name": "p", "match_commands": ["/usr/bin/systemctl *", "ls"], "unknown_command": "no_match"})
        self.assertEqual(ask(policies, command="/usr/bin/systemctl restart a/b").policy_name, "p")
        self.assertEqual(ask(policies, command="ls").policy_name, "p")
        self.assertEqual(ask(policies, command="ls /").policy_name, "")

    def test_unknown(self) -> None:
        """Whether it applies where the host told no command is what the policy says."""
        for word, name in (("match", "p"), ("no_match", "")):
            policies = load({"name": "p", "match_commands": ["ls"], "unknown_command": word})
            self.assertEqual(ask(policies).policy_name, name)

    def test_unsaid(self) -> None:
        """Nobody may leave open what happens to unknown commands."""
        e = self.assertRaises(ValueError, load, {"name": "p", "match_commands": ["ls"]})
        self.assertIn("unknown_command", str(e))

    def test_with_hosts(self) -> None:
        """A command is a criterion beside the others."""
        policies = load({"name": "p", "match_commands": ["*"], "unknown_command": "match", "match_hosts": ["db*"]})
        self.assertEqual(ask(policies, command="ls").policy_name, "")
        self.assertEqual(ask(policies, command="ls", host="db1").policy_name, "p")


class OrderTests(SynchronousTestCase):
    def test_priority(self) -> None:
        """The higher priority is looked at first, equal ones in the order of the file."""
        policies = load({"name": "a"}, {"name": "b", "priority": 5}, {"name": "c", "priority": 5})
        self.assertEqual([policy.name for policy in policies], ["b", "c", "a"])
        self.assertEqual([policy.name for policy in policies.in_written_order], ["a", "b", "c"])
        self.assertEqual(ask(policies).policy_name, "b")

    def test_default_is_last(self) -> None:
        """No priority makes the default come before one that matches."""
        policies = load({"name": "default", "priority": 1000, "require_admin": True}, {"name": "a"})
        self.assertEqual(ask(policies).policy_name, "a")

    def test_same_name(self) -> None:
        """Files of deployed versions may have one name twice: the first one counts for the default."""
        policies = load({"name": "default", "min_approvals": 2}, {"name": "default", "min_approvals": 3})
        self.assertEqual(ask(policies).min_approvals, 2)


class FieldTests(SynchronousTestCase):
    def test_all(self) -> None:
        """Everything that a policy asks for is in the requirement."""
        required = ask(
            load(
                {
                    "name": "p",
                    "forbid_self_approval": True,
                    "approver_groups": ["dba", "ops"],
                    "max_grace": "15m",
                    "require_fresh_oidc": "5m",
                    "min_approvals": 2,
                }
            )
        )
        self.assertEqual(
            required,
            Requirement(
                policy_name="p",
                min_approvals=2,
                auto_approve_grace=False,
                require_fresh=timedelta(minutes=5),
                forbid_self_approval=True,
                approver_groups=("dba", "ops"),
                max_grace=timedelta(minutes=15),
            ),
        )

    def test_no_grace_at_all(self) -> None:
        """``0s`` is a limit, unlike nothing."""
        self.assertEqual(ask(load({"name": "p", "max_grace": "0s"})).max_grace, timedelta(0))
        self.assertIsNone(ask(load({"name": "p", "max_grace": ""})).max_grace)

    def test_refused(self) -> None:
        """What cannot be understood is refused, with the field's name."""
        for field, value in (
            ("time_zone", "Europe/Berln"),
            ("time_zone", "../../etc/passwd"),
            ("time_zone", "/etc/localtime"),
            ("time_zone", 1),
            ("unknown_command", "yes"),
            ("match_commands", ["[a"]),
            ("max_grace", "-5m"),
            ("max_grace", "9000h"),
            ("max_grace", "5 minutes"),
            ("priority", 1001),
            ("priority", "high"),
            ("approver_groups", [""]),
            ("approver_groups", "dba"),
            ("description", "x" * 501),
            ("description", "a\nb"),
            ("name", "n" * 201),
            ("min_approvals", 2**40),
            ("forbid_self_approval", 1),
        ):
            e = self.assertRaises(ValueError, load, {"name": "x", field: value})
            self.assertIn(field, str(e))
            self.assertTrue(len(str(e)) < 400, str(e))

    def test_groups_of_all(self) -> None:
        """The set knows all groups that anybody names."""
        policies = load({"name": "a", "approver_groups": ["x", "y"]}, {"name": "b", "approver_groups": ["y"]})
        self.assertEqual(policies.approver_groups, frozenset({"x", "y"}))


class ExplanationTests(SynchronousTestCase):
    def test_because(self) -> None:
        """It says which item of each criterion fits, and what is asked for."""
        policies = load(
            {
                "name": "prod",
                "match_hosts": ["db*", "web*"],
                "match_host_groups": ["a", "b"],
                "match_commands": ["ls *"],
                "unknown_command": "no_match",
                "require_admin": True,
                "allowed_hours": "13:00-14:00",
                "time_zone": "Europe/Berlin",
                "break_glass_bypass": True,
            }
        ).with_version(7)
        self.assertEqual(
            ask(policies, command="ls -l", group="b").explanation,
            Explanation(
                policy="prod",
                version=7,
                because=(Clause("host_group", "b"), Clause("host", "web*"), Clause("command", "ls *")),
                asks=(
                    Clause("approvals", "1"),
                    Clause("admin"),
                    # noon in UTC is two in the afternoon in Berlin
                    Clause("window_closed", "13:00-14:00 Europe/Berlin"),
                    Clause("no_grace"),
                    Clause("override"),
                ),
            ),
        )

    def test_without_policy(self) -> None:
        """Also that no policy applies is an explanation."""
        self.assertEqual(ask(Policies.empty()).explanation.because, (Clause("none"),))
        self.assertEqual(ask(load({"name": "default"})).explanation.because, (Clause("default"),))
        self.assertEqual(ask(load({"name": "p"})).explanation.because, (Clause("everything"),))

    def test_stored(self) -> None:
        """It comes back as it was; what cannot be read explains nothing."""
        explanation = ask(load({"name": 'a "b"', "match_users": ["al*"]})).explanation
        self.assertEqual(Explanation.from_json(explanation.to_json()), explanation)
        for text in ("", "{", "[]", "1", '{"because":[1]}', '{"version":"x"}', "[" * 100_000):
            self.assertEqual(Explanation.from_json(text), Explanation())


class WindowTests(SynchronousTestCase):
    def open(self, at: datetime, zone: str, hours: str = "", days: str = "") -> bool:
        policy = {"name": "default", "allowed_hours": hours, "allowed_days": days, "time_zone": zone}
        return ask(load(policy), now=at).window_ok

    def test_spring(self) -> None:
        """On the day without an hour from two to three, the window goes by the clock on the wall."""
        before, after = datetime(2026, 3, 29, 0, 59, tzinfo=UTC), datetime(2026, 3, 29, 1, 0, tzinfo=UTC)
        self.assertTrue(self.open(before, "Europe/Berlin", "01:00-02:00"))
        self.assertFalse(self.open(after, "Europe/Berlin", "01:00-02:00"))
        self.assertFalse(self.open(after, "Europe/Berlin", "02:00-03:00"))
        self.assertTrue(self.open(after, "Europe/Berlin", "03:00-04:00"))

    def test_autumn(self) -> None:
        """The hour that comes twice counts both times."""
        for minute in (0, 60):
            at = datetime(2026, 10, 25, 0, 30, tzinfo=UTC) + timedelta(minutes=minute)
            self.assertTrue(self.open(at, "Europe/Berlin", "02:00-03:00"))

    def test_day_of_the_zone(self) -> None:
        """It is Monday where the policy is, whatever it is in UTC."""
        sunday_evening = datetime(2026, 6, 28, 22, 30, tzinfo=UTC)
        self.assertTrue(self.open(sunday_evening, "Europe/Berlin", days="Mon"))
        self.assertFalse(self.open(sunday_evening, "UTC", days="Mon"))

    @settings(max_examples=300, deadline=None)
    @given(
        st.sampled_from(ZONES),
        st.integers(0, 1439),
        st.integers(0, 1439),
        st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1)),
        st.sets(st.sampled_from(DAYS), min_size=1),
    )
    def test_any_time(self, zone: str, start: int, end: int, naive: datetime, days: set[str]) -> None:
        """Over all changes of clocks and midnights: open is who reads a minute within on the wall, on such a day."""
        at = naive.replace(tzinfo=UTC)
        wall = at.astimezone(ZoneInfo(zone))
        minute = wall.hour * 60 + wall.minute
        minutes = range(start, end) if start <= end else [*range(start, 1440), *range(end)]
        wanted = minute in minutes and wall.strftime("%a").lower() in days
        hours = f"{start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}"
        self.assertEqual(self.open(at, zone, hours, ",".join(sorted(days))), wanted)


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "match_hosts": st.lists(st.sampled_from(["*", "web*", "db01", "[a-d]*", "w?b01"]), max_size=3),
    "match_users": st.lists(st.sampled_from(["*", "alice", "b*"]), max_size=2),
    "match_host_groups": st.lists(st.sampled_from(["prod", "test"]), max_size=2),
    "require_admin": st.booleans(),
    "min_approvals": st.integers(-1, 4),
    "auto_approve_grace": st.booleans(),
    "allowed_hours": st.sampled_from(["", "09:00-17:00", "22:00-6:00"]),
    "allowed_days": st.sampled_from(["", "Mon-Fri", "sat,sun"]),
    "notify_channels": st.lists(st.sampled_from(["ops", "mail"]), max_size=2),
    "require_fresh_oidc": st.sampled_from(["", "0", "5m", "1h30m"]),
    "break_glass_bypass": st.booleans(),
    "time_zone": st.sampled_from(ZONES),
    "forbid_self_approval": st.booleans(),
    "approver_groups": st.lists(st.sampled_from(["dba", "ops"]), max_size=2),
    "max_grace": st.sampled_from(["", "0s", "10m"]),
    "priority": st.integers(-2, 2),
    "description": st.sampled_from(["", "why"]),
}
POLICY = st.fixed_dictionaries({"name": st.sampled_from(["default", "a", "b", "c", "d"])}, optional=FIELDS)
CONTEXT = st.tuples(
    st.sampled_from(["alice", "bob", "carol"]),
    st.sampled_from(["web01", "db01", "zzz", ""]),
    st.sampled_from(["", "prod", "test"]),
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1)).map(lambda at: at.replace(tzinfo=UTC)),
)
Context = tuple[str, str, str, datetime]


class PropertyTests(SynchronousTestCase):
    @settings(max_examples=200, deadline=None)
    @given(st.lists(POLICY, max_size=6), CONTEXT)
    def test_document(self, values: list[dict[str, Any]], context: Context) -> None:
        """What was loaded and is written means the same when it is loaded again."""
        policies = load(*values)
        again = Policies.parse(policies.to_json().encode())
        self.assertEqual(list(again), list(policies))
        self.assertEqual(again.requirement(*context), policies.requirement(*context))
        self.assertEqual(again.fields(), policies.fields())
        for fields in policies.fields():
            self.assertEqual([key for key in KEYS if key in fields], list(fields))
            self.assertTrue({"name", "require_admin", "min_approvals", "auto_approve_grace"} <= set(fields))

    @settings(max_examples=200, deadline=None)
    @given(st.lists(POLICY, max_size=5), POLICY, st.integers(0, 5), CONTEXT)
    def test_adding(self, values: list[dict[str, Any]], new: dict[str, Any], at: int, context: Context) -> None:
        """A policy that is added, wherever, changes nothing for whom it does not match."""
        before = load(*values)
        added = load(*values[:at], new, *values[at:])
        policy = load(new).in_written_order[0]
        if policy.name != "default" and not policy.matches(*context[:3]):
            self.assertEqual(added.requirement(*context), before.requirement(*context))

    @settings(max_examples=300, deadline=None)
    @given(st.binary(max_size=60))
    def test_bytes(self, raw: bytes) -> None:
        """Bytes that are no policies raise ValueError, nothing else, and never mean "no restriction"."""
        try:
            policies = Policies.parse(raw)
        except ValueError:
            return
        self.assertIn(raw.strip().lower()[:1], (b"[", b"{", b"n"))
        self.assertEqual(len(policies), 0)

    @settings(max_examples=300, deadline=None)
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from([*KEYS, "policies", "x"]) | st.text(max_size=3), inner, max_size=4)
            ),
            max_leaves=12,
        )
    )
    def test_json(self, value: Any) -> None:
        """Any JSON is a set of policies or a ValueError with a text for people."""
        try:
            Policies.parse(json.dumps(value).encode())
        except ValueError as e:
            self.assertIn("approval polic", str(e))


class WarningTests(SynchronousTestCase):
    def warn(self, *policies: dict[str, Any], **known: Any) -> list[tuple[str, str]]:
        return [(warning.policy, warning.other) for warning in warnings(load(*policies), **known)]

    def test_none(self) -> None:
        """Policies that mean what they say have none."""
        self.assertEqual(self.warn({"name": "a", "match_hosts": ["web*"]}, {"name": "b", "match_hosts": ["db*"]}), [])

    def test_never_applies(self) -> None:
        """Whatever it fits, an earlier one fits already."""
        for earlier, later in (
            ({}, {"match_hosts": ["db*"]}),
            ({"match_hosts": ["*"]}, {"match_hosts": ["db*"], "match_users": ["alice"]}),
            ({"match_hosts": ["db*", "web*"]}, {"match_hosts": ["web01"]}),
            ({"match_host_groups": ["a", "b"]}, {"match_host_groups": ["a"]}),
        ):
            self.assertEqual(self.warn({"name": "a", **earlier}, {"name": "b", **later}), [("b", "a")])
            self.assertEqual(self.warn({"name": "a", **earlier}, {"name": "b", "priority": 1, **later}), [])

    def test_equal(self) -> None:
        """Of two that fit the same, the second never applies."""
        self.assertEqual(self.warn({"name": "a", "match_users": ["*"]}, {"name": "b"}), [("b", "a")])

    def test_not_certain(self) -> None:
        """What may still apply is not warned about."""
        for earlier, later in (
            ({"match_hosts": ["db*"]}, {"match_hosts": ["*"]}),
            ({"match_host_groups": ["a"]}, {}),
            ({"match_commands": ["*"], "unknown_command": "no_match"}, {}),
            (
                {"match_commands": ["*"], "unknown_command": "no_match"},
                {"match_commands": ["ls"], "unknown_command": "match"},
            ),
        ):
            self.assertEqual(self.warn({"name": "a", **earlier}, {"name": "b", **later}), [])

    def test_exception(self) -> None:
        """An exception to a stricter policy is said, where nobody has given it a priority of its own."""
        narrow = {"name": "a", "match_hosts": ["web01"]}
        broad = {"name": "b", "match_hosts": ["web*"], "require_admin": True}
        self.assertEqual(self.warn(narrow, broad), [("a", "b")])
        self.assertEqual(self.warn({**narrow, "priority": 1}, broad), [])

    def test_alone(self) -> None:
        """What is odd about one policy by itself."""
        for policy in (
            {"name": "default", "match_hosts": ["web*"]},
            {"name": "a", "allowed_hours": "09:00-09:00"},
            {"name": "a", "max_grace": "0s", "auto_approve_grace": True},
            {"name": "a", "require_admin": True, "approver_groups": ["dba"]},
        ):
            self.assertEqual(self.warn(policy), [(policy["name"], "")])
        self.assertEqual(self.warn({"name": "a"}, {"name": "a"})[0], ("a", ""))

    def test_unknown_names(self) -> None:
        """Channels and groups that are nowhere are said, where it is known which ones there are."""
        policy = {"name": "a", "notify_channels": ["ops", "gone"], "match_host_groups": ["prod", "lost"]}
        self.assertEqual(self.warn(policy), [])
        texts = [one.text for one in warnings(load(policy), channels=["ops"], host_groups=["prod"])]
        self.assertEqual(len(texts), 2)
        self.assertIn("gone", texts[0])
        self.assertIn("lost", texts[1])
