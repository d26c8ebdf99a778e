"""View models: what the pages say, from values."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.app.people import Caller
from identree.app.rules import BUILT_IN_JUSTIFICATIONS
from identree.core.challenge import Approval, Challenge, GraceSession, HistoryEntry, HostContext, Status
from identree.web import views
from identree.web.render import templates_directory
from identree.web.translations import Catalogues
from identree.web.views import Reading

NOW = datetime(2026, 3, 4, 9, 30, tzinfo=UTC)
ENGLISH = Catalogues(templates_directory() / "locale")["en"]
READING = Reading(language=ENGLISH, zone=UTC, now=NOW)
CHALLENGE = Challenge(
    id="a" * 32,
    user_code="ABCDEF-123456",
    username="alice",
    hostname="web-01",
    reason="",
    created_at=NOW - timedelta(seconds=28),
    expires_at=NOW + timedelta(seconds=92),
    remote_addr="192.0.2.1",
)


def person(username: str, role: str = "user") -> Caller:
    return Caller(username=username, role=role, nonce="0" * 32, issued_at=NOW, started_at=NOW)


def shown(challenge: Challenge, caller: Caller | None = None, *, required: bool = False) -> views.RequestView:
    return views.request_view(
        challenge, caller or person("alice"), READING, reason_required=required, choices=("Deployment",)
    )


class RequestTests(SynchronousTestCase):
    def test_code_groups(self) -> None:
        """The code is shown in groups that make the code again."""
        self.assertEqual(shown(CHALLENGE).code_groups, ("ABC", "DEF", "-", "123", "456"))

    @given(st.text(max_size=20))
    def test_code_groups_join(self, code: str) -> None:
        """Whatever the text, nothing of it is lost."""
        self.assertEqual("".join(views.code_groups(code)), code)

    def test_remaining(self) -> None:
        """Remaining time in minutes and seconds, out of the whole life."""
        view = shown(CHALLENGE)
        self.assertEqual((view.remaining, view.remaining_seconds, view.whole_seconds), ("1:32", 92, 120))

    def test_urgent(self) -> None:
        """The last half minute is urgent."""
        self.assertTrue(shown(replace(CHALLENGE, expires_at=NOW + timedelta(seconds=30))).urgent)

    def test_own(self) -> None:
        """One knows one's own request, and approves it."""
        view = shown(CHALLENGE)
        self.assertTrue(view.own and view.can_approve)

    def test_admin_required(self) -> None:
        """Where an administrator is required, nobody else is offered Approve, and is told why."""
        view = shown(replace(CHALLENGE, require_admin=True))
        self.assertEqual(view.why_not, "Only an administrator can approve this. You can reject it.")

    def test_admin_may(self) -> None:
        """An administrator is."""
        self.assertTrue(shown(replace(CHALLENGE, require_admin=True), person("carol", "admin")).can_approve)

    def test_approved_already(self) -> None:
        """One person counts once, and is told how many are missing."""
        counted = replace(CHALLENGE, required_approvals=3, approvals=(Approval(approver="alice", at=NOW),))
        self.assertEqual(shown(counted).why_not, "You approved this. 2 more people have to.")

    def test_progress(self) -> None:
        """Where several must agree, the count and the names are shown."""
        counted = replace(CHALLENGE, required_approvals=2, approvals=(Approval(approver="bob", at=NOW),))
        view = shown(counted)
        self.assertEqual((view.progress, view.approvers), ("1 of 2 approvals", ("bob",)))

    def test_version(self) -> None:
        """A page shows a request anew when an approval was added."""
        counted = replace(CHALLENGE, required_approvals=2, approvals=(Approval(approver="bob", at=NOW),))
        self.assertNotEqual(shown(CHALLENGE).version, shown(counted).version)

    def test_reason_asked(self) -> None:
        """A reason is asked for when there is none, and demanded where the rules demand it."""
        given_one = replace(CHALLENGE, reason="because")
        self.assertEqual(
            [
                shown(CHALLENGE).reason_asked,
                shown(CHALLENGE, required=True).reason_asked,
                shown(given_one, required=True).reason_asked,
            ],
            ["optional", "required", "no"],
        )

    def test_built_in_choices(self) -> None:
        """The built-in reasons are offered in the reader's language; configured ones as they are written."""
        self.assertEqual(views.JUSTIFICATIONS, BUILT_IN_JUSTIFICATIONS)
        german = replace(READING, language=Catalogues(templates_directory() / "locale")["de"])
        view = views.request_view(
            CHALLENGE, person("alice"), german, reason_required=False, choices=("Deployment", "100 % sure")
        )
        self.assertEqual(view.choices, ("Auslieferung", "100 % sure"))

    def test_told(self) -> None:
        """Only what the host told is listed."""
        context = HostContext(command="ls", tty="/dev/pts/0")
        self.assertEqual(shown(replace(CHALLENGE, context=context)).told, (("Terminal", "/dev/pts/0"),))

    @given(st.text(max_size=60))
    def test_command_pieces(self, command: str) -> None:
        """The command is cut for line breaks only; every character of it is shown."""
        view = shown(replace(CHALLENGE, context=HostContext(command=command)))
        self.assertEqual("".join(view.command_pieces), command)

    def test_unnamed_host(self) -> None:
        """A host without a name has a word."""
        self.assertEqual(shown(replace(CHALLENGE, hostname="")).host, "an unnamed host")


