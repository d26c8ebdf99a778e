"""What each kind of receiver gets, by its own rules."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.clients.notify import payloads, texts
from identree.clients.notify.mail import message
from identree.core.notices import TEST, Channel, Notice

RICH = Notice(
    event="challenge_created",
    username="alice",
    hostname="web01.prod",
    user_code="ABCDEF-123456",
    reason="disk full",
    timestamp="2026-03-01T12:00:00Z",
    approval_url="https://identree.example/approve/ABCDEF-123456",
    onetap_url="https://identree.example/api/onetap/t.o.k",
    expires_in=120,
    command="systemctl restart nginx",
    cwd="/root",
    remote_host="192.0.2.9",
    policy="prod",
    approvals=1,
    required=2,
    key="i:7",
)
BARE = Notice(event="server_restarted", username="carol", actor="carol", timestamp="2026-03-01T12:00:00Z", key="i:8")
TESTED = Notice(
    event=TEST,
    username="test-user",
    hostname="test-host",
    user_code="TEST-001",
    actor="carol",
    timestamp="2026-03-01T12:00:00Z",
)
EVIL = "<!channel> @everyone *b* `c` [x](http://evil) & <b>\u202e\u200b\n" + "x" * 10_000
HOSTILE = replace(RICH, username=EVIL, hostname=EVIL, reason=EVIL, command=EVIL, policy=EVIL, actor=EVIL)
ALL = (RICH, BARE, TESTED, HOSTILE, Notice(event="x"))
CHANNEL = Channel(name="ops", backend="ntfy", url="https://ntfy.example/base/alerts")
TEXT = st.text(max_size=3000)
NOTICES = st.builds(
    Notice,
    event=st.sampled_from(["challenge_created", "break_glass_used", TEST, "unheard_of"]),
    username=TEXT,
    hostname=TEXT,
    user_code=TEXT,
    reason=TEXT,
    actor=TEXT,
    command=TEXT,
    approval_url=st.sampled_from(["", RICH.approval_url]),
    onetap_url=st.sampled_from(["", RICH.onetap_url]),
    expires_in=st.integers(0, 10**6),
)


def links(value: Any) -> list[str]:
    """Every URL-like text anywhere in a value."""
    if isinstance(value, dict):
        return [found for key, item in value.items() if key != "$schema" for found in links(item)]
    if isinstance(value, list):
        return [found for item in value for found in links(item)]
    return [value] if isinstance(value, str) and value.startswith("https://") else []


class WebhookTests(SynchronousTestCase):
    def test_contract(self) -> None:
        """All keys of the specification, then ours where they say something."""
        value = payloads.webhook(RICH)
        self.assertEqual(
            list(value)[:9],
            [
                "approval_url",
                "event",
                "expires_in",
                "hostname",
                "onetap_url",
                "timestamp",
                "user_code",
                "username",
                "reason",
            ],
        )
        self.assertEqual((value["command"], value["required_approvals"], "actor" in value), (RICH.command, 2, False))
        bare = payloads.webhook(BARE)
        self.assertEqual((bare["approval_url"], bare["expires_in"], bare["hostname"]), ("", 0, ""))
        self.assertNotIn("reason", bare)

    def test_test(self) -> None:
        """The test event has the body of the specification."""
        self.assertEqual(
            payloads.webhook(TESTED),
            {
                "event": "test",
                "hostname": "test-host",
                "message": "Test notification from identree",
                "timestamp": "2026-03-01T12:00:00Z",
                "username": "test-user",
                "actor": "carol",
            },
        )


class NtfyTests(SynchronousTestCase):
    def test_target(self) -> None:
        """JSON goes to the root, below a path prefix, with the topic of the address or of the channel."""
        for url, topic, wanted in (
            ("https://ntfy.sh/alerts", "", ("https://ntfy.sh/", "alerts")),
            ("https://x.example/base/alerts/", "", ("https://x.example/base/", "alerts")),
            ("https://x.example/base", "t", ("https://x.example/base/", "t")),
            ("https://x.example", "t", ("https://x.example/", "t")),
        ):
            target = payloads.ntfy_target(Channel(name="n", backend="ntfy", url=url, topic=topic))
            self.assertEqual((target.url, target.topic), wanted)
        self.assertRaises(ValueError, payloads.ntfy_target, Channel(name="n", backend="ntfy", url="https://ntfy.sh"))

    def test_rules(self) -> None:
        """A topic, a message that is no attachment, a priority from 1 to 5, at most three actions with labels."""
        for notice in ALL:
            value = payloads.ntfy(CHANNEL, notice)
            self.assertEqual(value["topic"], "alerts")
            self.assertTrue(0 < len(value["message"].encode()) <= 4096)
            self.assertTrue(1 <= value["priority"] <= 5)
            actions = value.get("actions", [])
            self.assertTrue(len(actions) <= 3)
            for action in actions:
                self.assertEqual((action["action"], bool(action["label"]), bool(action["url"])), ("view", True, True))

    def test_request(self) -> None:
        """A request asks, with both links."""
        value = payloads.ntfy(CHANNEL, RICH)
        self.assertEqual((value["title"], value["priority"]), ("Sudo approval needed", 4))
        self.assertEqual([one["url"] for one in value["actions"]], [RICH.onetap_url, RICH.approval_url])
        self.assertIn("Command: systemctl restart nginx", value["message"])


class SlackTests(SynchronousTestCase):
    def check(self, value: dict[str, Any]) -> None:
        self.assertTrue(0 < len(value["text"]) <= 3000)
        self.assertTrue(len(value["blocks"]) <= 50)
        for block in value["blocks"]:
            if block["type"] == "header":
                self.assertTrue(0 < len(block["text"]["text"]) <= 150)
            elif block["type"] == "section":
                self.assertTrue(0 < len(block["fields"]) <= 10)
                self.assertTrue(all(0 < len(one["text"]) <= 2000 for one in block["fields"]))
            else:
                self.assertEqual(block["type"], "actions")
                self.assertTrue(0 < len(block["elements"]) <= 25)
                for button in block["elements"]:
                    self.assertTrue(len(button["text"]["text"]) <= 75 and 0 < len(button["url"]) <= 3000)
                    self.assertTrue(len(button["action_id"]) <= 255)

    def test_limits(self) -> None:
        """Block kit's limits hold for every notice."""
        for notice in ALL:
            self.check(payloads.slack(CHANNEL, notice))

    @settings(max_examples=100, deadline=None)
    @given(NOTICES)
    def test_any(self, notice: Notice) -> None:
        """Also for any text."""
        self.check(payloads.slack(CHANNEL, notice))

    def test_escaped(self) -> None:
        """Nobody is mentioned, and nothing becomes a link, by what people write."""
        text = json.dumps(payloads.slack(CHANNEL, HOSTILE))
        self.assertNotIn("<!channel>", text)
        self.assertIn("&lt;!channel&gt;", text)

    def test_text(self) -> None:
        """Receivers that only speak like Slack find everything in the text."""
        text = payloads.slack(CHANNEL, RICH)["text"]
        self.assertTrue(text.startswith("*Sudo approval needed*\nUser: alice | Host: web01.prod"))
        self.assertTrue(text.endswith(f"<{RICH.onetap_url}|Approve>"))
        self.assertEqual(
            payloads.slack(CHANNEL, TESTED)["text"],
            "*Test notification from identree*\nSent by carol at 2026-03-01T12:00:00Z",
        )


