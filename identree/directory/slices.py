"""
Long pure work in slices: generators that yield before they have held the reactor for two milliseconds.

The work is counted, not timed, as this room has no clock.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from itertools import islice
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

# Work between two yields, in units of about a microsecond; a slow machine takes twice as long.
SLICE = 1000
# Items of a step that copies or compares in C, some 50 nanoseconds each.
ITEMS_AT_A_TIME = 5000


def copied(mapping: Mapping[K, V]) -> Generator[None, None, dict[K, V]]:
    """A dict with the mapping's items."""
    copy: dict[K, V] = {}
    items = iter(mapping.items())
    while some := tuple(islice(items, ITEMS_AT_A_TIME)):
        copy.update(some)
        yield
    return copy
