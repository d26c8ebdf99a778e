"""
What the person sees: their terminal itself when it can be trusted and used, else plain lines through pam_exec.

On the terminal: the request, a QR code when it fits, one line that lives, and the result. (visual.md, "The terminal")
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import struct
import termios
import time

from identree.agent import messages
from identree.agent.text import clean, note

TYPE_CHECKING = False
if TYPE_CHECKING:
    from identree.agent.caller import Caller
    from identree.agent.watch import Watch

# A narrower terminal wraps the code into noise.
QR_MIN_COLUMNS = 60

# Lines around the code that should stay in view with it.
QR_OTHER_LINES = 7

# A longer URL makes a code that no phone reads from a screen.
QR_MAX_BYTES = 200

# A person who has not answered by then is not there (section 5.2).
PROMPT_SECONDS = 60.0
MAX_ANSWER_BYTES = 4096

# A terminal that takes nothing (Ctrl-S) delays us this long, not for ever.
WRITE_SECONDS = 1.0
LIVE_WRITE_SECONDS = 0.05

# Terminals that know hyperlinks, or pass over them; others might print them.
_LINKING = ("xterm", "tmux", "screen", "foot", "alacritty", "kitty", "wezterm", "ghostty")

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_SPINNER_ASCII = "|/-\\"
_COLOURS = {"good": "32", "bad": "31", "wait": "33"}


class Screen:
    """
    :ivar terminal: the person's terminal is used directly; else lines go through pam_exec.
    :ivar lang: the person's language.
    """

    def __init__(self, caller: Caller, *, color: bool = True) -> None:
        environ = caller.environ
        self.lang = messages.language(environ)
        self._utf8 = messages.utf8(environ)
        self._term = environ.get("TERM", "")
        self._fd = open_terminal(caller.tty, caller.pid) if self._term != "dumb" else -1
        self.terminal = self._fd >= 0
        self._color = self.terminal and color and not environ.get("NO_COLOR") and bool(self._term)
        self._escapes = bool(self._term)
        self._live = ""
        self._frame = 0

    def say(self, key: str, **values: object) -> str:
        return messages.say(self.lang, key, **values)

    def line(self, text: str = "") -> None:
        """One whole line, above the living one."""
        if not self.terminal:
            note(text)
            return
        self.clear()
        self._write(text + "\r\n")

    def result(self, key: str, word: str, **values: object) -> None:
        """The last line. :param word: ``good``, ``bad`` or ``wait``, for the colour."""
        self.line("  " + self.coloured(self.say(key, **values), word))

    def problem(self, key: str, **values: object) -> None:
        """A refusal or failure, and what to do about it."""
        self.line("identree: " + self.say(key, **values))

    def request(self, url: str, code: str, *, notified: bool) -> None:
        """What is asked, where to go, the code."""
        self.line("  " + self.coloured(self.say("requires_approval"), "wait"))
        if url:
            self.line("  " + self.say("approve_at", url=self._link(url)))
        shown = f"\x1b[1m{code}\x1b[22m" if self._color else code
        self.line("  " + self.say("code", code=shown) + (f"  ({self.say('notification_sent')})" if notified else ""))
        if url and self.terminal:
            self._qr(url)

    def status(self, *parts: str) -> None:
        """The living line, rewritten in place; nothing when lines go through pam_exec."""
        if not self.terminal or not self._escapes:
            return
        frames = _SPINNER if self._utf8 else _SPINNER_ASCII
        self._frame = (self._frame + 1) % len(frames)
        text = f"  {frames[self._frame]} " + (" · " if self._utf8 else ", ").join(part for part in parts if part)
        text = text[: max(10, self._size()[1] - 1)]
        if text != self._live:
            self._live = text
            self._write(f"\r{text}\x1b[K", LIVE_WRITE_SECONDS)

    def clear(self) -> None:
        if self._live:
            self._live = ""
            self._write("\r\x1b[K")

    def coloured(self, text: str, word: str) -> str:
        return f"\x1b[{_COLOURS[word]}m{text}\x1b[39m" if self._color else text

    def choose(self, choices: list[str], watch: Watch) -> str:
        """
        Ask for a reason: one of ``choices`` or free text (section 5.2). Empty when none was given in time or no
        terminal is there to ask at.
        """
        if not self.terminal:
            return ""
        if not choices:
            return self._ask(self.say("justification_text"), watch) or ""
        self.line("  " + self.say("justification_heading"))
        other = len(choices) + 1
        for number, choice in enumerate([*choices, self.say("justification_other")], 1):
            self.line(f"  [{number}] {choice}")
        answer = self._ask(self.say("justification_choice", default=other), watch)
        if answer is None:
            return ""
        if answer in ("", str(other)):
            return self._ask(self.say("justification_text"), watch) or ""
        if answer.isascii() and answer.isdigit() and len(answer) < 4 and 1 <= int(answer) <= len(choices):
            return choices[int(answer) - 1]
        return answer

    def _ask(self, prompt: str, watch: Watch) -> str | None:
        """A line typed at the terminal, in cooked mode with echo; None when none came in time."""
        before = termios.tcgetattr(self._fd)
        cooked = [*before[:3], before[3] | termios.ICANON | termios.ECHO | termios.ISIG, *before[4:]]
        cooked[0] = before[0] | termios.ICRNL
        data, until = b"", time.monotonic() + PROMPT_SECONDS
        try:
            termios.tcsetattr(self._fd, termios.TCSANOW, cooked)
            termios.tcflush(self._fd, termios.TCIFLUSH)  # what was typed before the question is no answer
            self._write("  " + prompt)
            while b"\n" not in data and len(data) < MAX_ANSWER_BYTES:
                if not watch.wait(self._fd, writing=False, until=until):
                    self._write("\r\n")
                    return None
                try:
                    chunk = os.read(self._fd, MAX_ANSWER_BYTES)
                except BlockingIOError:
                    continue
                if not chunk:
                    return None
                data += chunk
        except (OSError, termios.error):
            return None
        finally:
            try:
                termios.tcsetattr(self._fd, termios.TCSANOW, before)
            except (OSError, termios.error):
                pass
        return clean(data.split(b"\n")[0].decode("utf-8", "replace"))

    def _link(self, url: str) -> str:
        if not self._color or not self._term.startswith(_LINKING):
            return url
        return f"\x1b]8;;{url}\x1b\\{url}\x1b]8;;\x1b\\"

    def _qr(self, url: str) -> None:
        data = url.encode()
        rows, columns = self._size()
        if not self._utf8 or columns < QR_MIN_COLUMNS or len(data) > QR_MAX_BYTES:
            return
        from identree.agent import qr

        drawn = half_blocks(qr.encode(data))
        if len(drawn) + QR_OTHER_LINES > rows or len(drawn[0]) + 2 > columns:
            return
        # Dark on light whatever the terminal's colours; without colours a dark background is assumed.
        light, dark = ("38;5;231", "48;5;16") if "256color" in self._term else ("97", "40")
        for number, text in enumerate(drawn, 1):
            # the lower half of the last line is not part of the code
            colours = light if number == len(drawn) else f"{light};{dark}"
            self.line("  " + (f"\x1b[{colours}m{text}\x1b[39;49m" if self._color else text))

    def _size(self) -> tuple[int, int]:
        """Rows and columns; zero when the terminal does not say."""
        try:
            rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(self._fd, termios.TIOCGWINSZ, b"\0" * 8))
        except OSError:
            return 0, 80
        return rows, columns or 80

    def _write(self, text: str, seconds: float = WRITE_SECONDS) -> None:
        data = text.encode("utf-8" if self._utf8 else "ascii", "replace")
        until = time.monotonic() + seconds
        while data and time.monotonic() < until:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:
                select.select([], [self._fd], [], min(seconds, 0.1))
            except OSError:
                return


def half_blocks(modules: list[list[bool]]) -> list[str]:
    """Two rows of modules per line of text, light modules drawn, with a quiet zone of two modules."""
    size = len(modules) + 4
    framed = [[False] * size for _ in range(2)]
    framed += [[False, False, *row, False, False] for row in modules]
    framed += [[False] * size for _ in range(2)]
    if len(framed) % 2:
        framed.append([True] * size)  # no light half row below the quiet zone
    lines = []
    for upper, lower in zip(framed[::2], framed[1::2]):
        lines.append("".join(" ▄▀█"[(not u) * 2 + (not v)] for u, v in zip(upper, lower)))
    return lines


def open_terminal(path: str, parent: int) -> int:
    """
    The terminal that PAM names, open for reading and writing, or -1.

    It must be a terminal, and that of our caller: its controlling terminal, or one that belongs to root or to us.
    Otherwise a name in PAM_TTY could make root write to somebody else's screen.
    """
    if not path.startswith("/dev/") or ".." in path or len(path) > 64:
        return -1
    flags = os.O_RDWR | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(path, flags)
    except OSError:
        return -1
    info = os.fstat(fd)
    if stat.S_ISCHR(info.st_mode) and os.isatty(fd):
        if info.st_uid in (0, os.geteuid()) or info.st_rdev in (_controlling(parent), _controlling(os.getpid())):
            return fd
    os.close(fd)
    return -1


def _controlling(pid: int) -> int:
    """The device of a process's controlling terminal (proc(5), field 7 of stat), or -1."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read(4096).rpartition(b")")[2].split()
        number = int(fields[4]) & 0xFFFFFFFF
    except (OSError, ValueError, IndexError):
        return -1
    if not number:
        return -1
    return os.makedev(number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00)
