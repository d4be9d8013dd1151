"""What a handler does about crashes that are not taken: it asks the storm limits, counts, and says so.

In a storm most crashes end here, so this loads nothing that only a crash which is taken needs: no TLS, no compressor, and of spool
and cores no more than their directory.
"""

import os
import time

from securecore.declarations import TYPE_CHECKING, Any, Callable, Final, NamedTuple
from securecore.errors import BrokenError, SecurecoreError
from securecore.names import DumpId
from securecore.report import CrashReport
from securecore.sender import kernel_log, privileges, stateless, storm_limits, storms
from securecore.sender.admission import Admission, StormLimit
from securecore.sender.buckets import Untaken, Verdict
from securecore.sender.head import Head, read_head
from securecore.sender.system_log import log

if TYPE_CHECKING:
    from securecore.sender.coredump_socket import Gate
    from securecore.sender.program import ProgramReader

_UNCOUNTED: Final = Admission(program=StormLimit(0, 0), user=StormLimit(0, 0), host=StormLimit(0, 0))
"""Of a crash that the state could not count: it has no place to give back."""


class Place(NamedTuple):
    """Where crashes are counted, and by whom."""

    open: Callable[[], int]
    """Opens the directory that has the state of the storm limits: a spool, or one among the cores; raises SecurecoreError."""
    uid: int
    """Whose it is, and whom the handler becomes."""
    gid: int
    missing: str = "untidy"
    """The event of the line that says why there is none."""


class Tally:
    """The counts of one directory, as one crash meets them. Without one, or with one that refuses, everything is taken."""

    def __init__(self, directory: int | None, report: CrashReport, *, is_silent: bool = False) -> None:
        """Open what only root may open, the kernel's log; all else is done by what the handler becomes.

        *is_silent* keeps quiet about a crash that nobody counts: others were said shortly before.
        """
        self.directory = directory
        """A descriptor; the spool's, where there is a spool."""
        self._report = report
        self._is_silent = is_silent
        self._kernel_log = kernel_log.open_kernel_log() if directory is not None else None
        self._counted_by = _UNCOUNTED
        self._is_locked = False
        """Somebody who was stopped keeps the state: a process has waited for it once."""

    def learn(self, fields: dict[str, Any]) -> None:
        """Have report fields that were not there before: a storm limit goes by which file the program is."""
        self._report = self._report._replace(**fields)

    def admit(self, admission: Admission) -> Verdict:
        """Return what becomes of the crash by the storm limits."""
        verdict = Verdict(None, Untaken())

        def judge(directory: int) -> None:
            nonlocal verdict
            verdict = storms.admit(directory, admission, self._report)
            self._counted_by = admission

        self._try(judge)
        return verdict

    def suppress(self, dump: DumpId, verdict: Verdict) -> None:
        """Say that a storm limit suppresses the crash, which *verdict* has counted."""
        so_far = max(verdict.untaken)
        if _is_worth_a_line(so_far):
            self._say_declined(dump, f"storm limit of the {verdict.limit}", suppressed=so_far)
        self.count_skips()

    def decline(self, dump: DumpId, reason: str) -> None:
        """Say that a crash is declined, and why, and count it."""
        so_far: int | None = None

        def count(directory: int) -> None:
            nonlocal so_far
            so_far = storms.count_declined(directory)

        self._try(count)
        if not self._is_silent if so_far is None else _is_worth_a_line(so_far):
            self._say_declined(dump, reason, declined=so_far)
        self.count_skips()

    def _say_declined(self, dump: DumpId, reason: str, **counts: int | None) -> None:
        log("declined", dump=str(dump), reason=reason, program=self._report.program, uid=self._report.uid, **counts)

    def lose(self, untaken: Untaken) -> None:
        """Count a crash that was taken and of which nothing was kept, and again what its dump would have told."""
        self._try(lambda directory: storms.lose(directory, self._counted_by, self._report, untaken))

    def give_back(self) -> None:
        """Give the place in the limits back of a crash whose report was kept, and tells its counts, but of its core nothing."""
        self._try(lambda directory: storms.give_back(directory, self._counted_by, self._report))

    def count_skips(self) -> None:
        """Count the crashes that the kernel has skipped, for the next dump's report, and let go of its log.

        All of the log has to be read for that, so one look now and then is enough; where the state was waited for in vain, another
        crash has it.
        """
        log, self._kernel_log, boot = self._kernel_log, None, self._report.boot_id
        if log is None:
            return

        def count(directory: int) -> None:
            last, is_recent = storms.find_last_record(directory, boot)
            skips = None if is_recent else kernel_log.read_skips(log, last)
            if skips is not None:
                storms.count_skips(directory, boot, skips)

        try:
            if not self._is_locked:
                self._try(count)
        finally:
            os.close(log)

    def _try(self, step: Callable[[int], None]) -> None:
        if self.directory is None:
            return
        try:
            try:
                step(self.directory)
            except BrokenError as error:
                log("untidy", error=error.message)
                step(self.directory)
        except SecurecoreError as error:
            self._is_locked = isinstance(error, storms.LockedError)
            log("untidy", error=error.message)


