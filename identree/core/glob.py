"""
The pattern language of policies, routes and preferences (spec/notifications-and-policy section 2).

``*`` is any run of characters but ``/``, ``?`` one of them, ``[a-z]`` and ``[^a-z]`` sets, a backslash takes away the
next character's meaning. Whole string, by case. Not :mod:`fnmatch`, which means other things by the same signs.
"""

from __future__ import annotations

import re
from collections.abc import Callable

# Longest pattern, in characters; a match costs at most that many times the length of the text.
MAX_LENGTH = 512

_One = Callable[[str], bool]

_PLAIN = re.compile(r"[^*?\[\\]*")
_STARS = re.compile(r"[^?\[\\]*\*[^?\[\\]*")


class Glob:
    """
    A compiled pattern.

    :ivar literal: what alone fits, where the pattern has no wildcard; else None.
    :param slashes: ``*`` and ``?`` stand for slashes too, as is useful for commands.
    :raise ValueError: the pattern is malformed, wherever in it, or too long.
    """

    def __init__(self, pattern: str, *, slashes: bool = False) -> None:
        if len(pattern) > MAX_LENGTH:
            raise ValueError(f"a pattern has at most {MAX_LENGTH} characters")
        self.pattern = pattern
        # None stands for a star
        self._steps = _compile(pattern, _any if slashes else _not_slash)
        self._slashes = slashes
        # most patterns are names, and most others have no wildcard but stars
        self.literal = pattern if _PLAIN.fullmatch(pattern) else None
        self._pieces = pattern.split("*") if _STARS.fullmatch(pattern) else None

    def __repr__(self) -> str:
        return f"Glob({self.pattern!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Glob):
            return NotImplemented
        return (self.pattern, self._slashes) == (other.pattern, other._slashes)

    def __hash__(self) -> int:
        return hash((self.pattern, self._slashes))

    def matches(self, text: str) -> bool:
        """Whether the whole of ``text`` is of this form; time is linear in both lengths multiplied."""
        if self.literal is not None:
            return text == self.literal
        if self._pieces is not None and (self._slashes or "/" not in text):
            return _in_order(self._pieces, text)
        return self._follow(text)

    def _follow(self, text: str) -> bool:
        """All choices at once, whatever the pattern."""
        steps = self._steps
        positions = {0}
        for character in text:
            after: set[int] = set()
            for position in _skip_stars(positions, steps):
                if position == len(steps):
                    continue
                step = steps[position]
                if step is None:
                    if self._slashes or character != "/":
                        after.add(position)
                elif step(character):
                    after.add(position + 1)
            if not after:
                return False
            positions = after
        return len(steps) in _skip_stars(positions, steps)


def _in_order(pieces: list[str], text: str) -> bool:
    """Whether the text is the pieces with anything between them. What comes first is best: it leaves the most."""
    first, *between, last = pieces
    end = len(text) - len(last)
    if end < len(first) or not text.startswith(first) or not text.endswith(last):
        return False
    position = len(first)
    for piece in between:
        position = text.find(piece, position, end)
        if position < 0:
            return False
        position += len(piece)
    return True


def _skip_stars(positions: set[int], steps: list[_One | None]) -> set[int]:
    """The positions together with those reached when stars match nothing."""
    reached = set(positions)
    for position in positions:
        while position < len(steps) and steps[position] is None:
            position += 1
            reached.add(position)
    return reached


def _not_slash(character: str) -> bool:
    return character != "/"


def _any(character: str) -> bool:
    return True


def _compile(pattern: str, one_character: _One) -> list[_One | None]:
    steps: list[_One | None] = []
    position = 0
    while position < len(pattern):
        character = pattern[position]
        if character == "*":
            if not steps or steps[-1] is not None:
                steps.append(None)
            position += 1
        elif character == "?":
            steps.append(one_character)
            position += 1
        elif character == "[":
            one, position = _set(pattern, position + 1)
            steps.append(one)
        else:
            literal, position = _literal(pattern, position)
            steps.append(literal.__eq__)
    return steps


def _literal(pattern: str, position: int) -> tuple[str, int]:
    """The character at ``position``, or the one that a backslash there protects; and what comes after."""
    if pattern[position] == "\\":
        position += 1
        if position == len(pattern):
            raise ValueError("a backslash at the end protects nothing")
    return pattern[position], position + 1


def _set(pattern: str, position: int) -> tuple[_One, int]:
    """The set that begins at ``position``, behind the bracket; and what comes after it."""

    def item(position: int) -> tuple[str, int]:
        if position >= len(pattern):
            raise ValueError("a set needs a closing bracket")
        if pattern[position] in "-]":
            raise ValueError("in a set, '-' and ']' need a backslash")
        return _literal(pattern, position)

    negated = pattern[position : position + 1] == "^"
    position += negated
    ranges: list[tuple[str, str]] = []
    while True:
        if pattern[position : position + 1] == "]" and ranges:
            break
        low, position = item(position)
        high = low
        if pattern[position : position + 1] == "-":
            high, position = item(position + 1)
        ranges.append((low, high))
    return (lambda character: any(low <= character <= high for low, high in ranges) != negated), position + 1
