"""Every bound and default, each with the place that it comes from."""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# --- dump -----------------------------------------------------------------------------------------------------------------
PIECE_BYTES: Final = MIB
"""Plaintext bytes of every piece but the last: large enough that independent frames cost under 2 % of size against one stream
(measured, docs/performance.md), small enough that one piece per worker stays far under the handler's memory budget."""

MAX_FRAME_BYTES: Final = PIECE_BYTES + (PIECE_BYTES >> 8) + 64
"""A stored frame of one piece: ZSTD_compressBound(1 MiB) of zstd.h is 1 MiB + 1 MiB/256, plus the checksum and header slack."""

MAX_FRAMES: Final = 1 << 24
"""Frames in one dump (16 TiB of plaintext): twice what x86-64 with 4-level paging on a large machine holds in memory, and well
below the 0x8000000 frames that the zstd seekable format allows."""

MAX_ZERO_PIECES: Final = 4096
"""Pieces that one ZERO may stand for (4 GiB): 14 bytes on the wire must not cost the receiver minutes of writing."""

ZSTD_LEVEL: Final = 1
"""The fastest level that still has entropy coding: at higher levels the crashed process waits for the compressor."""

DEFLATE_LEVEL: Final = 1
"""The same for gzip and zlib files: level 6, which the programs take, takes almost four times the CPU (docs/performance.md)."""

MAX_REPORT_BYTES: Final = 64 * KIB
"""A report as JSON: sixteen pages, some ten times the largest that the fields' own bounds let our sender write."""

MAX_MANIFEST_BYTES: Final = 64 * KIB
"""A JWS manifest: its payload is below 1 KiB; a chain of four large certificates in x5c needs about 24 KiB in base64."""

MAX_RECEIPT_BYTES: Final = 64 * KIB
"""A tlog-proof: 64 hashes (a tree of 2**64 leaves) take 2.9 KiB, the entry in its extra line below 8 KiB."""

MAX_STATEMENT_BYTES: Final = 64 * KIB
"""The log key's statement: a JWS like the manifest."""

MAX_ENTRY_BYTES: Final = 16 * KIB
"""One line of an audit log: fixed fields, peer-supplied words cut to MAX_WORDS."""

MAX_WORDS: Final = 400
"""Characters of prose that a peer may make us show or keep: five lines of a terminal."""

MAX_CHECKPOINT_BYTES: Final = 16 * KIB
"""A signed note: three lines and a few signatures; C2SP signed-note asks readers to bound it."""

# --- certificates -----------------------------------------------------------------------------------------------------------
MAX_CERTIFICATE_BYTES: Final = 16 * KIB
"""A DER certificate: ours are under 1 KiB; ML-DSA-65 ones, the largest that TLS stacks accept today, are 5.6 KiB."""

MAX_CHAIN: Final = 4
"""Certificates in a chain: leaf, issuing CA, one cross-signed CA during a rotation, root."""

MAX_CRL_BYTES: Final = 16 * MIB
"""A CRL file: 100,000 revoked hosts take about 4 MiB."""

CRL_GRACE_S: Final = 7 * 24 * 3600
"""How long after nextUpdate a CRL still counts, loudly logged: an operator's week off must not be the fleet's outage."""

# --- connections ----------------------------------------------------------------------------------------------------------------
CONNECT_DEADLINE_S: Final = 5.0
"""TCP, TLS and READY together: three round trips on a 600 ms satellite link take 1.8 s. A handler shares it among its receivers,
and the answer to OPEN, a fourth round trip, has to come within it too."""

HANDSHAKE_DEADLINE_S: Final = 10.0
"""The receiver's patience with a peer that has not yet shown a certificate."""

IDLE_DEADLINE_S: Final = 60.0
"""Silence of an authenticated peer: longer than the kernel's pause while it walks a large, swapped-out address space. A message
that was begun has as long, and its length at MIN_RATE_BYTES_PER_S, to become whole."""

MIN_RATE_BYTES_PER_S: Final = 4 * KIB
"""Who takes or sends bytes more slowly is waited for as if it were silent: an eighth of 256 kbit/s, for the round trips and losses
of an embedded device's bad link. The longest frame takes 257 s at this rate, which is the longest that drops can hold a session."""

RECEIPT_DEADLINE_S: Final = 120.0
"""From END to RECEIPT: the receiver's fsync of a dump on a slow, busy disk."""

PROGRESS_DEADLINE_S: Final = 10.0
"""How long what is to leave may stand still before the wire is called stalled: twice ACK_EVERY_S, for a sender with a full ring."""

