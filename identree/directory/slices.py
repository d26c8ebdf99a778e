"""
Long pure work in slices: generators that yield before they have held the reactor for two milliseconds.

The work is counted, not timed, as this room has no clock.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from itertools import islice
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

# Work between two yields, in units of about a microsecond; a slow machine takes twice as long.
SLICE = 1000
# Items of a step that copies or compares in C, some 50 nanoseconds each.
ITEMS_AT_A_TIME = 5000
# Items of a dict that is copied as a whole, some 15 nanoseconds each: growing one piece by piece takes longer steps.
COPIED_AT_ONCE = 300_000


def copied(mapping: Mapping[K, V]) -> Generator[None, None, dict[K, V]]:
    """A dict with the mapping's items."""
    if isinstance(mapping, dict) and len(mapping) <= COPIED_AT_ONCE:
        yield
        return mapping.copy()
    copy: dict[K, V] = {}
    items = iter(mapping.items())
    while some := tuple(islice(items, ITEMS_AT_A_TIME)):
        copy.update(some)
        yield
    return copy


# Items of a comparison in C that are the same objects but for a few.
_COMPARED = 500


def different(these: Sequence[object], those: Sequence[object], most: int) -> Generator[None, None, list[int] | None]:
    """
    Places where two sequences of one length differ, ascending.

    :return: None if there are more than ``most`` of them.
    """
    places: list[int] = []
    for start in range(0, len(these), _COMPARED):
        if start % ITEMS_AT_A_TIME == 0:
            yield
        some, others = these[start : start + _COMPARED], those[start : start + _COMPARED]
        if some == others:
            continue
        places += (start + at for at, (one, other) in enumerate(zip(some, others, strict=True)) if one != other)
        if len(places) > most:
            return None
    return places
