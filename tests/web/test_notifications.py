"""Channels, routes, preferences, push devices: forms, calls and pages (spec/http-api sections 9.1 and 9.2)."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from identree.app.ports import DeliveryFailed
from identree.storage.interface import DeliveryState, Planned
from tests.web.front import Response
from tests.web.house import result
from tests.web.houses import HouseCase
from tests.web.test_render import Document

PAGE = "/admin/notifications"
PROFILE = "/profile/notifications"
SUBSCRIPTION = {
    "endpoint": "https://push.example/send/abc",
    "keys": {"p256dh": "B" + "A" * 86, "auth": "A" * 22},
    "label": "Chrome, Linux",
}


class NoticeCase(HouseCase):
    def setUp(self) -> None:
        directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, directory)
        self.notice_path = str(Path(directory, "channels.json"))
        super().setUp()

    def channel(self, **fields: str) -> Response:
        return self.form(
            "/api/notification/channels/add",
            **{"name": "ops", "backend": "ntfy", "url": "https://ntfy.example/alerts", **fields},
        )

    def saved(self) -> Any:
        return json.loads(Path(self.notice_path).read_text())

    def said(self, response: Response, code: int, words: str) -> None:
        self.assertEqual((response.code, response.text), (code, f"{words}\n"))


class ChannelTests(NoticeCase):
    def test_added(self) -> None:
        """It is in the file, without secrets, for its owner only; with event and message."""
        self.assertEqual(self.flash(self.channel(), PAGE), "channel_added:ops")
        self.assertEqual(
            self.saved()["channels"], [{"name": "ops", "backend": "ntfy", "url": "https://ntfy.example/alerts"}]
        )
        self.assertEqual(Path(self.notice_path).stat().st_mode & 0o777, 0o600)
        told = self.events()[-1]
        self.assertEqual(
            (told["event"], told["hostname"], told["actor"], told["username"]),
            ("notification_channel_added", "ops", "carol", ""),
        )

    def test_refused(self) -> None:
        """The texts of the contract; addresses are checked."""
        name = "channel name must be lowercase alphanumeric with hyphens/dots/underscores (1-64 chars)"
        for fields, code, words in (
            ({"name": ""}, 400, "name and backend are required"),
            ({"backend": ""}, 400, "name and backend are required"),
            ({"name": "Ops"}, 400, name),
            ({"name": "a" * 65}, 400, name),
            ({"backend": "fax"}, 400, "invalid backend"),
            ({"name": "webpush"}, 409, "channel already exists: webpush"),
            ({"url": "ftp://x"}, 400, "the address must begin with https:// and name a server"),
        ):
            self.said(self.channel(**fields), code, words)
        self.channel()
        self.said(self.channel(), 409, "channel already exists: ops")

    def test_changed_and_deleted(self) -> None:
        """Everything but the name can be changed."""
        self.channel()
        changed = self.form(
            "/api/notification/channels/update",
            name="ops",
            backend="email",
            url="smtp://mail.example",
            to="a@b.example, c@d.example",
            quiet_hours="22:00-07:00",
            timeout="20",
        )
        self.assertEqual(self.flash(changed, PAGE), "channel_changed:ops")
        [saved] = self.saved()["channels"]
        self.assertEqual(
            (saved["backend"], saved["to"], saved["timeout"]), ("email", ["a@b.example", "c@d.example"], 20)
        )
        deleted = self.form("/api/notification/channels/delete", name="ops")
        self.assertEqual(self.flash(deleted, PAGE), "channel_deleted:ops")
        self.said(self.form("/api/notification/channels/delete", name="ops"), 404, "channel not found")
        self.said(self.form("/api/notification/channels/delete"), 400, "name required")

    def test_bad_file(self) -> None:
        """A file that cannot be understood is not written over."""
        Path(self.notice_path).write_text('{"channels": 1}')
        Path(self.notice_path).chmod(0o600)
        self.said(self.channel(), 500, "failed to save")
        self.assertEqual(Path(self.notice_path).read_text(), '{"channels": 1}')

    def test_secrets_in_the_file(self) -> None:
        """Saving takes secrets out of the file, and keeps what it was beside it, once, for its owner only."""
        with_token = {"channels": [{"name": "a", "backend": "webhook", "url": "https://x.example/", "token": "t0k"}]}
        Path(self.notice_path).write_text(json.dumps(with_token))
        Path(self.notice_path).chmod(0o600)
        self.channel()
        self.assertNotIn("t0k", Path(self.notice_path).read_text())
        kept = Path(f"{self.notice_path}.with-secrets")
        self.assertEqual((json.loads(kept.read_text()), kept.stat().st_mode & 0o777), (with_token, 0o600))

    def test_tested(self) -> None:
        """The test message goes out at once; what went wrong is said, commas and all."""
        self.channel()
        self.assertEqual(self.flash(self.form("/api/admin/test-channel", channel="ops"), PAGE), "test_sent:ops")
        [(channel, notice, _)] = self.house.messenger.sent
        self.assertEqual((channel.name, notice.event, notice.actor), ("ops", "test", "carol"))
        self.house.messenger.failure = DeliveryFailed("server returned 404: no, never")
        flash = self.flash(self.form("/api/admin/test-channel", channel="ops"), PAGE)
        self.assertEqual(unquote(flash), "test_failed:ops: server returned 404: no, never")
        self.assertNotIn(",", flash)
        self.assertIn("no, never", self.get(PAGE, pam_flash=flash).text)

    def test_strangers(self) -> None:
        """Who is no administrator gets a plain 403."""
        for path in (
            "/api/notification/channels/add",
            "/api/notification/channels/delete",
            "/api/notification/routes/add",
            "/api/notification/routes/delete",
            "/api/admin/notification-preferences",
            "/api/admin/test-channel",
        ):
            self.said(self.form(path, "alice", "user", name="ops"), 403, "forbidden")


class RouteTests(NoticeCase):
    def route(self, path: str = "add", **fields: str) -> Response:
        return self.form(
            f"/api/notification/routes/{path}", **{"channels": "ops, mail", "events": "challenge_*", **fields}
        )

    def test_life(self) -> None:
        """Added, changed and deleted, by place; who has looked at another one changes nothing."""
        self.assertEqual(
            self.flash(self.route(hosts="*.prod", escalate_after="60s", escalate_to="sms"), PAGE), "route_added:"
        )
        self.assertEqual(
            self.saved()["routes"],
            [
                {
                    "channels": ["ops", "mail"],
                    "events": ["challenge_*"],
                    "hosts": ["*.prod"],
                    "users": [],
                    "escalate_after": "1m0s",
                    "escalate_to": ["sms"],
                }
            ],
        )
        self.assertEqual(self.flash(self.route("update", index="0", users="alice"), PAGE), "route_changed:")
        self.assertEqual(self.saved()["routes"][0]["users"], ["alice"])
        self.assertEqual(self.form("/api/notification/routes/delete", index="0", seen="x").code, 409)
        self.assertEqual(self.flash(self.form("/api/notification/routes/delete", index="0"), PAGE), "route_deleted:")
        self.assertEqual(self.saved()["routes"], [])

    def test_refused(self) -> None:
        """The texts of the contract."""
        self.said(self.route(channels=""), 400, "channels and events are required")
        self.said(self.route(events=" , "), 400, "channels and events are required")
        self.said(self.route(hosts="[a"), 400, "invalid glob pattern: [a")
        self.said(self.route(escalate_after="60s"), 400, "an escalation needs a time and channels")
        for index, words in (("x", "invalid index"), ("-1", "invalid index"), ("0", "index out of range")):
            self.said(self.form("/api/notification/routes/delete", index=index), 400, words)


class PreferenceTests(NoticeCase):
    def test_own(self) -> None:
        """It is the caller's, whatever name is sent, and can be deleted; the page of the person comes back."""
        saved = self.form(
            "/api/admin/notification-preferences",
            channels="ops",
            events="*",
            enabled="true",
            redirect_to=PROFILE,
            quiet_hours="22:00-07:00",
            quiet_zone="Europe/Berlin",
        )
        self.assertEqual(self.flash(saved, PROFILE), "pref_saved:")
        [kept] = json.loads(Path(f"{self.notice_path}.admins").read_text())
        self.assertEqual((kept["username"], kept["enabled"], kept["channels"]), ("carol", True, ["ops"]))
        self.assertIn('value="22:00-07:00"', self.get(PROFILE).text)
        deleted = self.form("/api/admin/notification-preferences", action="delete")
        self.assertEqual(self.flash(deleted, PAGE), "pref_deleted:")
        self.assertEqual(json.loads(Path(f"{self.notice_path}.admins").read_text()), [])

    def test_refused(self) -> None:
        """Patterns and quiet hours are checked."""
        send = {"channels": "ops", "events": "*"}
        path = "/api/admin/notification-preferences"
        self.said(self.form(path, events="*"), 400, "channels and events are required")
        self.said(self.form(path, **{**send, "hosts": "[a"}), 400, "invalid glob pattern: [a")
        self.assertEqual(self.form(path, **send, quiet_hours="late").code, 400)