class DiscordTests(SynchronousTestCase):
    @settings(max_examples=100, deadline=None)
    @given(NOTICES)
    def test_limits(self, notice: Notice) -> None:
        """No empty field, nothing over a limit, and nobody is mentioned."""
        for one in (notice, *ALL):
            value = payloads.discord(one)
            [embed] = value["embeds"]
            self.assertEqual(value["allowed_mentions"], {"parse": []})
            self.assertTrue(0 < len(embed["title"]) <= 256)
            fields = embed.get("fields", [])
            self.assertTrue(len(fields) <= 25)
            for field in fields:
                self.assertTrue(0 < len(field["name"]) <= 256 and 0 < len(field["value"]) <= 1024)
            whole = len(embed["title"]) + len(embed.get("description", ""))
            whole += sum(len(field["name"]) + len(field["value"]) for field in fields)
            self.assertTrue(whole <= 6000, whole)
            self.assertTrue(fields or embed.get("description") or embed["title"])

    def test_escaped(self) -> None:
        """Markup of people is text; backticks cannot leave a code field."""
        text = json.dumps(payloads.discord(HOSTILE))
        self.assertIn("\\\\*b\\\\*", text)
        command = next(one for one in payloads.discord(HOSTILE)["embeds"][0]["fields"] if one["name"] == "Command")
        self.assertEqual(command["value"].count("`"), 2)


class TeamsTests(SynchronousTestCase):
    @settings(max_examples=50, deadline=None)
    @given(NOTICES)
    def test_card(self, notice: Notice) -> None:
        """One Adaptive Card, small enough, whose facts all have a title and a value."""
        for one in (notice, *ALL):
            value = payloads.teams(one)
            self.assertTrue(len(json.dumps(value).encode()) < 28_000)
            [attachment] = value["attachments"]
            self.assertEqual(attachment["contentType"], "application/vnd.microsoft.card.adaptive")
            card = attachment["content"]
            self.assertEqual((card["type"], card["version"]), ("AdaptiveCard", "1.4"))
            for part in card["body"]:
                self.assertIn(part["type"], ("TextBlock", "FactSet"))
                for fact in part.get("facts", ()):
                    self.assertTrue(fact["title"] and fact["value"])


