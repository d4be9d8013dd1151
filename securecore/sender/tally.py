"""What a handler does about crashes that are not taken: it asks the storm limits, counts, and says so."""

import os
from collections.abc import Callable

from securecore.errors import SecurecoreError
from securecore.names import DumpId
from securecore.report import CrashReport
from securecore.sender import kernel_log, privileges, storms
from securecore.sender.admission import Admission
from securecore.sender.buckets import Untaken, Verdict
from securecore.sender.settings import Settings
from securecore.sender.spool import Spool, open_spool
from securecore.sender.system_log import log


class Tally:
    """The counts of one spool, as one crash meets them. Without a spool, or with one that refuses, everything is taken."""

    def __init__(self, spool: Spool | None, report: CrashReport) -> None:
        """Open what only root may open, the kernel's log; all else is done by what the handler becomes."""
        self._spool, self._report = spool, report
        self._kernel_log = kernel_log.open_kernel_log() if spool is not None else None

    def admit(self, admission: Admission) -> Verdict:
        """Return what becomes of the crash by the storm limits."""
        verdict = Verdict(None, Untaken())

        def judge(spool: int) -> None:
            nonlocal verdict
            verdict = storms.admit(spool, admission, self._report)

        self._try(judge)
        return verdict

    def suppress(self, dump: DumpId, verdict: Verdict) -> int:
        """Say that a storm limit suppresses the crash, which *verdict* has counted, and return the exit code."""
        reason, so_far = f"storm limit of the {verdict.limit}", max(verdict.untaken)
        log("declined", dump=str(dump), reason=reason, program=self._report.program, uid=self._report.uid, suppressed=so_far)
        self.count_skips()
        return 0

    def decline(self, dump: DumpId, reason: str) -> int:
        """Say that a rule or its size declines the crash, count it, and return the exit code."""
        log("declined", dump=str(dump), reason=reason, program=self._report.program, uid=self._report.uid)
        self._try(lambda spool: storms.count_declined(spool))
        self.count_skips()
        return 0

    def give_back(self, untaken: Untaken) -> None:
        """Count again what a dump had counted that went nowhere."""
        if any(untaken):
            self._try(lambda spool: storms.give_back(spool, self._report, untaken))

    def count_skips(self) -> None:
        """Count the crashes that the kernel has skipped meanwhile, for the next dump's report; once the crashed process is gone."""
        if self._kernel_log is None:
            return
        skips = kernel_log.read_skips(self._kernel_log)
        if skips is not None:
            found = skips
            self._try(lambda spool: storms.count_skips(spool, self._report.boot_id, found))

    def _try(self, step: Callable[[int], None]) -> None:
        if self._spool is None:
            return
        try:
            step(self._spool.fd)
        except SecurecoreError as error:
            log("untidy", error=error.message)


def decline(core: int, settings: Settings, dump: DumpId, report: CrashReport, reason: str) -> int:
    """Let a process go that a rule declines, by closing *core*, then count it as the handler's own user; return the exit code."""
    os.close(core)
    tally = Tally(find_spool(settings.spool), report)
    privileges.drop(settings.uid, settings.gid)
    return tally.decline(dump, reason)


def find_spool(path: str) -> Spool | None:
    """Return the spool; None when there is none that can be used, which must not keep a healthy receiver from the core."""
    try:
        return open_spool(path)
    except SecurecoreError as error:
        log("spool-missing", error=error.message)
        return None
