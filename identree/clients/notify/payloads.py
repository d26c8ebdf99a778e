"""
The body of a message for each kind of receiver. Pure.

Receivers refuse what breaks their limits, so every text is cut to them: a message that is short is better than one that
never comes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from identree.clients.notify import texts
from identree.core import notices
from identree.core.notices import TEST, Channel, Notice, Wording, one_line

# Discord's colours.
_COLOURS = {"ask": 3447003, "good": 3066993, "bad": 15158332, "calm": 9807270}
# Slack (block kit reference): characters of a header, of a section's text and of a field; fields of a section.
SLACK_HEADER, SLACK_TEXT, SLACK_FIELD, SLACK_FIELDS = 150, 3000, 2000, 10
SLACK_URL = 3000
# Discord (channel resource, embed limits).
DISCORD_TITLE, DISCORD_NAME, DISCORD_VALUE, DISCORD_FIELDS, DISCORD_DESCRIPTION = 256, 256, 1024, 25, 4096
# ntfy: a message becomes an attachment beyond this many bytes.
NTFY_MESSAGE_BYTES = 3000
TEAMS_BYTES = 27_000
_NTFY_PRIORITIES = {"ask": 4, "bad": 5, "good": 3, "calm": 2}
_NTFY_TAGS = {"ask": "key", "good": "white_check_mark", "bad": "rotating_light", "calm": "information_source"}
_APPRISE_TYPES = {"ask": "warning", "good": "success", "bad": "failure", "calm": "info"}
_TEAMS_COLOURS = {"ask": "Accent", "good": "Good", "bad": "Attention", "calm": "Default"}


def said(notice: Notice) -> Wording:
    return notices.wording(notice)


def _plain_lines(wording: Wording) -> str:
    return "\n".join(f"{label}: {value}" if label else value for label, value in wording.lines)


def webhook(notice: Notice) -> dict[str, Any]:
    """The keys of the specification, then ours, which are there when they say something."""
    if notice.event == TEST:
        value: dict[str, Any] = {
            "event": TEST,
            "hostname": notice.hostname,
            "message": "Test notification from identree",
            "timestamp": notice.timestamp,
            "username": notice.username,
        }
    else:
        value = {
            "approval_url": notice.approval_url,
            "event": notice.event or "challenge_created",
            "expires_in": notice.expires_in,
            "hostname": notice.hostname,
            "onetap_url": notice.onetap_url,
            "timestamp": notice.timestamp,
            "user_code": notice.user_code,
            "username": notice.username,
        }
        if notice.reason:
            value["reason"] = notice.reason
    if notice.actor:
        value["actor"] = notice.actor
    if notice.event != TEST:
        more = {
            "title": said(notice).title,
            "command": notice.command,
            "policy": notice.policy,
            "outcome": notice.outcome,
            "approvals": notice.approvals,
            "required_approvals": notice.required,
            "key": notice.key,
        }
        value.update((key, item) for key, item in more.items() if item)
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class NtfyTarget:
    """ntfy takes JSON at the server's root, and the topic in it. :ivar url: of the root."""

    url: str
    topic: str


def ntfy_target(channel: Channel) -> NtfyTarget:
    """:raise ValueError: there is no topic."""
    parts = urlsplit(channel.url)
    base, _, last = parts.path.rstrip("/").rpartition("/")
    topic = channel.topic or last
    if not topic:
        raise ValueError("the address must end with a topic, as in https://ntfy.example/alerts")
    path = (parts.path.rstrip("/") if channel.topic else base) + "/"
    return NtfyTarget(url=urlunsplit((parts.scheme, parts.netloc, path, "", "")), topic=topic)


