"""
The text of PAM files (spec/host-agent sections 10.1, 10.2), as libpam reads it: lines end with LF alone (a CR begins no
new one, also not in a comment), a rule goes on after a backslash at the end of a line, comments and blank lines may
stand between its parts, and after a comment it does not go on. Bytes that are not ours are kept.
"""

from __future__ import annotations

from identree.agent.text import clean
from identree.agent.units import AGENT

FILES = ("/etc/pam.d/sudo", "/etc/pam.d/sudo-i")
SOLE, ADDITIONAL = "sole", "additional"
CONTROLS = {SOLE: "[success=done default=die]", ADDITIONAL: "required"}
_OPTIONS = {SOLE: "quiet stdout", ADDITIONAL: "stdout"}


def rules(data: bytes) -> list[bytes]:
    """The lines with their ends, continued lines joined to one entry."""
    out: list[bytes] = []
    going_on = False
    lines = data.split(b"\n")
    for line in [*(each + b"\n" for each in lines[:-1]), *filter(None, lines[-1:])]:
        if going_on:
            out[-1] += line
        else:
            out.append(line)
        text, comment, _ = line.partition(b"#")
        text = text.rstrip(b" \t\n")
        if text or not going_on:
            going_on = text.endswith(b"\\") and not comment
    return out


def fields(rule: bytes) -> list[str]:
    """A rule's fields, with brackets kept together; empty for comments and blank lines."""
    text = ""
    for line in rule.split(b"\n"):
        part = line.partition(b"#")[0].rstrip(b" \t\r")
        text += " " + part[: -1 if part.endswith(b"\\") else None].decode("utf-8", "replace")
    out: list[str] = []
    for word in text.split():
        if out and out[-1].startswith("[") and not out[-1].endswith("]"):
            out[-1] += " " + word
        else:
            out.append(word)
    return out


def is_agent(rule: bytes, agent: str) -> bool:
    """Whether the rule runs the helper, wherever it was installed, through pam_exec."""
    words = fields(rule)
    module = next((i for i, word in enumerate(words) if word.rsplit("/", 1)[-1] == "pam_exec.so"), 0)
    return module > 0 and any(word in (agent, AGENT) for word in words[module + 1 :])


def has_agent(data: bytes, agent: str) -> bool:
    return any(is_agent(rule, agent) for rule in rules(data))


def rule_for(mode: str, agent: str) -> bytes:
    """The line of section 2 or of section 10.2, byte for byte with the default path."""
    return f"auth    {CONTROLS[mode]}    pam_exec.so    {_OPTIONS[mode]} {agent}\n".encode()


def insert(data: bytes, mode: str, agent: str) -> bytes:
    """``data`` with exactly one rule for the helper, in ``mode``: converted in place, else before the first auth."""
    out: list[bytes] = []
    seen = False
    for rule in rules(data):
        if not is_agent(rule, agent):
            out.append(rule)
        elif not seen:
            seen = True
            words = fields(rule)
            same = (
                words[0] == "auth"
                and words[1] == CONTROLS[mode]
                and words[-1] == agent
                and "expose_authtok" not in words
            )
            out.append(rule if same and "stdout" in words else rule_for(mode, agent))
    if seen:
        return b"".join(out)
    for index, rule in enumerate(out):
        words = fields(rule)
        if words and words[0].lower().lstrip("-") in ("auth", "@include"):
            return b"".join([*out[:index], rule_for(mode, agent), *out[index:]])
    if out and not out[-1].endswith(b"\n"):
        out.append(b"\n")
    return b"".join([*out, rule_for(mode, agent)])


def strip(data: bytes, agent: str) -> bytes:
    """``data`` without any rule for the helper."""
    return b"".join(rule for rule in rules(data) if not is_agent(rule, agent))


def includes_sudo(data: bytes) -> bool:
    """Whether the auth rules of another service come from sudo's file."""
    for rule in rules(data):
        words = fields(rule)
        if words[1:2] == ["sudo"] and words[0].lower() == "@include":
            return True
        if (
            len(words) > 2
            and words[0].lower().lstrip("-") == "auth"
            and words[1].lower() in ("include", "substack")
            and words[2] == "sudo"
        ):
            return True
    return False


def difference(old: bytes, new: bytes) -> list[str]:
    """The lines that go (``-``) and come (``+``)."""
    before, after = rules(old), rules(new)
    gone = [f"- {clean(line.decode('utf-8', 'replace'))}" for line in before if line not in after]
    return gone + [f"+ {clean(line.decode('utf-8', 'replace'))}" for line in after if line not in before]


def original(now: bytes, saved: bytes | None, agent: str) -> bytes | None:
    """
    The file before there was a helper in it, if that is known: a copy that has none, and is otherwise what stands there
    now. For files that were configured before a journal was kept.
    """
    if saved is None or has_agent(saved, agent) or strip(now, agent).rstrip(b"\n") != saved.rstrip(b"\n"):
        return None
    return saved
