"""Reports of a store whose logs reach over weeks."""

import csv
import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from tests.support.chronicles import HOSTILE, Chronicle
from tests.support.stores import Commands

NOW: Final = datetime.now(UTC)
DAY: Final = timedelta(days=1)


class Report(Commands):
    """A store whose logs reach over weeks, and reports of it."""

    def make(self, *arguments: object, root: Path | None = None) -> Any:
        """Return what ``audit report --json`` prints, with the fleet's root and identity."""
        return self.run(*arguments, "--json", root=root).document

    def run(self, *arguments: object, root: Path | None = None) -> Any:
        """Run ``audit report`` with them."""
        anchors = root or self.fleet.host / "ca.pem"
        return self("audit", "report", "--root", anchors, "--identity", self.fleet.receiver, *arguments)

    def host(self, name: str, *arguments: object) -> dict[str, Any]:
        """Return one host of it."""
        (found,) = [host for host in self.make(*arguments)["hosts"] if host["host"].startswith(f"{name}.")]
        return dict(found)

    def page(self, *arguments: object) -> str:
        """Return the page."""
        output = self.store.parent / "report.html"
        output.unlink(missing_ok=True)
        ran = self.run(*arguments, "-o", output)
        assert ran.code in (0, 6), ran.err
        return output.read_text("utf-8")

    def rows(self, *arguments: object) -> list[dict[str, str]]:
        """Return the rows of ``audit report --csv``."""
        return list(csv.DictReader(io.StringIO(self.run(*arguments, "--csv").out, newline=""), strict=True))


def tell(chronicle: Chronicle) -> None:
    """Let a month go by."""
    start = NOW - 20 * DAY
    first = chronicle.receive("web-1", start, "nginx", core=b"a" * 3000)
    for number in range(4):
        chronicle.receive("web-1", start + number * DAY, "nginx", signal=6 if number == 3 else 11)
    chronicle.receive("web-1", start + 5 * DAY, "python3", outcome="cut", core=b"b" * 9000)
    gone = chronicle.give_up("web-1", start + 6 * DAY, "java")
    chronicle.extract("web-1", start + 7 * DAY, first)
    chronicle.refuse("web-1", start + 8 * DAY, "this host is over its quota", others=41)
    chronicle.refuse("web-1", start + 9 * DAY, "not by this name", code=106)
    chronicle.delete("web-1", start + 10 * DAY, first, "customer data, ticket 4711")
    chronicle.delete("web-1", start + 11 * DAY, gone, None)
    chronicle.note("web-1", start + 12 * DAY, "resumed", frames=12)
    for number, name in enumerate(HOSTILE.values()):
        chronicle.receive("db-2", NOW - DAY + number * timedelta(minutes=1), name)
    chronicle.begin("db-2", NOW - timedelta(minutes=9), HOSTILE["markup"])
