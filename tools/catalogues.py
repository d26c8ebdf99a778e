"""
The translations.

    catalogues.py extract    write templates/locale/identree.pot from the sources
    catalogues.py update     extract, and merge into every language; new messages are empty outside English
    catalogues.py compile    write the .mo files beside their sources
    catalogues.py check      say what is missing or stale; exit 1 if anything is
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

ROOT = Path(__file__).resolve().parent.parent
LOCALE = ROOT / "templates" / "locale"
DOMAIN = "identree"
SOURCE_LANGUAGE = "en"

# Where messages stand: directory, patterns and methods, options.
SOURCES: tuple[tuple[str, list[tuple[str, str]], dict[str, dict[str, str]]], ...] = (
    ("identree/web", [("**.py", "python")], {}),
    ("templates/pages", [("**.html", "jinja2")], {"**.html": {"trimmed": "true", "silent": "false"}}),
)
KEYWORDS: dict[str, tuple[int, ...] | None] = {
    "_": None,
    "N_": None,
    "gettext": None,
    "ngettext": (1, 2),
    # what `ngettext` is called where it is a local name
    "many": (1, 2),
}


def extract() -> Catalog:
    """All messages of the sources, with the files that use them; line numbers would change with every edit."""
    catalogue = Catalog(project="identree", charset="utf-8")
    for directory, methods, options in SOURCES:
        found = extract_from_dir(ROOT / directory, methods, options, keywords=KEYWORDS)
        for name, _line, message, comments, context in sorted(found, key=lambda item: (item[0], item[1])):
            catalogue.add(message, locations=[(f"{directory}/{name}", 0)], auto_comments=comments, context=context)
    return catalogue


def languages() -> list[str]:
    return sorted(path.parent.parent.name for path in LOCALE.glob(f"*/LC_MESSAGES/{DOMAIN}.po"))


def source_path(language: str) -> Path:
    return LOCALE / language / "LC_MESSAGES" / f"{DOMAIN}.po"


def read(language: str) -> Catalog:
    with source_path(language).open("rb") as stream:
        return read_po(stream, locale=language)


def _text(catalogue: Catalog) -> bytes:
    """Without dates, so that the same sources give the same bytes."""
    out = io.BytesIO()
    write_po(
        out, catalogue, width=110, include_lineno=False, sort_output=True, omit_header=True, include_previous=False
    )
    return out.getvalue()


def _with_header(catalogue: Catalog, language: str | None) -> bytes:
    header = ['msgid ""', 'msgstr ""', '"Content-Type: text/plain; charset=utf-8\\n"']
    if language is not None:
        header += [f'"Language: {language}\\n"', f'"Plural-Forms: {catalogue.plural_forms}\\n"']
    return ("\n".join(header) + "\n\n").encode() + _text(catalogue)


def pot() -> bytes:
    """The bytes of ``identree.pot``."""
    return _with_header(extract(), None)


def updated(language: str) -> bytes:
    """The bytes of a language's catalogue, with the messages of the sources and no others."""
    catalogue = read(language)
    template = extract()
    catalogue.update(template, no_fuzzy_matching=True)
    catalogue.obsolete.clear()
    if language == SOURCE_LANGUAGE:
        for message in catalogue:
            if message.id:
                message.string = message.id
    return _with_header(catalogue, language)


def problems() -> Iterator[str]:
    """What is missing, doubtful or stale, one line each."""
    template = LOCALE / f"{DOMAIN}.pot"
    if not template.exists() or template.read_bytes() != pot():
        yield f"{template.relative_to(ROOT)}: not what the sources say; run tools/catalogues.py update"
    wanted = {message.id for message in extract() if message.id}
    for language in languages():
        catalogue = read(language)
        where = source_path(language).relative_to(ROOT)
        present = {message.id: message for message in catalogue if message.id}
        for id in sorted(wanted - set(present), key=str):
            yield f"{where}: missing: {id!r}"
        for id in sorted(set(present) - wanted, key=str):
            yield f"{where}: not used any more: {id!r}"
        for id, message in present.items():
            strings = message.string if isinstance(message.string, tuple | list) else (message.string,)
            if not all(strings) or (message.pluralizable and len(strings) < catalogue.num_plurals):
                yield f"{where}: not translated: {id!r}"
            if message.fuzzy:
                yield f"{where}: fuzzy: {id!r}"
            for error in message.check(catalogue):
                yield f"{where}: {error}: {id!r}"


def compile_all() -> None:
    for language in languages():
        with source_path(language).with_suffix(".mo").open("wb") as stream:
            write_mo(stream, read(language))


def main(arguments: list[str]) -> int:
    command = arguments[0] if len(arguments) == 1 else ""
    if command in ("extract", "update"):
        (LOCALE / f"{DOMAIN}.pot").write_bytes(pot())
        if command == "update":
            for language in languages():
                source_path(language).write_bytes(updated(language))
    elif command == "compile":
        compile_all()
    elif command == "check":
        found = list(problems())
        print("\n".join(found) or "all messages are translated")
        return 1 if found else 0
    else:
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