def ntfy(channel: Channel, notice: Notice, sequence: str = "") -> dict[str, Any]:
    """
    JSON publishing (ntfy documentation, "Publish as JSON").

    :param sequence: of messages with the same one, a subscriber sees the last.
    """
    wording = said(notice)
    message = _plain_lines(wording).encode()[:NTFY_MESSAGE_BYTES].decode("utf-8", "ignore")
    value: dict[str, Any] = {
        "topic": ntfy_target(channel).topic,
        "title": texts.cut(wording.title, 200),
        "message": message or wording.title,
        "priority": channel.priority or _NTFY_PRIORITIES[wording.tone],
        "tags": [_NTFY_TAGS[wording.tone]],
    }
    if sequence:
        value["sequence_id"] = sequence
    if wording.url:
        value["click"] = notice.approval_url or wording.url
        value["actions"] = [{"action": "view", "label": wording.button, "url": wording.url, "clear": True}]
        if notice.approval_url and notice.approval_url != wording.url:
            value["actions"].append({"action": "view", "label": "Open", "url": notice.approval_url})
    return value


def slack(channel: Channel, notice: Notice) -> dict[str, Any]:
    """Blocks, and the text of the specification for notifications and for receivers that only speak like Slack."""
    wording = said(notice)
    title = texts.slack(wording.title)
    text = f"*{title}*"
    lines = [
        f"{label}: {texts.slack_plain(value)}" if label else texts.slack_plain(value) for label, value in wording.lines
    ]
    if lines:
        text += "\n" + (" | ".join(lines) if notice.event != TEST else "\n".join(lines))
    if wording.url:
        text += f"\n<{wording.url}|{wording.button}>"
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": texts.cut(wording.title, SLACK_HEADER)}}
    ]
    facts = [
        {"type": "mrkdwn", "text": texts.cut(f"*{label or 'Note'}*\n{texts.slack_plain(value)}", SLACK_FIELD)}
        for label, value in wording.lines
    ]
    for start in range(0, len(facts), SLACK_FIELDS):
        blocks.append({"type": "section", "fields": facts[start : start + SLACK_FIELDS]})
    if wording.url and len(wording.url) <= SLACK_URL:
        buttons: list[dict[str, Any]] = [_slack_button(wording.button, wording.url, "primary")]
        if notice.approval_url and notice.approval_url != wording.url and len(notice.approval_url) <= SLACK_URL:
            buttons.append(_slack_button("Open", notice.approval_url, ""))
        blocks.append({"type": "actions", "elements": buttons})
    value: dict[str, Any] = {"text": texts.cut(text, SLACK_TEXT), "blocks": blocks}
    if channel.topic:
        value["channel"] = channel.topic
    return value


def _slack_button(label: str, url: str, style: str) -> dict[str, Any]:
    button: dict[str, Any] = {
        "type": "button",
        "text": {"type": "plain_text", "text": label},
        "url": url,
        "action_id": f"identree-{label.lower()}",
    }
    if style:
        button["style"] = style
    return button


def discord(notice: Notice) -> dict[str, Any]:
    """An embed without empty fields, which Discord refuses, and without mentions."""
    wording = said(notice)
    embed: dict[str, Any] = {
        "title": texts.cut(texts.markdown(wording.title), DISCORD_TITLE),
        "color": _COLOURS[wording.tone],
    }
    if wording.url:
        embed["url"] = wording.url
    fields = [
        {
            "name": texts.cut(label, DISCORD_NAME),
            "value": texts.cut(f"`{texts.code(value)}`" if label in _CODES else texts.markdown(value), DISCORD_VALUE),
            "inline": len(value) < 40 and label not in _CODES,
        }
        for label, value in wording.lines
        if label
    ][:DISCORD_FIELDS]
    loose = " ".join(value for label, value in wording.lines if not label)
    if loose:
        embed["description"] = texts.cut(texts.markdown(loose), DISCORD_DESCRIPTION)
    if fields:
        embed["fields"] = fields
    return {"embeds": [embed], "allowed_mentions": {"parse": []}}


_CODES = frozenset({"Code", "Command"})


