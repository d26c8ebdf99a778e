"""What ``doctor`` finds: each with a name for machines, a sentence for people, and the remedy."""

from __future__ import annotations

from identree.agent.text import clean

OK, WARN, FAIL = "ok", "warn", "fail"

MAX_TEXT = 400


class Finding:
    """
    :ivar id: ``part.matter``, which stays the same in later versions. :ivar level: one of the three above.
    :ivar remedy: what to do; empty for what is good.
    """

    __slots__ = ("id", "level", "remedy", "text")

    def __init__(self, id_: str, level: str, text: str, remedy: str = "") -> None:
        self.id, self.level, self.text, self.remedy = id_, level, clean(text, MAX_TEXT), clean(remedy, MAX_TEXT)

    def as_dict(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in ("id", "level", "text", "remedy")}


class Findings:
    """Collects them, in the order in which they were made."""

    def __init__(self) -> None:
        self.all: list[Finding] = []

    def ok(self, id_: str, text: str) -> None:
        self.all.append(Finding(id_, OK, text))

    def warn(self, id_: str, text: str, remedy: str) -> None:
        self.all.append(Finding(id_, WARN, text, remedy))

    def fail(self, id_: str, text: str, remedy: str) -> None:
        self.all.append(Finding(id_, FAIL, text, remedy))

    def failed(self) -> bool:
        return any(each.level == FAIL for each in self.all)