class OtherTests(SynchronousTestCase):
    def test_no_link_without_one(self) -> None:
        """What has no address to approve at has no button and no link."""
        for notice in (BARE, TESTED):
            for value in (
                payloads.ntfy(CHANNEL, notice),
                payloads.slack(CHANNEL, notice),
                payloads.discord(notice),
                payloads.teams(notice),
                payloads.apprise(notice),
            ):
                self.assertEqual(links(value), [])
                self.assertNotIn("Approve", json.dumps(value))

    def test_apprise(self) -> None:
        """Markdown with what people wrote as text."""
        value = payloads.apprise(RICH)
        self.assertEqual((value["format"], value["type"]), ("markdown", "warning"))
        self.assertIn(f"[Approve]({RICH.onetap_url})", value["body"])
        self.assertIn("\\[x\\]\\(http", payloads.apprise(HOSTILE)["body"])

    def test_push(self) -> None:
        """Only paths of ours; the code groups messages about one request."""
        value = payloads.push(RICH)
        self.assertEqual(
            (value["url"], value["onetap"], value["tag"]),
            ("/approve/ABCDEF-123456", "/api/onetap/t.o.k", "ABCDEF-123456"),
        )
        self.assertEqual(payloads.push(BARE)["url"], "/")
        self.assertTrue(len(json.dumps(payloads.push(HOSTILE)).encode()) < 3993)

    def test_environment(self) -> None:
        """Commands get printable ASCII only, by the names of the specification."""
        values = payloads.environment(CHANNEL, replace(HOSTILE, reason="a\nb\u00e4\x00c"))
        self.assertEqual(values["NOTIFY_REASON"], "abc")
        self.assertEqual(values["NOTIFY_APPROVAL_URL"], RICH.onetap_url)
        self.assertTrue(all(value.isascii() and value.isprintable() for value in values.values()))
        self.assertTrue(
            {"NOTIFY_CHANNEL", "NOTIFY_EVENT", "NOTIFY_USERNAME", "NOTIFY_HOSTNAME", "NOTIFY_USER_CODE"} <= set(values)
        )

    def test_outcome(self) -> None:
        """A message that is brought up to date says what became of it and by whom, without a link."""
        over = replace(
            RICH, event="challenge_approved", outcome="approved", actor="carol", approval_url="", onetap_url=""
        )
        text = json.dumps(payloads.slack(CHANNEL, over))
        self.assertIn("Sudo approved", text)
        self.assertIn("carol", text)
        self.assertEqual(links(payloads.slack(CHANNEL, over)), [])


class MailTests(SynchronousTestCase):
    def mail(self, notice: Notice, previous: str = "") -> Any:
        channel = Channel(name="m", backend="email", to=("a@b.example", "c@d.example"), sender="identree@x.example")
        made, id = message(
            channel, notice, now=datetime(2026, 3, 1, tzinfo=UTC), previous=previous, domain="identree.example"
        )
        return made, id

    def test_parts(self) -> None:
        """Plain text and HTML, marked as automatic, with both links."""
        made, id = self.mail(RICH)
        plain, html = (part.get_content() for part in made.iter_parts())
        self.assertIn("User: alice", plain)
        self.assertIn(RICH.onetap_url, plain)
        self.assertIn(f'href="{RICH.onetap_url}"', html)
        self.assertEqual((made["Auto-Submitted"], made["Message-ID"]), ("auto-generated", id))
        self.assertEqual(made["Subject"], "Sudo approval needed: alice on web01.prod")

    def test_reply(self) -> None:
        """The outcome answers the request."""
        made, _ = self.mail(BARE, "<old@identree.example>")
        self.assertEqual((made["In-Reply-To"], made["References"]), ("<old@identree.example>",) * 2)

    def test_hostile(self) -> None:
        """No text makes a header or markup."""
        made, _ = self.mail(replace(HOSTILE, username="a\r\nBcc: evil@x.example", hostname="h\nX-Evil: 1"))
        raw = made.as_bytes()
        self.assertNotIn(b"\r\nBcc:", raw)
        self.assertNotIn(b"\nX-Evil", raw)
        self.assertNotIn("<b>", made.get_body(("html",)).get_content().partition("<table>")[2])

    def test_addresses(self) -> None:
        """What is no address is refused."""
        for bad in ("nobody", "a@b\r\nBcc: c@d.example", ""):
            channel = Channel(name="m", backend="email", to=(bad,), sender="i@x.example")
            self.assertRaises(
                ValueError,
                message,
                channel,
                RICH,
                now=datetime(2026, 3, 1, tzinfo=UTC),
                previous="",
                domain="x.example",
            )


class TextTests(SynchronousTestCase):
    def test_cleaned(self) -> None:
        """What a receiver says is one line, bounded, without hidden characters and without our secrets."""
        raw = "no\r\n\ttoken t0ken-secret \u202eevil\x1b[31m".encode() + b"x" * 5000
        said = texts.cleaned(raw, ("t0ken-secret",), 100)
        self.assertTrue(said.startswith("no token *** evil[31mxxx"))
        self.assertEqual(len(said), 100)
