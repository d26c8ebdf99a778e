"""Approval policies."""

import json
from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.core.policy import Policies, Requirement, parse_days

# a Wednesday
NOON = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)


def load(*policies: object) -> Policies:
    return Policies.parse(json.dumps({"policies": list(policies)}).encode())


def ask(
    policies: Policies, user: str = "alice", host: str = "web01", group: str = "", now: datetime = NOON
) -> Requirement:
    return policies.requirement(user, host, group, now)


class LoadingTests(SynchronousTestCase):
    def test_shapes(self) -> None:
        """The object and the bare list are the same; null is no policy."""
        for raw in (
            b'{"policies":[{"name":"default"}]}',
            b'[{"name":"default"}]',
            b'{"Policies":[{"NAME":"default"}]}',
        ):
            self.assertEqual(ask(Policies.parse(raw)).policy_name, "default")
        for raw in (b'{"policies":null}', b"[]", b"{}", b"null"):
            self.assertEqual(len(Policies.parse(raw)), 0)

    def test_fields(self) -> None:
        """All fields reach the requirement."""
        policies = load(
            {
                "name": "prod",
                "match_hosts": ["web*"],
                "require_admin": True,
                "min_approvals": 2,
                "auto_approve_grace": True,
                "allowed_hours": "09:00-17:00",
                "allowed_days": "Mon-Fri",
                "notify_channels": ["ops"],
                "require_fresh_oidc": "5m",
                "break_glass_bypass": True,
            }
        )
        self.assertEqual(
            ask(policies),
            Requirement(
                policy_name="prod",
                min_approvals=2,
                require_admin=True,
                auto_approve_grace=True,
                window_ok=True,
                window="09:00-17:00 Mon-Fri",
                require_fresh=timedelta(minutes=5),
                break_glass_bypass=True,
                notify_channels=("ops",),
            ),
        )

    def test_absent(self) -> None:
        """Absent fields permit, but grace sessions do not count; fewer than one approval is one."""
        expected = Requirement(policy_name="default", auto_approve_grace=False)
        self.assertEqual(ask(load({"name": "default"})), expected)
        self.assertEqual(ask(load({"name": "default", "min_approvals": 0, "require_fresh_oidc": "0s"})), expected)
        self.assertEqual(ask(load({"name": "default", "match_hosts": None, "allowed_hours": ""})), expected)

    def test_refused(self) -> None:
        """Whatever is not understood is an error that names the policy and the field."""
        for field, value in (
            ("allowed_hours", "24:00-06:00"),
            ("allowed_hours", "18:00-24:00"),
            ("allowed_hours", "9-17"),
            ("allowed_hours", "09:00"),
            ("allowed_hours", "09:60-10:00"),
            ("allowed_hours", "9abc:00-10:00"),
            ("allowed_hours", "+9:00-10:00"),
            ("allowed_hours", 9),
            ("allowed_days", "Mon-Fry"),
            ("allowed_days", "Monday"),
            ("allowed_days", "Mon,"),
            ("allowed_days", "mon-tue-wed"),
            ("require_fresh_oidc", "1d"),
            ("require_fresh_oidc", "-5m"),
            ("require_fresh_oidc", 300),
            ("match_hosts", "web*"),
            ("match_hosts", ["[web"]),
            ("match_users", [1]),
            ("match_host_groups", {}),
            ("require_admin", "yes"),
            ("min_approvals", True),
            ("min_approvals", 1.5),
            ("name", 1),
            ("allowed_hour", "09:00-17:00"),
            ("hosts", ["web*"]),
        ):
            e = self.assertRaises(ValueError, load, {"name": "x"}, {"name": "prod", field: value})
            self.assertIn("policy 2", str(e))
            self.assertIn(field, str(e))

    def test_midnight_hint(self) -> None:
        """24:00 is explained."""
        e = self.assertRaises(ValueError, load, {"name": "x", "allowed_hours": "18:00-24:00"})
        self.assertIn("00:00", str(e))

    def test_near_name(self) -> None:
        """A misspelled field is answered with the right one."""
        e = self.assertRaises(ValueError, load, {"name": "x", "allowed_hour": "1:00-2:00"})
        self.assertIn("allowed_hours", str(e))

    def test_not_a_file_of_policies(self) -> None:
        """A file of another shape is an error, not "no policies"."""
        for raw in (b"", b"{", b'"x"', b'{"policies":{}}', b'{"policy":[]}', b"[1]", b"\xff\xfe", b"[" * 100_000):
            self.assertRaises(ValueError, Policies.parse, raw)

    def test_nameless(self) -> None:
        """A policy without a name gets one, since decisions look again only at policies with a name."""
        self.assertEqual(ask(load({"match_users": ["*"]})).policy_name, "policy-1")


