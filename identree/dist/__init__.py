"""
What runs on hosts before there is an agent, or after it: the install script and the uninstall script. They hold nothing
of any deployment, so that one signature is good for all.
"""

from __future__ import annotations

from importlib.resources import files

INSTALL, UNINSTALL = "install.sh", "uninstall.sh"


def read(name: str) -> bytes:
    """The content of a script. Blocks; for the start of the server."""
    return files(__name__).joinpath(name).read_bytes()
