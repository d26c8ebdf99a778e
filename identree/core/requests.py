"""
Which request the running code works for.

The HTTP listener sets it; it follows every coroutine that is started meanwhile, so that log lines and audit records of
one request can be found together. Threads do not have it: what needs it there takes it along.
"""

from __future__ import annotations

from contextvars import ContextVar

# 16 hex digits, the X-Request-ID of the answer; empty outside of a request.
current: ContextVar[str] = ContextVar("identree_request_id", default="")