class CallTests(NoticeCase):
    def test_channels(self) -> None:
        """Without secrets; form token headers are needed although it is a GET."""
        self.channel()
        answer = self.call("/api/notification/channels", method="GET")
        self.assertEqual(answer.json, [{"name": "ops", "backend": "ntfy", "url": "https://ntfy.example/alerts"}])
        self.assertEqual(self.get("/api/notification/channels").code, 403)
        self.assertEqual(self.call("/api/notification/channels", None, "alice", "user", "GET").code, 401)

    def test_test(self) -> None:
        """Statuses and bodies of the contract."""
        path = "/api/admin/test-notification"
        none = self.call(path)
        self.assertEqual((none.code, none.json), (503, {"error": "no notification channels configured", "ok": False}))
        self.channel()
        unknown = self.call(f"{path}?channel=x")
        self.assertEqual((unknown.code, unknown.json), (400, {"error": "unknown channel: x", "ok": False}))
        self.assertEqual(self.call(path).json, {"ok": True})
        self.house.messenger.failure = DeliveryFailed("server returned 500")
        failed = self.call(f"{path}?channel=ops")
        self.assertEqual((failed.code, failed.json), (502, {"errors": ["ops: server returned 500"], "ok": False}))


class DeviceTests(NoticeCase):
    def add(self, value: object = SUBSCRIPTION, user: str = "alice") -> Response:
        return self.call("/api/push/devices", value, user, "user")

    def test_life(self) -> None:
        """Everybody adds, tests and removes own browsers; the page lists them without their addresses."""
        added = self.add()
        self.assertEqual(added.code, 201)
        id = added.json["id"]
        text = self.get(PROFILE, "alice", "user").text
        self.assertIn("Chrome, Linux", text)
        self.assertNotIn("push.example", text)
        self.assertEqual(self.call("/api/push/devices/test", {"id": id}, "alice", "user").json, {"ok": True})
        self.assertEqual(self.call("/api/push/devices/test", {"id": id}, "bob", "user").code, 404)
        self.assertEqual(
            self.call("/api/push/devices/remove", {"id": id}, "bob", "user").json, {"ok": True, "removed": False}
        )
        self.assertEqual(
            self.call("/api/push/devices/remove", {"id": id}, "alice", "user").json, {"ok": True, "removed": True}
        )
        self.assertEqual([one["event"] for one in self.events()], ["push_device_added", "push_device_removed"])
        self.assertNotIn("push.example", json.dumps(self.events()))

    def test_refused(self) -> None:
        """Only what is a subscription of a push service."""
        for change in (
            {"endpoint": "http://push.example/x"},
            {"endpoint": "https://u@push.example/x"},
            {"endpoint": "https://push.example/" + "x" * 1024},
            {"endpoint": ""},
            {"endpoint": 1},
            {"keys": {}},
            {"keys": {"p256dh": "B" * 10, "auth": "A" * 22}},
            {"keys": {"p256dh": "B" + "A" * 86, "auth": "+" * 22}},
            {"keys": 1},
        ):
            self.assertEqual(self.add({**SUBSCRIPTION, **change}).code, 400, change)
        self.assertEqual(self.add([]).code, 400)
        self.assertEqual(self.ask("POST", "/api/push/devices").code, 401)

    def test_limit(self) -> None:
        """A person has a bounded number."""
        codes = [self.add({**SUBSCRIPTION, "endpoint": f"https://push.example/{n}"}).code for n in range(21)]
        self.assertEqual((set(codes[:20]), codes[20]), ({201}, 409))

    def test_gone(self) -> None:
        """A device that its push service does not know any more is forgotten by its test."""
        id = self.add().json["id"]
        self.house.messenger.failure = DeliveryFailed("server returned 410", permanent=True, gone=True)
        self.assertEqual(self.call("/api/push/devices/test", {"id": id}, "alice", "user").code, 502)
        self.assertEqual(result(self.house.store.push_devices()), [])

    def test_install(self) -> None:
        """Worker and manifest are for everybody, and the worker is not kept."""
        worker = self.ask("GET", "/sw.js")
        self.assertEqual((worker.code, worker.header("Cache-Control")), (200, "no-cache"))
        self.assertIn("javascript", worker.header("Content-Type") or "")
        manifest = self.ask("GET", "/manifest.webmanifest")
        value = json.loads(manifest.body)
        self.assertEqual((value["start_url"], value["display"]), ("/", "standalone"))
        self.assertEqual({icon["purpose"] for icon in value["icons"]}, {"any", "maskable"})
        for icon in value["icons"]:
            self.assertEqual(self.ask("GET", icon["src"]).header("Content-Type"), "image/png")


