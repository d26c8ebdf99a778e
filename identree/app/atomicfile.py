"""Files that are replaced whole: whoever reads one sees the old or the new content, also after a power cut."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress

# What a writer that died left behind is younger than this only by accident; on a shared volume it may be another
# replica's, which is at work.
LEFTOVER_SECONDS = 3600


def replace_file(path: str, content: bytes, prefix: str, *, make_directory: bool = False) -> None:
    """
    Blocks.

    :param prefix: of the temporary file's name, in the same directory.
    :param make_directory: make a missing directory, for its owner only.
    :raise OSError: nothing has changed.
    """
    directory = os.path.dirname(path) or "."
    if make_directory:
        os.makedirs(directory, mode=0o700, exist_ok=True)
    temporary = os.path.join(directory, f"{prefix}{secrets.token_hex(8)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(directory)


def sync_directory(directory: str) -> None:
    """Make renames in it durable. Blocks."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(path: str, prefix: str, now_unix: float) -> list[str]:
    """
    Delete temporary files of writers that died, beside ``path``. Blocks.

    :returns: their names.
    """
    removed: list[str] = []
    try:
        entries = list(os.scandir(os.path.dirname(path) or "."))
    except OSError:
        return removed
    for entry in entries:
        if not entry.name.startswith(prefix):
            continue
        with suppress(OSError):
            if entry.is_file(follow_symlinks=False) and now_unix - entry.stat().st_mtime > LEFTOVER_SECONDS:
                os.unlink(entry.path)
                removed.append(entry.name)
    return removed