class OfferTests(SynchronousTestCase):
    def offered(self, left: timedelta, grace: timedelta) -> list[tuple[str, str]]:
        session = GraceSession(username="alice", hostname="web-01", expires_at=NOW + left)
        return [(offer.duration, offer.label) for offer in views.offers(session, grace, READING)]

    def test_menu(self) -> None:
        """What lengthens the session and fits into the grace period, the whole period last."""
        self.assertEqual(
            self.offered(timedelta(minutes=90), timedelta(hours=8)),
            [("7200", "2 h"), ("14400", "4 h"), ("max", "8 h")],
        )

    def test_full(self) -> None:
        """A session that is as long as it may be has no offers."""
        self.assertEqual(self.offered(timedelta(hours=8), timedelta(hours=8)), [])

    def test_short_period(self) -> None:
        """A grace period shorter than an hour is the only offer."""
        self.assertEqual(self.offered(timedelta(minutes=5), timedelta(minutes=30)), [("max", "30 min")])

    def test_grace_off(self) -> None:
        """Nothing is offered that the server would refuse."""
        self.assertEqual(self.offered(timedelta(minutes=5), timedelta(0)), [])

    def test_longest(self) -> None:
        """The server extends by a week at most."""
        self.assertEqual(self.offered(timedelta(days=1), timedelta(days=30))[-1], ("max", "7 d"))

    @given(st.integers(0, 10**6), st.integers(0, 10**6))
    def test_never_shortens(self, left: int, grace: int) -> None:
        """Every offer ends later than the session does, and not after the grace period."""
        session = GraceSession(username="alice", hostname="web-01", expires_at=NOW + timedelta(seconds=left))
        for offer in views.offers(session, timedelta(seconds=grace), READING):
            end = datetime.strptime(offer.until.iso, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
            self.assertGreater(end, session.expires_at)
            self.assertLessEqual(end, NOW + timedelta(seconds=grace))


class DashboardTests(SynchronousTestCase):
    def page(self, caller: Caller, *pending: Challenge, required: bool = False) -> views.Dashboard:
        return views.dashboard(
            caller,
            READING,
            pending=pending,
            sessions=[
                GraceSession(username=name, hostname="web-01", expires_at=NOW + timedelta(hours=1))
                for name in ("alice", "bob")
            ],
            history=[],
            grace_period=timedelta(hours=8),
            reason_required=required,
            choices=(),
            highlighted="web-01",
        )

    def test_own_sessions(self) -> None:
        """An administrator sees only own sudo sessions here, though all are known."""
        self.assertEqual(len(self.page(person("alice", "admin")).sessions), 1)

    def test_highlighted(self) -> None:
        """The session that was just opened stands out."""
        self.assertTrue(self.page(person("alice")).sessions[0].highlighted)

    def test_counts_are_own(self) -> None:
        """The buttons for all count what they act on: the caller's own requests."""
        view = self.page(person("alice", "admin"), CHALLENGE, replace(CHALLENGE, username="bob"))
        self.assertEqual((view.approvable, view.rejectable, view.all_own), (1, 1, False))

    def test_counts_what_would_be_approved(self) -> None:
        """Approve-all leaves out what the server would refuse: those that need an administrator or a reason."""
        needs_admin = replace(CHALLENGE, require_admin=True)
        self.assertEqual(self.page(person("alice"), CHALLENGE, needs_admin).approvable, 1)
        self.assertEqual(self.page(person("alice"), CHALLENGE, required=True).approvable, 0)

    def test_expired_is_not_shown(self) -> None:
        """A request that is over at the instant of rendering is not offered."""
        self.assertEqual(self.page(person("alice"), replace(CHALLENGE, expires_at=NOW)).requests, ())


class StateTests(SynchronousTestCase):
    def state(self, **changes: object) -> tuple[str, str]:
        view = views.state_view(replace(CHALLENGE, **changes), person("alice"), READING)  # type: ignore[arg-type]
        return view.kind, view.title

    def test_by_another(self) -> None:
        """Who decided is named when it was somebody else."""
        self.assertEqual(self.state(status=Status.APPROVED, approved_by="carol"), ("approved", "Approved by carol"))
        self.assertEqual(self.state(status=Status.DENIED, denied_by="carol"), ("denied", "Rejected by carol"))

    def test_by_oneself(self) -> None:
        """One's own decision needs no name."""
        self.assertEqual(self.state(status=Status.APPROVED, approved_by="alice"), ("approved", "Approved"))

    def test_cancelled(self) -> None:
        """Giving up at the terminal is not a rejection."""
        self.assertEqual(self.state(status=Status.CANCELLED)[0], "cancelled")

    def test_expired_before_the_sweep(self) -> None:
        """Time that ran out is said so, also before the server's own sweep has noticed."""
        self.assertEqual(self.state(expires_at=NOW)[0], "expired")


class ActivityTests(SynchronousTestCase):
    def test_actor(self) -> None:
        """Somebody else is named, oneself is not."""
        lines = [
            views.activity_view(
                HistoryEntry(at=NOW, username="alice", action="approved", actor=actor), person("alice"), READING
            )
            for actor in ("bob", "alice", "")
        ]
        self.assertEqual([line.actor for line in lines], ["bob", "", ""])

    def test_unknown_action(self) -> None:
        """An action from a newer server has words, not its identifier."""
        line = views.activity_view(
            HistoryEntry(at=NOW, username="alice", action="teleported"), person("alice"), READING
        )
        self.assertEqual(line.label, "Other activity")


class BannerTests(SynchronousTestCase):
    def said(self, *flashes: str) -> list[str]:
        return [banner.text for banner in views.banners(views.parse_flashes(",".join(flashes)), READING)]

    def test_every_code(self) -> None:
        """Every code of the dashboard has a sentence, but for the one that only highlights."""
        until = str(int((NOW + timedelta(hours=2)).timestamp()))
        codes = [
            f"approved:web-01:alice:{until}",
            "revoked:web-01:alice",
            "rejected:web-01",
            f"elevated:web-01:alice:{until}",
            f"extended:web-01:alice:{until}",
            "approved_all:2",
            "revoked_all:1",
            "rejected_all:3",
            f"extended_all:2:{until}",
            "partial_approve:ABCDEF-123456:1:2",
            "break_glass_override:web-01:alice",
            "expired:",
        ]
        self.assertEqual(len(self.said(*codes, "highlight:alice:web-01")), len(codes))

    def test_plural(self) -> None:
        """Counts agree with their nouns."""
        self.assertEqual(self.said("approved_all:1", "approved_all:2"), ["1 request approved.", "2 requests approved."])

    def test_time(self) -> None:
        """The end of a session is said in the reader's time."""
        until = int((NOW + timedelta(hours=2)).timestamp())
        self.assertIn("open until 11:30", self.said(f"approved:web-01:alice:{until}")[0].replace("\u202f", " "))

    def test_forged(self) -> None:
        """A cookie with unknown codes, missing parts or absurd numbers says nothing wrong and breaks nothing."""
        said = self.said(
            "pwned:x", "approved:", ":", "", "approved_all:" + "9" * 400, "extended:h:u:-1", "rejected_all:١"
        )
        self.assertTrue(all("9999" not in text for text in said))

    def test_bounded(self) -> None:
        """Of what a script hands back only so much is said."""
        self.assertEqual(len(self.said(*["rejected:h"] * 500)), views.FLASHES_ITEMS)

    def test_highlight(self) -> None:
        """The highlighted host is the second argument."""
        self.assertEqual(views.highlighted([("approved", ()), ("highlight", ("alice", "web-01"))]), "web-01")
