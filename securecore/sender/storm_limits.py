"""Bounds and defaults of the limits on crash storms, each with its source."""

from securecore.declarations import Final

PROGRAM_BURST: Final = 10
"""Dumps of one program of one user that are taken at once: so many show whether they are all the same crash."""

PROGRAM_EVERY_S: Final = 300
"""Seconds until one more is taken: the longest back-off of a supervisor that starts a crashing program again for ever (Kubernetes'
CrashLoopBackOff), so that a program which crashes at that pace is always taken."""

USER_BURST: Final = 30
"""Dumps of one user's programs together: three programs' bursts, for root and a service's user have several that fall together."""

USER_EVERY_S: Final = 120
"""Seconds until one more of a user's is taken: 720 a day, more than two programs at their own pace make."""

HOST_BURST: Final = 60
"""Dumps of all users together: two users' bursts, for a service may fall together with what depends on it."""

HOST_EVERY_S: Final = 30
"""Seconds until one more is taken: 2,880 a day, as four users make at their own pace. However many uids somebody has, no more leave
the host."""

LOST_PAUSE_S: Final = 10
"""What a crash of which no core was kept takes of each storm limit, or what a dump takes where that is less. So a program whose
cores nobody can keep has one drained every ten seconds in the long run, the time in which systemd looks for a loop of restarts
(DefaultStartLimitIntervalSec); and a crash after ten quiet seconds is taken."""

DECLINED_LINES: Final = 16
"""Crashes that are not taken that have a line each, counted anew from each dump that tells of them; beyond these those with which
they have doubled. With HOST_EVERY_S that is 11 MB a day at the most, as little as ALL_STRANGERS_LINES."""

UNCOUNTED_LINE_EVERY_S: Final = HOST_EVERY_S
"""Seconds between two crashes that have their lines where there is no state to count them, as without a spool: as many a day as the
dumps that a host takes in the long run."""

MAX_BURST: Final = 100_000
"""What sender.toml takes for each: who wants more wants no limit, which is 0."""

MAX_STORM_PROGRAMS: Final = 256
"""Programs whose buckets a sender remembers. A user alone makes USER_BURST at once and one every USER_EVERY_S; a bucket is full
again, and may be forgotten, after 50 minutes: 25 more."""

MAX_STORM_USERS: Final = 128
"""Users whose buckets a sender remembers. Few hosts have so many that run anything; each takes below 60 bytes of the state."""

STORM_LOCK_S: Final = 1.0
"""For how long a handler waits for the state of the storm limits, with a crashed process waiting for it: sixteen handlers hold it
for less than a millisecond each; who has it longer was stopped."""