class MatchingTests(SynchronousTestCase):
    def test_none(self) -> None:
        """Without policies one approval is enough, and grace sessions count."""
        self.assertEqual(ask(Policies.empty()), Requirement())

    def test_first_match(self) -> None:
        """In the order of the file, the default last wherever it stands."""
        policies = load(
            {"name": "default", "match_hosts": ["nothing"]},
            {"name": "a", "match_hosts": ["web*"]},
            {"name": "b", "match_hosts": ["*"]},
        )
        self.assertEqual(ask(policies).policy_name, "a")
        self.assertEqual(ask(policies, host="db").policy_name, "b")
        self.assertEqual(ask(policies, host="a/b").policy_name, "default")

    def test_all_criteria(self) -> None:
        """Every criterion that is used must match; groups match exactly."""
        policies = load({"name": "p", "match_hosts": ["web*"], "match_users": ["al?ce"], "match_host_groups": ["prod"]})
        self.assertEqual(ask(policies, group="prod").policy_name, "p")
        self.assertEqual(ask(policies, group="prod2").policy_name, "")
        self.assertEqual(ask(policies, group="prod", user="bob").policy_name, "")
        self.assertEqual(ask(policies, group="prod", host="db").policy_name, "")

    def test_no_criteria(self) -> None:
        """A policy without criteria matches everything, as it is written."""
        required = ask(load({"name": "p", "require_admin": True, "match_hosts": []}))
        self.assertEqual((required.policy_name, required.require_admin), ("p", True))


class WindowTests(SynchronousTestCase):
    def open(self, now: datetime, hours: str = "", days: str = "") -> bool:
        return ask(load({"name": "default", "allowed_hours": hours, "allowed_days": days}), now=now).window_ok

    def test_hours(self) -> None:
        """The start is in, the end is out."""
        for hour, minute, expected in ((8, 59, False), (9, 0, True), (16, 59, True), (17, 0, False)):
            self.assertEqual(self.open(NOON.replace(hour=hour, minute=minute), "09:00-17:00"), expected)

    def test_over_midnight(self) -> None:
        """A start after the end passes midnight; 00:00 is the end of the day."""
        for hour, expected in ((21, False), (22, True), (0, True), (5, True), (6, False)):
            self.assertEqual(self.open(NOON.replace(hour=hour), "22:00-6:00"), expected)
        self.assertTrue(self.open(NOON.replace(hour=23), "18:00-00:00"))
        self.assertFalse(self.open(NOON.replace(hour=0), "18:00-00:00"))

    def test_equal_ends(self) -> None:
        """Equal ends leave no time at all."""
        self.assertFalse(self.open(NOON, "12:00-12:00"))

    def test_utc(self) -> None:
        """Whatever zone the instant is in, hours and days are UTC."""
        tokyo = datetime(2026, 3, 7, 1, 0, tzinfo=timezone(timedelta(hours=9)))  # Saturday there, Friday 16:00 in UTC
        self.assertTrue(self.open(tokyo, "15:00-17:00", "Fri"))

    def test_days_and_hours_apart(self) -> None:
        """Friday's night does not reach into Saturday, and Monday's early hours count as Monday."""
        self.assertFalse(self.open(datetime(2026, 3, 7, 2, 0, tzinfo=UTC), "22:00-06:00", "Mon-Fri"))
        self.assertTrue(self.open(datetime(2026, 3, 2, 2, 0, tzinfo=UTC), "22:00-06:00", "Mon-Fri"))

    def test_days(self) -> None:
        """Lists and ranges, in any case, over the end of the week."""
        for text, days in (
            ("Mon-Fri", {1, 2, 3, 4, 5}),
            ("Fri-Mon", {5, 6, 0, 1}),
            ("sat - SUN", {6, 0}),
            ("Mon,Wed", {1, 3}),
            ("Tue-Tue", {2}),
            ("Sun-Sat", set(range(7))),
        ):
            self.assertEqual(parse_days(text), days)

    @given(st.times(), st.times(), st.datetimes(timezones=st.just(UTC)))
    def test_complement(self, start: object, end: object, now: datetime) -> None:
        """A window and its reverse share out the day, unless both ends are the same."""
        a, b = f"{start:%H:%M}", f"{end:%H:%M}"
        if a != b:
            self.assertNotEqual(self.open(now, f"{a}-{b}"), self.open(now, f"{b}-{a}"))
