"""The server's log lines."""

import json
from datetime import datetime, timedelta
from io import StringIO

from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from identree.app.journal import Journal
from identree.core.requests import current
from identree.serverlog import observer


class ServerLogTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.out = StringIO()

    def log(self, level: str = "info", *, as_json: bool = False, namespace: str = "test") -> Logger:
        return Logger(namespace=namespace, observer=observer(level, as_json=as_json, out=self.out))

    def test_line(self) -> None:
        """Time, level, message, then the attributes in their order; quoted where a word would not read back."""
        Journal(self.log()).info("CHALLENGE created", challenge="deadbeef", user="alice", policy="", host="a b")
        line = self.out.getvalue()
        self.assertRegex(line, r"^time=[0-9T:.-]+(Z|[+-]\d\d:\d\d) level=INFO ")
        self.assertTrue(
            line.endswith(' msg="CHALLENGE created" challenge=deadbeef user=alice policy="" host="a b"\n'), line
        )

    def test_one_line_whatever_comes(self) -> None:
        """Line breaks, quotes and control characters of a stranger cannot make a second line."""
        Journal(self.log()).warn("AUTH_FAILURE", user='x\nlevel=INFO msg="forged"\x1b[2J', host="ü\u2028")
        line = self.out.getvalue()
        self.assertEqual((line.count("\n"), "\x1b" in line, "\u2028" in line), (1, False, False))

    def test_words_of_any_script(self) -> None:
        """Printable text is a word; blanks of any kind, equals signs and quotes are not."""
        Journal(self.log()).info("x", a="jörg", b="a\\b", c="ü=1", d='ü"', e="ü\u00a0x", f="ü x")
        self.assertTrue(
            self.out.getvalue().endswith(' a=jörg b=a\\b c="ü=1" d="ü\\"" e="\\u00fc\\u00a0x" f="ü x"\n'),
            self.out.getvalue(),
        )

    def test_json(self) -> None:
        """The same as one JSON object."""
        Journal(self.log(as_json=True)).error("BREAKGLASS", backend="vault")
        record = json.loads(self.out.getvalue())
        self.assertEqual((record["level"], record["msg"], record["backend"]), ("ERROR", "BREAKGLASS", "vault"))
        self.assertEqual(datetime.fromisoformat(record["time"]).tzinfo is not None, True)

    def test_level(self) -> None:
        """What is below the level is not written."""
        log = self.log("warn")
        log.info("quiet")
        log.warn("loud")
        self.assertIn("msg=loud", self.out.getvalue())
        self.assertNotIn("quiet", self.out.getvalue())

    def test_failure(self) -> None:
        """A failure has its type, text and stack in one line."""
        log = self.log()
        try:
            raise ValueError("two\nlines")
        except ValueError:
            log.failure("it broke")
        line = self.out.getvalue()
        self.assertEqual(line.count("\n"), 1)
        self.assertIn('err="ValueError: two\\nlines"', line)

    def test_each_connection_is_not_worth_a_line(self) -> None:
        """Twisted's own remarks about connections are left out."""
        self.log(namespace="twisted.web.http").info("GET /")
        self.assertEqual(self.out.getvalue(), "")

    def test_a_closed_output(self) -> None:
        """Nobody to tell is no reason to fail."""
        self.out.close()
        self.log().info("hello")

    def test_connections_are_no_news(self) -> None:
        """What Twisted says about each probe of the identity provider is left out, but for warnings."""
        chatter = self.log(namespace="twisted.web.client._HTTP11ClientFactory")
        chatter.info("Starting factory")
        self.assertEqual(self.out.getvalue(), "")
        chatter.warn("something odd")
        self.assertIn("something odd", self.out.getvalue())

    def test_values(self) -> None:
        """Lists and durations as log shippers know them."""
        Journal(self.log()).info(
            "ELEVATED",
            groups=["admins", "ops"],
            none=(),
            duration=timedelta(seconds=90),
            longer=timedelta(minutes=5),
            count=3,
            first=True,
        )
        self.assertIn(
            ' groups="[admins ops]" none=[] duration=1m30s longer=5m0s count=3 first=true\n', self.out.getvalue()
        )


class RequestIdTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.out = StringIO()
        before = current.set("0123456789abcdef")
        self.addCleanup(current.reset, before)

    def log(self, *, as_json: bool = False) -> Logger:
        return Logger(namespace="test", observer=observer("info", as_json=as_json, out=self.out))

    def test_last(self) -> None:
        """The id comes last, behind the stack of a failure."""
        log = self.log()
        Journal(log).info("PROVISION", hostname="web1")
        try:
            raise ValueError
        except ValueError:
            log.failure("it broke")
        for line in self.out.getvalue().splitlines():
            self.assertTrue(line.endswith(" request_id=0123456789abcdef"), line)

    def test_json_too(self) -> None:
        """The same as one JSON object."""
        Journal(self.log(as_json=True)).info("PROVISION", hostname="web1")
        self.assertEqual(list(json.loads(self.out.getvalue()))[-1], "request_id")

    def test_where_it_has_a_place(self) -> None:
        """A line that names it itself has it there, once."""
        Journal(self.log()).error("panic in handler", request_id="0123456789abcdef", remote="192.0.2.1")
        self.assertTrue(self.out.getvalue().endswith(" request_id=0123456789abcdef remote=192.0.2.1\n"))
