"""
Numbered migrations (spec/storage section 2).

``schema/NNN.sql`` holds version NNN; its first comment line is the description. Both engines read the same text. DDL
and version row commit together; a database that a newer program has migrated is refused and left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files

from identree.core.errors import SchemaTooNew
from identree.storage.script import Statement

# Session advisory lock of deployed versions, held around the run on PostgreSQL.
ADVISORY_LOCK = 7294829183

BOOKKEEPING = (
    "CREATE TABLE IF NOT EXISTS schema_migrations "
    "(version INTEGER PRIMARY KEY, description TEXT NOT NULL, applied_at BIGINT NOT NULL)"
)
CURRENT = "SELECT COALESCE(MAX(version), 0) FROM schema_migrations"
_RECORD = (
    "INSERT INTO schema_migrations (version, description, applied_at) VALUES (:version, :description, :applied_at)"
)

_NAME = re.compile(r"(\d{3})\.sql")


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    version: int
    description: str
    statements: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """
    How an engine writes the few types that differ.

    :ivar id: a growing integer primary key.
    :ivar types: replacements for type names.
    """

    id: str
    types: tuple[tuple[str, str], ...] = ()

    def write(self, text: str) -> str:
        for name, own in self.types:
            text = re.sub(rf"\b{name}\b", own, text)
        return text.replace("{id}", self.id)


SQLITE = Dialect(
    id="INTEGER PRIMARY KEY AUTOINCREMENT",
    types=(("BIGINT", "INTEGER"), ("SMALLINT", "INTEGER")),
)
POSTGRES = Dialect(id="BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY")


def _parse(version: int, text: str, dialect: Dialect) -> Migration:
    description = text.partition("\n")[0].removeprefix("--").strip()
    bare = re.sub(r"--[^\n]*", "", text)
    statements = tuple(dialect.write(part.strip()) for part in bare.split(";") if part.strip())
    return Migration(version=version, description=description, statements=statements)


def migrations(dialect: Dialect) -> tuple[Migration, ...]:
    """All that this program knows, ascending and without gaps from 1."""
    found = sorted(
        (int(match[1]), entry.read_text("utf-8"))
        for entry in files("identree.storage.schema").iterdir()
        if (match := _NAME.fullmatch(entry.name))
    )
    if [version for version, _ in found] != list(range(1, len(found) + 1)):
        raise RuntimeError(f"schema files are not numbered 1, 2, 3, ...: {[version for version, _ in found]}")
    return tuple(_parse(version, text, dialect) for version, text in found)


def pending(current: int, known: Sequence[Migration]) -> list[Migration]:
    """
    What is still to be done.

    :raise SchemaTooNew: the database is ahead of this program.
    """
    newest = known[-1].version
    if current > newest:
        raise SchemaTooNew(
            f"the database has schema version {current}, but this identree knows only up to version {newest}: "
            "start the newer identree that migrated it, or restore the copy that was made before the migration"
        )
    return [migration for migration in known if migration.version > current]


def steps(migration: Migration, applied_at: int) -> Iterator[Statement]:
    """The statements of one migration, its version row last; to be run in one transaction."""
    for statement in migration.statements:
        yield statement, {}
    yield (
        _RECORD,
        {"version": migration.version, "description": migration.description, "applied_at": applied_at},
    )
