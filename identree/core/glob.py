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
        self._slashes = slashes
        # where each stands in the pattern, as bits
        self._stars = 0
        self._characters: dict[str, int] = {}
        self._sets: dict[_One, int] = {}
        steps = _compile(pattern, _any if slashes else _not_slash)
        for at, step in enumerate(steps):
            if step is None:
                self._stars |= 1 << at
            elif isinstance(step, str):
                self._characters[step] = self._characters.get(step, 0) | 1 << at
            else:
                self._sets[step] = self._sets.get(step, 0) | 1 << at
        self._length = len(steps)
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
        """
        All choices at once, whatever the pattern: bit N of ``reached`` says that the text so far fits the first N
        steps.
        """
        stars, fitting = self._stars, dict[str, int]()
        reached = _past_stars(1, stars)
        for character in text:
            fits = fitting.get(character)
            if fits is None:
                fits = self._characters.get(character, 0)
                for one, where in self._sets.items():
                    if one(character):
                        fits |= where
                fitting[character] = fits
            stays = reached & stars if self._slashes or character != "/" else 0
            reached = _past_stars(stays | (reached & fits) << 1, stars)
            if not reached:
                return False
        return bool(reached >> self._length & 1)


def _past_stars(reached: int, stars: int) -> int:
    """Together with what is reached when stars match nothing; no two of them stand side by side."""
    return reached | (reached & stars) << 1


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


def _not_slash(character: str) -> bool:
    return character != "/"


def _any(character: str) -> bool:
    return True


def _compile(pattern: str, one_character: _One) -> list[_One | str | None]:
    """Sets and question marks, characters, and None for stars."""
    steps: list[_One | str | None] = []
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
            steps.append(literal)
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