def teams(notice: Notice) -> dict[str, Any]:
    """An Adaptive Card as Workflows take it (post to a channel when a webhook request is received)."""
    wording = said(notice)
    body: list[dict[str, Any]] = [
        {
            "type": "TextBlock",
            "text": texts.markdown(wording.title),
            "size": "Medium",
            "weight": "Bolder",
            "wrap": True,
            "color": _TEAMS_COLOURS[wording.tone],
        }
    ]
    facts = [{"title": label or "Note", "value": texts.markdown(value)} for label, value in wording.lines]
    if facts:
        body.append({"type": "FactSet", "facts": facts})
    content: dict[str, Any] = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": body,
    }
    if wording.url:
        content["actions"] = [{"type": "Action.OpenUrl", "title": wording.button, "url": wording.url}]
        if notice.approval_url and notice.approval_url != wording.url:
            content["actions"].append({"type": "Action.OpenUrl", "title": "Open", "url": notice.approval_url})
    return {
        "type": "message",
        "attachments": [
            {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": content}
        ],
    }


def apprise(notice: Notice) -> dict[str, Any]:
    wording = said(notice)
    lines = [
        f"**{texts.markdown(label)}:** {texts.markdown(value)}" if label else texts.markdown(value)
        for label, value in wording.lines
    ]
    body = "  \n".join(lines)
    if wording.url:
        body += f"\n\n[{wording.button}]({wording.url})"
    return {
        "title": wording.title,
        "body": body or wording.title,
        "format": "markdown",
        "type": _APPRISE_TYPES[wording.tone],
    }


def push(notice: Notice) -> dict[str, Any]:
    """What the service worker shows; addresses are paths of ours, and nothing else is opened."""
    wording = said(notice)

    def path(url: str) -> str:
        parts = urlsplit(url)
        return parts.path if url else ""

    first = " ".join(value for label, value in wording.lines if label in ("User", "Host"))
    others = [
        f"{label}: {value}" for label, value in wording.lines if label in ("Command", "Reason", "Approvals", "By")
    ]
    return {
        "title": texts.cut(wording.title, 120),
        "body": texts.cut("\n".join(one for one in (first, *others) if one) or _plain_lines(wording), 600),
        "tag": notice.user_code or notice.key,
        "url": path(notice.approval_url) or "/",
        "onetap": path(notice.onetap_url),
        "code": notice.user_code,
        "expires": notice.expires_in,
        "event": notice.event,
        "outcome": notice.outcome,
        "tone": wording.tone,
    }


def environment(channel: Channel, notice: Notice) -> dict[str, str]:
    """
    For a command: printable ASCII only (spec/notifications-and-policy section 5, *custom*), so that no value can be
    taken for anything but text.
    """
    values = {
        "NOTIFY_CHANNEL": channel.name,
        "NOTIFY_EVENT": notice.event,
        "NOTIFY_USERNAME": notice.username,
        "NOTIFY_HOSTNAME": notice.hostname,
        "NOTIFY_USER_CODE": notice.user_code,
        "NOTIFY_APPROVAL_URL": notice.url,
        "NOTIFY_ONETAP_URL": notice.onetap_url,
        "NOTIFY_EXPIRES_IN": str(notice.expires_in),
        "NOTIFY_TIMESTAMP": notice.timestamp,
        "NOTIFY_REASON": notice.reason,
        "NOTIFY_ACTOR": notice.actor,
        "NOTIFY_TITLE": said(notice).title,
        "NOTIFY_OUTCOME": notice.outcome,
    }
    return {
        name: "".join(character for character in value if 0x20 <= ord(character) <= 0x7E)
        for name, value in values.items()
    }


def subject(notice: Notice) -> str:
    wording = said(notice)
    whom = " on ".join(one for one in (one_line(notice.username, 64), one_line(notice.hostname, 120)) if one)
    return f"{wording.title}: {whom}" if whom and notice.event != TEST else wording.title
