"""
From the answer to the challenge request to the end (spec/host-agent sections 5.1 B to F, 5.2, 6, 7).

Nothing opens but an approval that carries this host's signature (when the host has a secret). Everything that is not
signed can at most end the wait without opening. The one way round is the break-glass password, and the one thing that
leads to it is a server that cannot be reached: no connection, or a gateway that says so in place of an answer.
"""

from __future__ import annotations

import json
import time

from identree.agent import config as configuration
from identree.agent import journal, pam, places, tokens, watch
from identree.agent.messages import remaining
from identree.agent.screen import Screen
from identree.agent.text import clean
from identree.agent.wire import Client, Response, Unreachable, Untrusted, WireError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from identree.agent.caller import Caller
    from identree.agent.config import Config

# An unreachable server is tried for this long in all (section 19.8): a restart is bridged, a person not annoyed.
RETRY_SECONDS = 6.0
RETRY_PAUSE_SECONDS = 1.0
RETRY_CONNECT_SECONDS = 2.0

# How long the server is asked to hold a poll, and what its answer may take beyond that.
HOLD_SECONDS = 25
HOLD_GRACE_SECONDS = 10.0

# Classic polling, for servers that answer at once: (age of the wait, pause) until the configured interval applies.
_EARLY = ((10.0, 0.5), (30.0, 1.0))

# The server's clock for the challenge began a little before ours.
EXPIRY_MARGIN_SECONDS = 2.0

# Withdrawing the request is a courtesy; a person who pressed Ctrl-C does not wait longer for it.
CANCEL_SECONDS = 2.0

MAX_BACKOFF_SECONDS = 30.0

# After so many failures in a row the person is told.
SILENT_AFTER = 3

# After more than so many, if it is that the server cannot be reached, the break-glass password is asked for. Until
# then the pauses are short: a person waits, and connections that nobody answers burden nobody.
VANISHED_AFTER = 5
VANISHING_PAUSE_SECONDS = 4.0

# What a gateway says when there is nobody behind it.
_GATEWAY = (502, 503, 504)

MAX_CHOICES = 20

_ID_CHARACTERS = frozenset("0123456789abcdef")


class Failure(Exception):
    """
    The end without approval.

    :ivar key: the message.
    :ivar result: for the log.
    :ivar plain: a result, not a problem with a remedy.
    :ivar retry_after: seconds that the server asks to wait; 0 when it does not say.
    :ivar unreachable: the server cannot be reached, which is what break-glass is for; nothing else is.
    """

    def __init__(
        self,
        key: str,
        result: str,
        *,
        plain: bool = False,
        serious: bool = False,
        retry_after: int = 0,
        unreachable: bool = False,
        **values: object,
    ) -> None:
        super().__init__(key)
        self.retry_after, self.unreachable = retry_after, unreachable
        self.key, self.result, self.plain, self.serious, self.values = key, result, plain, serious, values


