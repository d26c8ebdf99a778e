"""
Why a request is treated as it is: which policy applies, what made it apply, what it asks for. Pure values, stored with
the challenge; pages and the command line put them into words.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

# Longer explanations than this are cut when they are read back: they come from policies, which are bounded.
MAX_CLAUSES = 64
MAX_VALUE = 1024


@dataclass(frozen=True, slots=True)
class Clause:
    """
    One condition that was met, or one thing that is asked for.

    :ivar code: ``host``, ``host_group``, ``user``, ``command``, ``command_unknown``, ``everything`` (no criteria),
        ``default``, ``none`` (no policy applies); ``approvals``, ``admin``, ``window``, ``window_closed``, ``fresh``,
        ``not_self``, ``approver_groups``, ``grace``, ``no_grace``, ``max_grace``, ``override``; ``overridden``,
        ``grace_session``.
    :ivar value: what it is about, as written in the policy: a pattern, a number, a duration, names; may be empty.
    """

    code: str
    value: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """
    :ivar policy: its name; empty: none applies.
    :ivar version: of the set of policies; 0: they come from a file, or there are none.
    :ivar because: what made it apply.
    :ivar asks: what it asks for.
    """

    policy: str = ""
    version: int = 0
    because: tuple[Clause, ...] = ()
    asks: tuple[Clause, ...] = ()

    def to_json(self) -> str:
        return json.dumps(
            {
                "policy": self.policy,
                "version": self.version,
                "because": [[clause.code, clause.value] for clause in self.because],
                "asks": [[clause.code, clause.value] for clause in self.asks],
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> Explanation:
        """What cannot be read, such as a row of an older version, explains nothing."""
        try:
            value = json.loads(text) if text else {}
            return cls(
                policy=str(value.get("policy", ""))[:MAX_VALUE],
                version=int(value.get("version", 0)),
                because=_clauses(value.get("because", [])),
                asks=_clauses(value.get("asks", [])),
            )
        except (ValueError, TypeError, AttributeError, RecursionError):
            return cls()


def _clauses(values: list[list[str]]) -> tuple[Clause, ...]:
    return tuple(Clause(str(code)[:64], str(value)[:MAX_VALUE]) for code, value in values[:MAX_CLAUSES])