MAX_DEADLINE_S: Final = 600.0
"""The longest deadline that sender.toml takes: who waits longer for a link has none."""

MAX_CONFIGURATION_BYTES: Final = MIB
"""receiver.toml: in practice 5 KiB; ten thousand hosts with a quota of their own take about 800."""

HOLD_BUDGET_S: Final = 10.0
"""How long a crashed process may stand still for the network in all, while there is a spool: as long as the wire may
stand still, so that a receiver which takes each frame just in time gains nothing. On a wire that keeps up it never stands still."""

RING_BYTES: Final = 16 * MIB
"""Frames sent but not yet acknowledged that the sender keeps in memory: a quarter of the handler's 64 MiB."""

ACK_EVERY_BYTES: Final = 8 * MIB
"""Stored bytes after which the receiver makes frames durable and says so: half of the sender's ring, so that neither waits."""

ACK_EVERY_S: Final = 5.0
"""The same by time, where it takes longer to come by so many bytes: half of PROGRESS_DEADLINE_S. At most one fsync in five seconds
for a session; at the rate at which this comes before ACK_EVERY_BYTES, 1.6 MiB/s, it costs nothing that could be measured."""

MAX_SILENT: Final = 2
"""Dumps in a row for which a receiver greets and then falls silent, after which a flush leaves the rest for the next time: one may
be that dump's fault, and each costs a RECEIPT_DEADLINE_S."""

SLOW_DISK_BYTES_PER_S: Final = 20 * 1000 * 1000
"""At which a receiver may read again what it holds of a dump before it answers OPEN: a fifth of what a single hard disk reads, for
one that others use as well."""

READ_MEANWHILE_BYTES: Final = 256 * MIB
"""Of a spooled dump, read and hashed between READY and OPEN: 13 s at SLOW_DISK_BYTES_PER_S, well within IDLE_DEADLINE_S. For a
larger one the connection is made anew afterwards."""

STORE_LOST_AFTER_S: Final = 7 * 24 * 3600
"""For how long a store that has the beginning of a spooled dump may be missed, while others answer, before it counts as lost: as
long as CRL_GRACE_S, an operator's week off."""

STORE_LOOK_MAX_S: Final = 2 * 3600
"""How much of the time between two looks at a missed store counts: twice BACK_OFF_MAX_S, the longest that a host which is at work
leaves between two flushes by itself."""

BACK_OFF_S: Final = 60
"""The longest wait after the first flush that delivered nothing; each further one doubles it. A receiver's restart is shorter."""

BACK_OFF_MAX_S: Final = 3600
"""The longest wait after any flush: a receiver that was down for a night has its fleet's dumps within the hour, and a host that is
refused for good costs it a handshake an hour."""

ADDRESS_REST_S: Final = 60.0
"""For how long a flush leaves an address alone where nobody answered: each time costs it CONNECT_DEADLINE_S. As long as the first
BACK_OFF_S, within which a receiver has restarted."""

CRASH_FLUSH_S: Final = 60.0
"""For how long a crash's handler, once its own dump is delivered, goes on with what waits in the spool: a handler that lingers
keeps its memory; the timer does the rest."""

MAX_CONNECTIONS: Final = 256
"""Connections that the receiver serves at once: four times the 64 senders of the design's load budget."""

MOST_CONNECTIONS: Final = 1 << 16
"""What receiver.toml may make of it: sixteen descriptors for each are the most that a process may have (fs.nr_open: 1,048,576)."""

MAX_CONNECTIONS_PER_HOST: Final = 32
"""Connections of one host at once: twice the CORE_PIPE_LIMIT handlers that its kernel starts."""

HOST_DUMPS_AT_ONCE: Final = 32
"""Dumps of one host that are received at once: the same."""

MAX_STRANGERS: Final = 128
"""Connections at once whose peer has not shown a certificate yet: half of MAX_CONNECTIONS, so that they never take the place of
hosts that have. A handshake takes milliseconds of our time and a few round trips of the peer's."""

MAX_STRANGERS_PER_ADDRESS: Final = 64
"""Of one address: half of them; a fleet behind one address comes back together after a receiver's restart."""

STRANGER_LINES: Final = 1000
"""Lines in an hour about connections of one address that ended before their peer showed who it is; more are counted. They tell an
operator all that there is to see, and 150 KB an hour fill no disk."""

ALL_STRANGERS_LINES: Final = 4000
"""The same of all addresses together: 15 MB a day."""

FLOOR_SHARE: Final = 0.05
"""Of a file system that stays free: ext4 keeps as much back for root, and file systems get slow above it."""