class Flow:
    """
    One request for approval, for one person at one terminal.

    :param begun: the monotonic instant at which the server was first tried.
    """

    def __init__(
        self, config: Config, client: Client, watch_: watch.Watch, caller: Caller, user: str, begun: float
    ) -> None:
        self._config, self._client, self._watch, self._caller, self._user = config, client, watch_, caller, user
        self._begun = begun
        self._screen = Screen(caller, color=config.color)
        self._challenge = ""
        self._rotate = self._revoke = ""
        self._told = True
        self._progress, self._problem, self._offline = "", False, False
        self._pushed: dict[str, object] = {}
        journal.enabled = config.syslog

    def run(self, first: Response | BaseException | None) -> int:
        """
        The exit code.

        :param first: the answer to the first challenge request, or what became of it; None when there may be a kept
            token, and nobody has been asked yet.
        """
        for warning in self._config.warnings:
            journal.record(result="warning", detail=warning)
        if not self._config.secret:
            journal.record(result="warning", detail="no IDENTREE_SHARED_SECRET: answers are not verified")
        try:
            try:
                self._flow(first)
            except Failure as e:
                self._break_glass(e)
            return 0
        except Failure as e:
            values = {
                "server": self._config.server_url,
                "conf": self._config.path,
                "user": self._user,
                "host": self._config.hostname,
                **e.values,
            }
            if e.plain:
                self._screen.result(e.key, "bad", **values)
            else:
                self._screen.problem(e.key, **values)
            if e.retry_after:
                self._screen.line("  " + self._screen.say("try_in", seconds=e.retry_after))
            detail = str(e.values.get("detail") or e.values.get("reason") or "")
            self._record(e.result, reason=e.key, status=e.values.get("status", ""), detail=detail, serious=e.serious)
        except watch.Left as e:
            watch.leave_on_signals()
            if not self._offline:
                self._cancel()
            if isinstance(e, watch.ParentGone):
                self._record("abandoned", reason="parent process ended")
            else:
                self._screen.result("breakglass_interrupted" if self._offline else "cancelled", "wait")
                self._record("cancelled", reason="interrupted")
        finally:
            self._screen.clear()
        return 1

    def _flow(self, first: Response | BaseException | None) -> None:
        if first is None:
            if self._kept_token_counts():
                return
            self._begun = time.monotonic()
            first = self._create(self._caller.reason, pam.FIRST_CONNECT_SECONDS)
        answer = self._created(first)
        identity, code = _text(answer, "challenge_id"), clean(_text(answer, "user_code"), 32)
        if len(identity) != 32 or not set(identity) <= _ID_CHARACTERS:
            raise Failure("no_answer", "error", detail="invalid challenge ID format")
        self._challenge = identity
        self._rotate, self._revoke = _text(answer, "rotate_breakglass_before"), _text(answer, "revoke_tokens_before")
        pushed = answer.get("client_config")
        self._pushed = pushed if isinstance(pushed, dict) else {}
        if answer.get("status") == "approved":
            self._approved(answer)
            self._report()
            return
        if not self._caller.interactive:
            self._cancel()
            raise Failure("non_interactive", "refused")
        self._config.push(self._pushed)
        notified = answer.get("notification_queued") is True or answer.get("notification_sent") is True
        self._screen.request(_url(answer), code, notified=notified)
        journal.record(user=self._user, challenge=identity[:8], result="pending")
        self._report()
        limit = self._config.timeout
        expires = _number(answer, "expires_in")
        if expires > 0:
            limit = min(limit, expires + EXPIRY_MARGIN_SECONDS)
        self._await_decision(limit)

    # The token cache (section 5.1 A)

    def _kept_token_counts(self) -> bool:
        """
        Whether the person has a kept token, and the server lets it count; then they are in.

        :raise Failure: the server does not say so, and can be reached: that must not look like having no token.
        """
        from identree.agent import tokencache

        hit = tokencache.lookup(self._config, self._user, self._config.hostname, watch=self._watch)
        if hit is None:
            return False
        try:
            left = tokencache.session(self._client, self._config, self._user, hit)
        except tokencache.Refused as e:
            serious = e.status in (401, 403)
            key = "refused" if serious else "throttled" if e.status == 429 else "other_status"
            raise Failure(key, "refused", serious=serious, status=e.status) from None
        except Untrusted as e:
            raise Failure("untrusted", "error", serious=True, detail=clean(str(e), 200)) from None
        except WireError as e:
            raise Failure("no_answer", "error", detail=clean(str(e), 200)) from None
        if left is None:
            return False
        self._screen.result("approved_for", "good", left=remaining(self._screen.lang, left))
        self._record("approved", reason="kept token")
        self._look_after()
        self._report()
        return True

    # Creation

    def _created(self, first: Response | BaseException) -> dict[str, object]:
        """
        The body of the created challenge, after retries and the question for a reason where needed.

        :raise Failure: no challenge came about.
        """
        reason = self._caller.reason
        asked = False
        outcome = first
        while True:
            if _unreachable(outcome):
                outcome = self._retry(outcome, reason)
            if isinstance(outcome, Unreachable):
                raise Failure("unreachable", "unreachable", unreachable=True, detail=str(outcome))
            if isinstance(outcome, Untrusted):
                raise Failure("untrusted", "error", serious=True, detail=clean(str(outcome), 200))
            if isinstance(outcome, WireError):
                raise Failure("no_answer", "error", detail=clean(str(outcome), 200))
            if not isinstance(outcome, Response):
                raise outcome
            if outcome.status in (200, 201):
                return _object(outcome)
            if outcome.status == 422 and not asked:
                reason, asked = self._justify(outcome), True
            elif outcome.status == 400 and self._told:
                self._told = (
                    False  # a server that is stricter than we know; the plain request is as old as the protocol
                )
            else:
                raise self._refusal(outcome)
            outcome = self._create(reason)

    def _create(self, reason: str, connect_timeout: float = RETRY_CONNECT_SECONDS) -> Response | Exception:
        request = pam.encode(self._user, self._config.hostname, self._caller, reason, told=self._told)
        try:
            return self._client.request("POST", "/api/challenge", request, connect_timeout=connect_timeout)
        except (Unreachable, WireError) as e:
            return e

    def _retry(self, outcome: Response | BaseException, reason: str) -> Response | BaseException:
        """
        Try until :data:`RETRY_SECONDS` have passed since the beginning, but once at least: the last outcome when it
        stays so.
        """
        now = time.monotonic()
        until = max(self._begun + RETRY_SECONDS, now + RETRY_PAUSE_SECONDS + RETRY_CONNECT_SECONDS)
        detail = f"HTTP {outcome.status}" if isinstance(outcome, Response) else str(outcome)
        server = self._config.server_url
        self._screen.problem("retrying", server=server, detail=detail, seconds=max(1, round(until - now)))
        while until - time.monotonic() > RETRY_PAUSE_SECONDS:
            self._watch.sleep(RETRY_PAUSE_SECONDS)
            outcome = self._create(reason, min(RETRY_CONNECT_SECONDS, max(until - time.monotonic(), 0.1)))
            if not _unreachable(outcome):
                break
        return outcome

    def _justify(self, response: Response) -> str:
        body = _object(response, tolerant=True)
        if body.get("error") != "justification_required":
            raise self._refusal(response)
        offered = body.get("justification_choices")
        choices = (
            [clean(choice, 200) for choice in offered if isinstance(choice, str)] if isinstance(offered, list) else []
        )
        choices = [choice for choice in choices if choice][:MAX_CHOICES]
        reason = self._screen.choose(choices, self._watch) if self._caller.interactive else ""
        if not reason:
            raise Failure("justification_required", "refused")
        return reason

    def _refusal(self, response: Response) -> Failure:
        status = response.status
        said = clean(_text(_object(response, tolerant=True), "error"), 200)
        if status == 429:
            key = "throttled" if "fail" in said else "too_many_pending"
            after = response.headers.get("retry-after", "")
            if after.isascii() and after.isdigit() and len(after) < 6:
                return Failure(key, "refused", status=status, retry_after=int(after))
            return Failure(key, "refused", status=status)
        if status in (401, 403):
            return Failure("refused", "refused", serious=True, status=status)
        if 300 <= status < 400:
            target = clean(response.headers.get("location", ""), 200) or "another address"
            return Failure("redirected", "error", status=status, detail=target)
        if status >= 500:
            gone = status in _GATEWAY and not self._challenge
            return Failure("server_error", "error", unreachable=gone, status=status, detail=said)
        if status in (400, 415, 422):
            return Failure("bad_request", "error", status=status, detail=said or f"HTTP {status}")
        return Failure("other_status", "error", status=status, detail=said)

    # The wait

    def _await_decision(self, limit: float) -> None:
        """
        Poll until the challenge is decided or ``limit`` seconds are over.

        :raise Failure: denied, expired, or an approval that is not genuine.
        """
        begun = time.monotonic()
        until = begun + limit
        self._watch.on_tick = lambda: self._show(until)
        failures, counted, told = 0, -1.0, False
        try:
            while True:
                asked = time.monotonic()
                hold = max(0, min(HOLD_SECONDS, int(until - asked)))
                pause = self._classic_pause(asked - begun)
                try:
                    response = self._poll(hold, max(until - asked, 0.0))
                    answer = self._judge(response)
                except (Unreachable, WireError) as e:
                    failures += 1
                    if failures == 1 or failures % 10 == 0:
                        self._record("poll failed", reason=clean(str(e), 200))
                    pause = _backoff(failures, e)
                    if isinstance(e, Unreachable) and self._may_break_glass():
                        pause = min(pause, VANISHING_PAUSE_SECONDS)
                        if failures > VANISHED_AFTER:
                            self._screen.problem("server_vanished", server=self._config.server_url)
                            raise Failure("unreachable", "unreachable", unreachable=True, detail=str(e)) from None
                    self._problem = failures >= SILENT_AFTER
                    if self._problem and not told and not self._screen.terminal:
                        self._screen.problem("server_silent", server=self._config.server_url)
                        told = True
                else:
                    failures, self._problem = 0, False
                    if answer is None:
                        return
                    current = _number(answer, "current_approvals")
                    held = hold >= 1 and time.monotonic() - asked >= 0.8 * hold
                    if held or (counted >= 0 and current != counted):
                        pause = 0.0
                    counted = current
                    required = _number(answer, "required_approvals")
                    if required > 1:
                        self._progress = self._screen.say("approvals", count=int(current), required=int(required))
                now = time.monotonic()
                if now >= until:
                    self._cancel()
                    raise Failure("expired", "expired", plain=True)
                self._watch.sleep(min(pause, until - now))
        finally:
            self._watch.on_tick = None

    def _poll(self, hold: int, left: float) -> Response:
        path = f"/api/challenge/{self._challenge}"
        query = f"?hostname={self._config.hostname}" if self._config.hostname else ""
        if hold:
            query += f"{'&' if query else '?'}wait={hold}"
        return self._client.request(
            "GET",
            path + query,
            timeout=min(hold + HOLD_GRACE_SECONDS, left + 3.0),
            connect_timeout=pam.FIRST_CONNECT_SECONDS,
        )

    def _judge(self, response: Response) -> dict[str, object] | None:
        """
        None when approved; the answer when the wait goes on.

        :raise Failure: the end.
        :raise WireError: an answer that counts as a failure to answer.
        """
        if response.status in (404, 410):
            answer: dict[str, object] = {"status": "expired"}
        elif response.status == 200:
            answer = _object(response, tolerant=True)
            if not answer:
                raise WireError("not a JSON object")
        else:
            raise _BadStatus(response)
        status = answer.get("status")
        if status == "approved":
            self._approved(answer)
            return None
        if status == "denied":
            if self._genuine(answer, "denied", "denial_token"):
                reason = clean(_text(answer, "deny_reason"))
                if reason:
                    raise Failure("denied_reason", "denied", plain=True, reason=reason)
                raise Failure("denied", "denied", plain=True)
            self._record("ignored", reason="denial without this host's signature", serious=True)
        elif status == "expired":
            if not self._config.secret:
                raise Failure("expired", "expired", plain=True)
            self._record("ignored", reason="expiry, which nothing signs")
        elif status != "pending":
            raise Failure("unexpected_status", "error", detail=clean(str(status), 40))
        return answer

    def _approved(self, answer: dict[str, object]) -> None:
        if not self._genuine(answer, "approved", "approval_token"):
            raise Failure("forged_approval", "forged", serious=True)
        grace = int(_number(answer, "grace_remaining"))
        if grace > 0:
            self._screen.result("approved_for", "good", left=remaining(self._screen.lang, grace))
        else:
            self._screen.result("approved", "good")
        self._record("approved", reason="grace session" if answer.get("challenge_id") else "")
        self._look_after()
        if pam.keeps_tokens(self._config):  # after what was pushed, which may say no
            from identree.agent import tokencache

            token, host = _text(answer, "id_token"), self._config.hostname
            tokencache.revoke(self._config, self._user, host, self._revoke)
            if token:
                tokencache.store(self._config, self._user, host, token)

    def _genuine(self, answer: dict[str, object], status: str, field: str) -> bool:
        if not self._config.secret:
            return True
        offered = [_text(answer, field), _text(answer, field + "_derived")]
        return tokens.verify(
            offered, self._config.secret, self._challenge, status, self._user, self._rotate, self._revoke
        )

    # Break-glass (section 9)

    def _may_break_glass(self) -> bool:
        """Whether the host has a password for it, and somebody can be asked."""
        config = self._config
        return config.breakglass_enabled and self._caller.interactive and places.usable(config.breakglass_file)

    def _break_glass(self, failure: Failure) -> None:
        """
        Ask for the break-glass password when the server cannot be reached; returns when it was right.

        :raise Failure: it was not, or this is not what ``failure`` is about.
        """
        if not failure.unreachable or not self._may_break_glass():
            raise failure
        self._offline = True
        self._screen.clear()
        self._client.close()
        from identree.agent import breakglass

        caller, lang = self._caller, self._screen.lang
        try:
            breakglass.authenticate(self._config, self._watch, self._user, caller.tty, caller.pid, lang)
        except breakglass.Refused as e:
            refused = Failure(e.key, e.result, plain=e.plain, serious=True)
            refused.values = e.values
            raise refused from None
        self._screen.result("breakglass_opened", "good")

    def _report(self) -> None:
        """Uses of the break-glass password that the server does not know of, now that it answers."""
        if self._earnest() and places.to_report(places.PLACES):
            places.detach(self._report_uses)

    def _earnest(self) -> bool:
        """Whether this is no trial with another file: that must change neither this host's password nor its record."""
        return self._config.path == configuration.DEFAULT_PATH

    def _report_uses(self) -> None:
        from identree.agent import breakglass

        breakglass.report_in_background(self._config)

    def _look_after(self) -> None:
        """After a genuine approval: what was pushed, and a new break-glass password when it is due."""
        config = self._config
        # The local word counts for whether there is break-glass at all: nothing signs what is pushed.
        wanted, signalled = config.breakglass_enabled, self._rotate if config.secret else ""
        if config.secret:
            config.push_verified(self._pushed)
        now = time.time()
        if not (wanted and self._earnest()) or places.recently(places.PLACES.attempt, now, places.PAUSE_SECONDS):
            return
        if places.due(config.breakglass_file, config.rotation_days, signalled, now):
            places.detach(lambda: self._rotate_password(signalled))

    def _rotate_password(self, signalled: str) -> None:
        from identree.agent import rotation

        rotation.automatic(self._config, signalled)

    def _classic_pause(self, age: float) -> float:
        for until, pause in _EARLY:
            if age < until:
                return pause
        return self._config.poll_interval

    def _show(self, until: float) -> None:
        left = max(0, int(until - time.monotonic()))
        clock = self._screen.say("time_left", left=f"{left // 60}:{left % 60:02d}")
        if self._problem:
            self._screen.status(self._screen.say("server_silent", server=self._config.server_url), clock)
        else:
            self._screen.status(self._screen.say("waiting"), self._progress, clock)

    def _cancel(self) -> None:
        """Tell the server that nobody waits any more; a server that does not know how is none the wiser."""
        if not self._challenge:
            return
        self._watch.on_tick = None
        self._client.close()
        query = f"?hostname={self._config.hostname}" if self._config.hostname else ""
        try:
            client = Client(self._config, watch.Watch(parent=False))
            path = f"/api/challenge/{self._challenge}{query}"
            client.request("DELETE", path, timeout=CANCEL_SECONDS, connect_timeout=CANCEL_SECONDS)
            client.close()
        except (Exception, watch.Left) as e:  # a courtesy; whatever goes wrong changes nothing
            journal.record(challenge=self._challenge[:8], result="not withdrawn", reason=clean(str(e), 100))

    def _record(self, result: str, *, serious: bool = False, **fields: object) -> None:
        journal.record(serious=serious, user=self._user, challenge=self._challenge[:8], result=result, **fields)