def open_tally(place: Place, report: CrashReport) -> Tally:
    """Return the tally of *place*, by root; one without a directory must keep no healthy receiver from the core."""
    try:
        return Tally(place.open(), report)
    except SecurecoreError as error:
        is_due = stateless.is_due(time.time())
        if is_due:
            log(place.missing, error=error.message)
        return Tally(None, report, is_silent=not is_due)


def _is_worth_a_line(so_far: int) -> bool:
    """Return whether a crash that is not taken is said, the *so_far*-th since a dump last told of its like.

    The first ones are, and then each with which they have doubled; the count tells of the others.
    """
    return so_far <= storm_limits.DECLINED_LINES or so_far & (so_far - 1) == 0


class Taken:
    """A crash that is taken, until it is known what became of its dump."""

    def __init__(self, tally: Tally, head: Head, untaken: Untaken) -> None:
        """*head* is what was read of its core, *untaken* what its report counts."""
        self.tally, self.head, self.untaken = tally, head, untaken
        self._is_over = False

    def conclude(self, *, is_kept: bool, has_core: bool = True) -> None:
        """Count it as lost where nothing of it is anywhere; what is said first is what counts, and it is said without root.

        What is kept is without *has_core* a report alone: it has told the counts, but takes no dump's place in the limits.
        """
        if self._is_over:
            return
        self._is_over = True
        if not is_kept:
            self.tally.lose(self.untaken)
        elif not has_core:
            self.tally.give_back()


def judge(
    core: int,
    place: Place,
    admission: Admission,
    dump: DumpId,
    report: CrashReport,
    program: "ProgramReader | None",
    gate: "Gate | None" = None,
) -> Taken | None:
    """Return what is known of a crash that is taken; None when it is declined, or a storm limit suppresses it.

    Then the process has been let go, by closing *core*, the crash was counted, and root has been given up. For one that is taken
    the handler is root still, to open with it what else it needs. The head of a core and the state of the limits are written by
    others than root, and are read without its rights.

    *gate* is opened once the core is needed: for its head, where its size counts, else when it is taken. A pipe has none.
    *program* finds out which file the program is, which *report* does not say. It may have to be waited for, so only a storm limit
    asks it, a rule goes by the path; of a crash that is not taken it is left before root is given up.
    """
    refusal = admission.find_refusal(report)
    if refusal is not None:
        if gate is not None:
            gate.refuse()
        os.close(core)
        tally = open_tally(place, report)
        _give_up_root(place, program)
        tally.decline(dump, refusal)
        return None
    tally, head, verdict = open_tally(place, report), Head(), Verdict(None, Untaken())
    with privileges.Acting(place.uid, place.gid):
        if admission.max_size is not None:
            if gate is not None:
                gate.open()
            head = read_head(core)
        oversize = admission.find_oversize(head.predicted_size)
        if oversize is None:
            if program is not None and tally.directory is not None:
                tally.learn(program.find_file())
            verdict = tally.admit(admission)
            if verdict.limit is None:
                if gate is not None:
                    gate.open()
                # Now, while the process waits: nothing of root's is left open once the first byte of the network comes.
                log("started", dump=str(dump), pid=report.pid, signal=report.signal, uid=report.uid)
                tally.count_skips()
    if oversize is None and verdict.limit is None:
        return Taken(tally, head, verdict.untaken)
    if gate is not None:
        gate.refuse()
    os.close(core)
    _give_up_root(place, program)
    if oversize is not None:
        tally.decline(dump, oversize)
    else:
        tally.suppress(dump, verdict)
    return None


def _give_up_root(place: Place, program: "ProgramReader | None") -> None:
    if program is not None:
        # Before: its child is root's until it has opened the program's file, and may hang there.
        program.leave()
    privileges.drop(place.uid, place.gid)
