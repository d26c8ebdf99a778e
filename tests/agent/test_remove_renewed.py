"""``setup --remove`` on a host whose certificate was renewed since."""

from __future__ import annotations

from identree.agent import renew
from identree.agent.renew import Store
from identree.agent.setup_files import Entry, Journal
from tests.agent.setuphost import MadeUpHost


class RemoveRenewedTests(MadeUpHost):
    def test_removed(self) -> None:
        """The links and the keys behind them go, also when the configuration stays."""
        self.assertEqual(self.setup(), 0, self.said)
        etc = self.root / "etc/identree"
        names = (renew.CERT, renew.KEY, renew.CA)
        journal = Journal(str(self.root))
        for name in names:
            (etc / name).write_text("old")
            journal.files[f"/etc/identree/{name}"] = Entry(existed=False, was="", own=True)
        journal.save()
        Store(str(etc)).install("new", dict.fromkeys(names, b"new"))
        self.assertEqual((etc / renew.CERT).read_text(), "new")
        self.assertEqual(self.setup("--remove", "--keep-files"), 0, self.said)
        self.assertEqual(sorted(path.name for path in etc.iterdir()), ["client.conf"])
