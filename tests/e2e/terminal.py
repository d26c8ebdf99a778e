"""
What a terminal shows after it was sent some output: enough of ECMA-48 for what the agent and a shell write, and a page
that a browser makes a picture of.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from html import escape

_CSI = re.compile(r"\x1b\[([0-9;?]*)([ -/]*[@-~])")
_OSC = re.compile(r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")

_BACKGROUND, _FOREGROUND = "#16181d", "#dfe3ea"
# The eight colours and their bright forms, as many terminals draw them.
_COLOURS = ("#16181d", "#e06c62", "#6fc276", "#e0b050", "#6ca4e8", "#c08ae0", "#5fc0c8", "#dfe3ea")
_BRIGHT = ("#5c6370", "#ff8a80", "#8fe096", "#ffd070", "#8cc0ff", "#dcb0ff", "#80e0e8", "#ffffff")


@dataclass(frozen=True)
class Style:
    foreground: str = _FOREGROUND
    background: str = _BACKGROUND
    bold: bool = False


@dataclass(frozen=True)
class Cell:
    char: str
    style: Style


class Terminal:
    """A screen of ``columns`` that grows downwards for ever."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._rows: list[list[Cell]] = [[]]
        self._row = self._column = 0
        self._style = Style()

    def feed(self, output: str) -> None:
        at = 0
        while at < len(output):
            if sequence := _OSC.match(output, at):
                at = sequence.end()
                continue
            if sequence := _CSI.match(output, at):
                self._control(sequence[1], sequence[2])
                at = sequence.end()
                continue
            self._character(output[at])
            at += 1

    @property
    def lines(self) -> list[str]:
        """The text of the screen, without trailing blanks."""
        return ["".join(cell.char for cell in row).rstrip() for row in self._rows]

    def _character(self, char: str) -> None:
        if char == "\r":
            self._column = 0
        elif char == "\n":
            self._row += 1
            while len(self._rows) <= self._row:
                self._rows.append([])
        elif char == "\b":
            self._column = max(0, self._column - 1)
        elif char >= " ":
            if self._column >= self._columns:
                self._character("\n")
                self._column = 0
            row = self._rows[self._row]
            while len(row) <= self._column:
                row.append(Cell(" ", Style()))
            row[self._column] = Cell(char, self._style)
            self._column += 1

    def _control(self, parameters: str, final: str) -> None:
        if final == "K" and parameters in ("", "0"):
            del self._rows[self._row][self._column :]
        elif final == "m":
            self._graphics([int(number or 0) for number in parameters.split(";")])

    def _graphics(self, numbers: list[int]) -> None:
        """SGR: the ones in use."""
        style = self._style
        while numbers:
            number = numbers.pop(0)
            if number == 0:
                style = Style()
            elif number in (1, 22):
                style = replace(style, bold=number == 1)
            elif 30 <= number <= 37:
                style = replace(style, foreground=_COLOURS[number - 30])
            elif 40 <= number <= 47:
                style = replace(style, background=_COLOURS[number - 40])
            elif 90 <= number <= 97:
                style = replace(style, foreground=_BRIGHT[number - 90])
            elif number == 39:
                style = replace(style, foreground=_FOREGROUND)
            elif number == 49:
                style = replace(style, background=_BACKGROUND)
            elif number in (38, 48) and numbers[:1] == [5]:
                colour = _of_256(numbers[1])
                del numbers[:2]
                style = replace(style, **{"foreground" if number == 38 else "background": colour})
        self._style = style

    def html(self) -> str:
        """A page that shows the screen in a window; block characters are drawn, so that no font tears them."""
        rows = list(self._rows)
        while rows and not "".join(cell.char for cell in rows[-1]).strip():
            rows.pop()
        return _PAGE % {
            "background": _BACKGROUND,
            "columns": self._columns,
            "rows": "".join(f"<div>{_row(row)}</div>" for row in rows),
        }


def _row(row: list[Cell]) -> str:
    out: list[str] = []
    at = 0
    while at < len(row):
        style, end = row[at].style, at
        while end < len(row) and row[end].style == style and (row[end].char in " ▀▄█") == (row[at].char in " ▀▄█"):
            end += 1
        text = "".join(cell.char for cell in row[at:end])
        if row[at].char in " ▀▄█":
            out.extend(_block(char, style) for char in text)
        else:
            weight = ";font-weight:700" if style.bold else ""
            out.append(
                f'<span style="width:{len(text)}ch;color:{style.foreground};background:{style.background}{weight}">'
                f"{escape(text)}</span>"
            )
        at = end
    return "".join(out)


def _block(char: str, style: Style) -> str:
    upper = style.foreground if char in "▀█" else style.background
    lower = style.foreground if char in "▄█" else style.background
    return f'<i style="background:linear-gradient({upper} 50%,{lower} 50%)"></i>'


def _of_256(number: int) -> str:
    if number < 16:
        return (_COLOURS + _BRIGHT)[number]
    if number >= 232:
        level = 8 + 10 * (number - 232)
        return f"#{level:02x}{level:02x}{level:02x}"
    levels = (0, 95, 135, 175, 215, 255)
    number -= 16
    return f"#{levels[number // 36]:02x}{levels[number // 6 % 6]:02x}{levels[number % 6]:02x}"


_PAGE = """<!doctype html>
<meta charset="utf-8">
<style>
body { margin: 0; background: transparent; }
main { display: inline-block; background: %(background)s; border-radius: 10px; overflow: hidden; }
header { height: 32px; background: #23262e; display: flex; gap: 8px; align-items: center; padding-left: 14px; }
header b { width: 11px; height: 11px; border-radius: 50%%; background: #454a57; }
pre {
  margin: 0; padding: 14px 18px 18px; min-width: calc(%(columns)sch); font: 16px/20px "DejaVu Sans Mono", monospace;
}
pre div { height: 20px; white-space: pre; }
pre span { display: inline-block; height: 20px; vertical-align: top; overflow: visible; }
pre i { display: inline-block; width: 1ch; height: 20px; vertical-align: top; }
</style>
<main><header><b></b><b></b><b></b></header><pre>%(rows)s</pre></main>
"""
