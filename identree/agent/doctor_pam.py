"""
The way through PAM, walked as libpam walks it (spec/host-agent sections 10.1 and 10.2): is there one question for an
approval, and no way past it?
"""

from __future__ import annotations

import os

from identree.agent.setup_files import SetupError, below, read, resolve
from identree.agent.setup_pam import ADDITIONAL, CONTROLS, FILES, SOLE, fields, has_agent, is_agent, rules
from identree.agent.text import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from identree.agent.findings import Findings

PAM_DIRECTORY = "/etc/pam.d"
# libpam itself stops at 32.
MAX_DEPTH = 16
MAX_RULES = 512

# What a state is called by ``status``.
ABSENT, OTHER, INCLUDED, MISSING = "absent", "other", "included", "no file"


class Step:
    """
    One auth rule of a stack.

    :ivar file: where it stands. :ivar control: in lower case, in one of the two syntaxes.
    """

    def __init__(self, file: str, words: list[str], *, agent: bool) -> None:
        self.file, self.agent = file, agent
        self.control, self.module, self.arguments = words[1].lower(), words[2], words[3:]

    def actions(self) -> dict[str, str]:
        """What follows from which result of the module (pam.conf(5))."""
        known = {
            "required": "success=ok new_authtok_reqd=ok ignore=ignore default=bad",
            "requisite": "success=ok new_authtok_reqd=ok ignore=ignore default=die",
            "sufficient": "success=done new_authtok_reqd=done default=ignore",
            "optional": "success=ok new_authtok_reqd=ok default=ignore",
        }
        text = known.get(self.control, self.control.strip("[]"))
        return dict(word.partition("=")[::2] for word in text.split())


class BrokenStack(Exception):
    """libpam would refuse it; the text says where."""


def walk(root: str, service: str, agent: str) -> list[Step]:
    """
    The auth rules of a service in their order, with those of the files that it includes.

    :raise BrokenStack: a file is missing or unreadable, or includes itself.
    """
    return _walk(root, service, agent, 0)


def _walk(root: str, service: str, agent: str, depth: int) -> list[Step]:
    if depth > MAX_DEPTH:
        raise BrokenStack(f"{service} includes itself")
    path = service if service.startswith("/") else f"{PAM_DIRECTORY}/{service}"
    try:
        data = read(resolve(root, path))
    except (OSError, SetupError) as e:
        raise BrokenStack(f"{path}: {getattr(e, 'strerror', None) or e}") from None
    if data is None:
        raise BrokenStack(f"{path} does not exist")
    steps: list[Step] = []
    for rule in rules(data):
        words = fields(rule)
        if not words:
            continue
        kind = words[0].lower().lstrip("-")
        if kind == "@include" and len(words) > 1:
            steps += _walk(root, words[1], agent, depth + 1)
        elif kind == "auth" and len(words) > 2:
            if words[1].lower() in ("include", "substack"):
                steps += _walk(root, words[2], agent, depth + 1)
            else:
                steps.append(Step(path, words, agent=is_agent(rule, agent)))
        if len(steps) > MAX_RULES:
            raise BrokenStack(f"{path} has more than {MAX_RULES} rules")
    return steps


def state(root: str, file: str, agent: str) -> str:
    """In one word how a service asks for approval: a mode of ``setup``, or one of the four above."""
    if not os.path.exists(below(root, file)):
        return MISSING
    try:
        steps = walk(root, os.path.basename(file), agent)
    except BrokenStack:
        return OTHER
    ours = [step for step in steps if step.agent]
    if not ours:
        return ABSENT
    if len(ours) > 1:
        return OTHER
    if ours[0].file != file:
        return INCLUDED
    for mode in (SOLE, ADDITIONAL):
        if ours[0].control == CONTROLS[mode]:
            return mode
    return OTHER


def examine(findings: Findings, root: str, agent: str) -> None:
    for file in FILES:
        if os.path.lexists(below(root, file)):
            _examine(findings, root, file, agent)
        elif file == FILES[0]:
            findings.fail("pam.sudo", f"{file} does not exist", "install sudo, then run: identree setup")
    try:
        others = sorted(os.listdir(below(root, PAM_DIRECTORY)))
    except OSError:
        others = []
    for name in others:
        path = f"{PAM_DIRECTORY}/{name}"
        if path in FILES or name.endswith((".bak", "~", ".rpmsave", ".rpmnew", ".dpkg-old", ".dpkg-dist")):
            continue
        try:
            found = has_agent(read(resolve(root, path)) or b"", agent)
        except (OSError, SetupError):
            continue
        if found:
            findings.warn(
                "pam.elsewhere",
                f"{path} asks for approval as well, and so does everything that includes it",
                f"take the rule out of {path}; it is made for sudo, and untried with logins",
            )


def _examine(findings: Findings, root: str, file: str, agent: str) -> None:
    name = os.path.basename(file)
    part = f"pam.{name}"
    try:
        steps = walk(root, name, agent)
    except BrokenStack as e:
        findings.fail(part, f"the stack of {name} is broken: {e}", "restore that file from its package or its backup")
        return
    places = [index for index, step in enumerate(steps) if step.agent]
    if not places:
        findings.fail(
            part,
            f"{name} does not ask for approval: no auth rule runs {agent}",
            "run: identree setup (it is safe twice)",
        )
        return
    before = len(findings.all)
    if len(places) > 1:
        where = ", ".join(sorted({steps[index].file for index in places}))
        findings.fail(
            f"{part}-doubled",
            f"{name} asks for approval {len(places)} times (rules in {where})",
            "run: identree setup; it leaves one, and none where the stack of sudo is included",
        )
    first = places[0]
    _look_before(findings, part, name, steps, first)
    _look_at(findings, part, name, steps[first], agent)
    if len(findings.all) == before:
        findings.ok(part, f"{name} asks for approval once, and nothing gets past it")


def _look_before(findings: Findings, part: str, name: str, steps: list[Step], first: int) -> None:
    """Modules before ours that can let somebody in by themselves."""
    for index, step in enumerate(steps[:first]):
        past = False
        for result, action in step.actions().items():
            if action == "done" or (action.isdigit() and index + int(action) >= first):
                past = past or result in ("success", "default", "new_authtok_reqd", "ignore", "user_unknown")
        if past:
            findings.fail(
                f"{part}-bypass",
                f"in {name}, {step.module} ({step.control}, {step.file}) comes before the approval and can replace it",
                "move the rule of identree before it: take it out, then run identree setup",
            )


def _look_at(findings: Findings, part: str, name: str, step: Step, agent: str) -> None:
    actions = step.actions()
    refused = actions.get("default", actions.get("system_err", "bad"))
    if refused not in ("die", "bad") or actions.get("system_err", refused) not in ("die", "bad"):
        findings.fail(
            f"{part}-control",
            f"in {name}, the rule of identree is {step.control!r}: a denial does not keep anybody out",
            "run: identree setup",
        )
    if "stdout" not in step.arguments:
        findings.warn(
            f"{part}-output",
            f"in {name}, the rule of identree lacks 'stdout': nobody sees where to approve",
            "run: identree setup",
        )
    if "expose_authtok" in step.arguments:
        findings.warn(
            f"{part}-password",
            f"in {name}, the rule of identree has 'expose_authtok', which hands it passwords that it does not want",
            "run: identree setup",
        )
    unknown = [word for word in step.arguments if word.startswith("/") and word != agent]
    if unknown and agent not in step.arguments:
        findings.warn(
            f"{part}-program",
            f"in {name}, the rule of identree runs {clean(unknown[0], 100)}",
            "run: identree setup",
        )