class PageTests(NoticeCase):
    def test_pages(self) -> None:
        """What there is, without what lets somebody write there; problems are said."""
        self.channel(url="https://hooks.example/services/T000/B000/abcdefghijklmnopqrstuvwx")
        self.form("/api/notification/routes/add", channels="ops, gone", events="*")
        answer = self.get(PAGE)
        page = Document(answer.text)
        self.assertEqual((page.all("data-channel"), page.all("data-route")), (["ops"], ["0"]))
        self.assertNotIn("mnopqrstuvwx", answer.text)
        self.assertIn("IDENTREE_NOTIFY_CHANNEL_OPS_TOKEN", answer.text)
        self.assertIn("gone", answer.text)
        self.assertEqual(self.get(PAGE, "alice", "user").code, 303)
        self.assertEqual(self.get(PROFILE, "alice", "user").code, 200)
        self.assertIn("abcdefghijklmnopqrstuvwx", self.get(f"{PAGE}?edit=ops").text)

    def test_log(self) -> None:
        """What became of messages, by channel and state."""
        now = self.house.now()
        planned = [
            Planned(
                key=str(number),
                channel=channel,
                event="challenge_created",
                username="alice",
                hostname="web01",
                notice="{}",
                due_at=now,
                until=now,
                state=state,
                error=error,
            )
            for number, (channel, state, error) in enumerate(
                (("ops", DeliveryState.SKIPPED, "quiet hours"), ("mail", DeliveryState.QUEUED, ""))
            )
        ]
        result(self.house.store.plan_deliveries(planned, now))
        text = self.get(PAGE).text
        self.assertEqual(len(Document(text).all("data-delivery")), 2)
        self.assertIn("quiet hours", text)
        self.assertEqual(len(Document(self.get(f"{PAGE}?channel=mail").text).all("data-delivery")), 1)
        self.assertEqual(len(Document(self.get(f"{PAGE}?state=skipped").text).all("data-delivery")), 1)
        fragment = self.get("/fragments/deliveries?channel=mail")
        self.assertEqual(Document(fragment.text).all("data-delivery"), Document(text).all("data-delivery")[:1])
        self.assertNotIn("<html", fragment.text)
        self.assertIsNone(fragment.cookie("pam_session"), "an open page keeps nobody signed in")
        self.assertEqual(self.get("/fragments/deliveries", "alice", "user").code, 403)
        self.assertEqual(self.ask("GET", "/fragments/deliveries").code, 403)