DELETION_BATCH: Final = 64
"""Dumps that are deleted together: six fsyncs for all of them instead of for each. Others who ask the receiver for something wait
for so long: 0.1 s with small dumps (docs/performance.md)."""

DELETION_BATCH_BYTES: Final = 32 * GIB
"""The same by stored bytes: a disk takes seconds to let go of so much, and a command waits for a minute."""

SHUTDOWN_DEADLINE_S: Final = 20.0
"""How long SIGTERM lets dumps in flight finish; systemd kills after 90 s by default."""

INCOMPLETE_AFTER_S: Final = 7 * 24 * 3600
"""Age of a dump's last frame after which a receiver publishes it as incomplete: a host that was down for a long weekend and a few
days of repair comes back before that. It may come back later too; then the dump goes on all the same."""

CARETAKER_EVERY_S: Final = 3600.0
"""How often a receiver looks for such dumps, at the least: an hour is little beside days, and a look at a dump that is too young
takes 33 us (measured, two shared cores)."""

BUSY_RETRY_AFTER_S: Final = 10
"""When a host comes again that sends as many dumps at once as it may: most dumps take seconds."""

QUOTA_RETRY_AFTER_S: Final = 3600
"""The same of one whose quota is used up: a person or a timer makes room. A flush by itself waits as long (BACK_OFF_MAX_S)."""

FLOOR_RETRY_AFTER_S: Final = 600
"""The same where the receiver's disk is at its floor, which concerns all hosts, and so is seen to sooner."""

REFUSED_ENTRY_EVERY_S: Final = 3600.0
"""Between two audit entries that say of a host that it was refused for one reason: at 400 bytes each, 3.5 MB in a year."""

MAX_RETRY_AFTER_S: Final = 24 * 3600
"""The longest time to come again that a sender lets a receiver impose (R24), and that a clock which was set back can add to a
wait: a day, as sentry-native caps it."""

# --- the sender's admission -----------------------------------------------------------------------------------------------------
PROGRAM_BURST: Final = 10
"""Dumps of one program of one user that are taken at once: so many show whether they are all the same crash."""

PROGRAM_EVERY_S: Final = 300
"""Seconds until one more is taken: the longest back-off of a supervisor that starts a crashing program again for ever (Kubernetes'
CrashLoopBackOff), so that a program which crashes at that pace is always taken."""

USER_BURST: Final = 30
"""Dumps of one user's programs together: three programs' bursts, for root and a service's user have several that fall together."""

USER_EVERY_S: Final = 120
"""Seconds until one more of a user's is taken: 720 a day, more than two programs at their own pace make."""

MAX_BURST: Final = 100_000
"""What sender.toml takes for either: who wants more wants no limit, which is 0."""

MAX_STORM_PROGRAMS: Final = 256
"""Programs whose buckets a sender remembers. A user alone makes USER_BURST at once and one every USER_EVERY_S; a bucket is full
again, and may be forgotten, after 50 minutes: 25 more."""

MAX_STORM_USERS: Final = 128
"""Users whose buckets a sender remembers. Few hosts have so many that run anything; each takes below 60 bytes of the state."""

STORM_LOCK_S: Final = 1.0
"""For how long a handler waits for the state of the storm limits, with a crashed process waiting for it: sixteen handlers hold it
for less than a millisecond each; who has it longer was stopped."""

MAX_RULES: Final = 64
"""Rules of a sender's admission: each is a match or two at every crash, some 20 us (measured)."""

MAX_KERNEL_LOG_RECORDS: Final = 1 << 16
"""What is read of the kernel's log at once: a ring of 4 MiB has fewer. 850 records take 1.2 ms (measured)."""

# --- the kernel's side ------------------------------------------------------------------------------------------------------------
CORE_PATTERN_MAX: Final = 127
"""Characters of core_pattern: CORENAME_MAX_SIZE is 128 in fs/coredump.c, with the final NUL."""

CORE_PIPE_LIMIT: Final = 16
"""Parallel handlers, as systemd sets it; above zero, the kernel keeps /proc/PID until the handler has closed the pipe."""

PIPE_BYTES: Final = MIB
"""F_SETPIPE_SZ: the default /proc/sys/fs/pipe-max-size."""

PROC_READ_BYTES: Final = 64 * KIB
"""At most this much of any /proc file: status, stat and limits are below 4 KiB, cmdline is cut to MAX_TEXT anyway."""

NOBODY_ID: Final = 65534
"""The user and group that own nothing: the kernel's overflow ids (fs.overflowuid), called nobody and nogroup."""

MAX_TEXT: Final = 4096
"""One text field of a report: PATH_MAX."""