class _BadStatus(WireError):
    """A poll answered with a status that says nothing about the challenge."""

    def __init__(self, response: Response) -> None:
        super().__init__(f"HTTP {response.status}")
        after = response.headers.get("retry-after", "")
        self.after = float(after) if after.isascii() and after.isdigit() and len(after) < 6 else 0.0


def _unreachable(outcome: object) -> bool:
    return isinstance(outcome, Unreachable) or (isinstance(outcome, Response) and outcome.status in _GATEWAY)


def _backoff(failures: int, error: Exception) -> float:
    """1, 2, 4, 8, 16, 30, 30 … seconds, or what the server asked for if that is longer."""
    pause = min(2.0 ** min(failures - 1, 5), MAX_BACKOFF_SECONDS)
    return min(max(pause, getattr(error, "after", 0.0)), MAX_BACKOFF_SECONDS)


def _object(response: Response, *, tolerant: bool = False) -> dict[str, object]:
    """
    The JSON object in a body; empty when it is none and that is tolerable.

    :raise Failure: it is none, and that is not.
    """
    detail = "not JSON"
    if response.cut:
        detail = "too long"
    else:
        try:
            value = json.loads(response.body.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            return value
    if tolerant:
        return {}
    raise Failure("no_answer", "error", detail=detail)


def _text(answer: dict[str, object], key: str) -> str:
    value = answer.get(key)
    return value if isinstance(value, str) else ""


def _number(answer: dict[str, object], key: str) -> float:
    """A number within reason, else 0."""
    value = answer.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
        return 0.0
    return float(value)


def _url(answer: dict[str, object]) -> str:
    """The address to approve at, if it is a plain web address; a terminal shows what it gets."""
    url = _text(answer, "verification_url")
    if len(url) > 500 or not url.startswith(("http://", "https://")):
        return ""
    return "".join(char for char in url if "!" <= char <= "~")
