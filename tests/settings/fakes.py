"""A machine's configuration files, in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from identree.settings.files import File
from identree.settings.load import load
from identree.settings.values import Settings

CONF = "/etc/identree/identree.conf"
TOML = "/etc/identree/identree.toml"
OLD_TOML = "/etc/identree/config.toml"

SECRET = "0123456789abcdef0123456789abcdef"
# all that the server needs to start
MINIMUM = {
    "OIDC_ISSUER_URL": "https://id.example.com",
    "OIDC_CLIENT_ID": "identree",
    "OIDC_CLIENT_SECRET": "client secret",
    "EXTERNAL_URL": "https://identree.example.com",
    "SHARED_SECRET": SECRET,
    "LDAP_BASE_DN": "dc=example,dc=com",
}


class Files:
    """
    Path to text; bytes for what is no text, an OSError for what cannot be read.
    """

    def __init__(self, contents: Mapping[str, str | bytes | OSError], modes: Mapping[str, int] | None = None) -> None:
        self._contents, self._modes = contents, modes or {}

    def read(self, path: str) -> File:
        content = self._contents.get(path)
        if content is None:
            raise FileNotFoundError(2, "No such file or directory", path)
        if isinstance(content, OSError):
            raise content
        raw = content.encode() if isinstance(content, str) else content
        return File(raw, self._modes.get(path, 0o600))


def environment(**variables: str) -> dict[str, str]:
    """The minimum and more; an empty text takes a variable away."""
    return {f"IDENTREE_{name}": value for name, value in {**MINIMUM, **variables}.items() if value}


def loaded(
    files: Mapping[str, str | bytes | OSError] | None = None,
    modes: Mapping[str, int] | None = None,
    /,
    **variables: str,
) -> Settings:
    return load(environment(**variables), read=Files(files or {}, modes).read)


def directory(test: SynchronousTestCase) -> Path:
    """A temporary directory that is gone after the test."""
    temporary = tempfile.TemporaryDirectory()
    test.addCleanup(temporary.cleanup)
    return Path(temporary.name)
