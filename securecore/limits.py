"""Every bound and default, each with the place that it comes from."""

from securecore.declarations import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# --- dump -----------------------------------------------------------------------------------------------------------------
PIECE_BYTES: Final = MIB
"""Plaintext bytes of every piece but the last: large enough that independent frames cost under 2 % of size against one stream
(measured, docs/performance.md), small enough that one piece per worker stays far under the handler's memory budget."""

MAX_FRAME_BYTES: Final = PIECE_BYTES + (PIECE_BYTES >> 8) + 64
"""A stored frame of one piece: ZSTD_compressBound(1 MiB) of zstd.h is 1 MiB + 1 MiB/256, plus the checksum and header slack."""

SECTOR_BYTES: Final = 512
"""The least that a disk writes at once, and so where what a power cut has left of a file ends (ATA and SCSI disks: 512 or 4096)."""

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

MAX_LOG_KEYS: Final = 32
"""Log keys that one receiver may have had, the one in use included: a new one each year, for a generation of machines."""

MAX_SUCCESSIONS_BYTES: Final = 64 * KIB
"""The successions of so many keys, one behind the other: each below 1.8 KiB, with the longest name that a receiver can have."""

MAX_LOG_KEYS_BYTES: Final = MIB
"""A history of log keys: for each a statement of some 3 KiB, ten times that where its chain is of four large certificates."""

MAX_KEPT_RECEIPT_BYTES: Final = 2 * (MAX_RECEIPT_BYTES + MAX_STATEMENT_BYTES + MAX_SUCCESSIONS_BYTES)
"""One line of a sender's receipt log: a receipt, a statement and successions, as much again for JSON's escapes and what stands
beside them."""

MAX_ENTRY_BYTES: Final = 16 * KIB
"""One line of an audit log: fixed fields, peer-supplied words cut to MAX_WORDS."""

MAX_WORDS: Final = 400
"""Characters of prose that a peer may make us show or keep: five lines of a terminal."""

MAX_CHECKPOINT_BYTES: Final = 16 * KIB
"""A signed note: three lines and a few signatures; C2SP signed-note asks readers to bound it."""

MAX_VERIFIED_BYTES: Final = 64 * MIB
"""What `audit verify --state` remembers: 450 bytes a host, so a hundred thousand hosts take 45 MB."""

MAX_VERIFIERS: Final = 16
"""Threads that verify one dump's frames: each holds a frame and its piece, so 16 take 32 MiB. To count what they found takes one
thread a thirtieth of their time (measured, docs/performance.md), so twice as many would wait for that."""

MIN_SHARED_FRAMES: Final = 4
"""Frames of a dump that are shared out to threads: to start these takes as long as to verify one frame."""

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

KEEP_ALIVE_EVERY_S: Final = 5
"""Between two questions of the sender's TCP whether the receiver's host is still there, while neither says anything: a packet of
40 bytes, answered by the other kernel however busy its receiver is. Whole seconds (TCP_KEEPINTVL of tcp(7))."""

PATH_DEADLINE_S: Final = 20.0
"""How long nothing at all may be heard of the receiver's TCP, while an answer is awaited, before the path to it is called dead. Of
four keep-alive questions, or as many retransmissions with 500 ms there and back, all are lost once in ten thousand times where one
packet in twenty is; then a connection is begun anew. Where `progress` in sender.toml is longer, that counts: for so long a link may
be dark."""

MAX_DEADLINE_S: Final = 600.0
"""The longest deadline that sender.toml takes: who waits longer for a link has none."""

MAX_CONFIGURATION_BYTES: Final = MIB
"""receiver.toml: in practice 5 KiB; ten thousand hosts with a quota of their own take about 800."""

HOLD_BUDGET_S: Final = 10.0
"""How long a crashed process may stand still for the network in all at the most, while there is a spool: as long as the wire may
stand still, so that a receiver which takes each frame just in time gains nothing. Most cores have less: a share of what draining
them takes (sender/allowance.py). On a wire that keeps up it never stands still."""

RING_BYTES: Final = 16 * MIB
"""Frames sent but not yet acknowledged that the sender keeps in memory: a quarter of the handler's 64 MiB."""

ACK_EVERY_BYTES: Final = 8 * MIB
"""Stored bytes after which the receiver makes frames durable and says so: half of the sender's ring, so that neither waits."""

ACK_EVERY_S: Final = 5.0
"""The same by time, where it takes longer to come by so many bytes: half of PROGRESS_DEADLINE_S. At most one fsync in five seconds
for a session; at the rate at which this comes before ACK_EVERY_BYTES, 1.6 MiB/s, it costs nothing that could be measured."""

MAX_SILENT: Final = 2
"""How often in a row a receiver may greet and then fall silent, after which a flush leaves the rest for the next time: one may
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

HOST_LINES: Final = 1000
"""Lines in an hour about one host that has proved who it is; more are counted. A dump makes two, and a host whose storm limits are
as they come sends 180 in an hour (HOST_BURST, HOST_EVERY_S); ten hosts that use theirs up at once stay within the 10,000 lines in
30 s that journald takes of a unit (journald.conf(5), RateLimitBurst=)."""

FAULT_LINES: Final = 1000
"""The same of those that the machine could not take, for want of descriptors, memory or threads: as of one address. They are no
part of the strangers' lines, which may be used up by then, and by those who have brought the want about."""

FLOOR_SHARE: Final = 0.05
"""Of a file system that stays free: ext4 keeps as much back for root, and file systems get slow above it."""

SPOOL_FLOOR_SHARE: Final = FLOOR_SHARE
"""The same of a sender's disk: what the host is there for usually writes to it too, and must not stand still for its cores."""

SPOOL_STEP_BYTES: Final = 16 * MIB
"""What is kept free at once for a spooled core that has outgrown what was foreseen: as much as a ring of frames. A quota looks at
every entry of the spool for each step, some 10 us each (measured); a larger step would keep more from others than is needed."""

ROOM_LOCK_S: Final = 1.0
"""For how long a handler waits for its turn to take room in the spool: as STORM_LOCK_S. The others have it for milliseconds."""

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

LAST_SECOND: Final = 253_402_300_799
"""9999-12-31T23:59:59Z in Unix seconds: the last one that RFC 3339, and Python's calendar, have a spelling for. A file may be of
any time: tmpfs keeps 64 bits of it, ext4 goes to 2446."""

CARETAKER_EVERY_S: Final = 3600.0
"""How often a receiver looks for such dumps, at the least: an hour is little beside days, and a look at a dump that is too young
takes 33 us (measured, two shared cores)."""

CARETAKER_MOST_LOOKS: Final = 8
"""A dump that the disk does not let the receiver finish, or give up, is read from end to end at each try, 100 GB of it maybe: at
every look first, then at every second, fourth and at last eighth, so three times a day. Who has made room waits no longer than for
a working day, and a restart tries at once."""

BUSY_RETRY_AFTER_S: Final = 10
"""When a host comes again that sends as many dumps at once as it may: most dumps take seconds."""

QUOTA_RETRY_AFTER_S: Final = 3600
"""The same of one whose quota is used up: a person or a timer makes room. A flush by itself waits as long (BACK_OFF_MAX_S)."""

FLOOR_RETRY_AFTER_S: Final = 600
"""The same where the receiver's disk is at its floor, which concerns all hosts, and so is seen to sooner."""

TURN_RETRY_AFTER_S: Final = 60
"""The same of a dump that leaves the rest of its quota to an earlier dump of its own that is coming in: as BACK_OFF_S."""

TURN_LASTS_S: Final = 2 * 3600.0
"""For how long a dump that is coming in goes before later ones of its host without being offered: twice BACK_OFF_MAX_S, the longest
that a host which is at work leaves between two flushes. One that its host has lost holds the others up no longer than that."""

UNPREDICTED_SHARE: Final = 4
"""Of a quota of bytes a dump whose size was not predicted, or above the quota, may be sure of one part in so many, while it goes
before the others."""

MAX_STOPPED: Final = 1024
"""Dumps of one host of which a receiver remembers that there was no room for their next frame: whose are more, has some walked once
more. Each has a directory in the store."""

MAX_LACKING: Final = 1024
"""Damaged dumps of which a receiver remembers that there was no room to keep what is damaged: where a disk has more of them, some
are read once more."""

MAX_TOMBSTONES: Final = 1024
"""Deleted dumps of which a receiver remembers what it has told a sender that offered one again, some 2 KiB for each: to find it, a
log is read from end to end, twice. Where more are offered again, some are looked up once more."""

COUNT_PATIENCE_S: Final = 2.0
"""For how long a dump waits until what its host has is counted after a start; then it is to come again. A crash's handler waits for
CONNECT_DEADLINE_S in all. 100,000 small dumps are counted in 1.1 s (docs/performance.md)."""

COUNT_RETRY_AFTER_S: Final = 30
"""When it comes again: a million of them, on a disk that has to look for each, take some minutes."""

WIDE_LOG_EVERY_S: Final = 60.0
"""How often a receiver says in its receiver-wide log which hosts' logs have grown: for so long a host's newest entries can be cut
off, its dumps with them, so that only a receipt kept elsewhere tells. Each time is one entry of 180 bytes for each such log, which
has got one of its own at least (700 bytes for a dump), and three fsyncs for all of them."""

DAMAGED_WIDE_LOG_EVERY_S: Final = 3600.0
"""How often a damaged one is read again, which is linear in it, and is said to be damaged."""

REFUSED_ENTRY_EVERY_S: Final = 3600.0
"""Between two audit entries that say of a host that it was refused for one reason: at 400 bytes each, 3.5 MB in a year."""

RESUMED_ENTRY_EVERY_S: Final = 3600.0
"""Between two audit entries that say of one dump that its sender goes on with it."""

MAX_RESUMED_ENTRIES: Final = 64
"""Of one host within that time: a host that has so many handlers cut off at once has four times what the kernel starts
(core_pipe_limit). At 250 bytes each, 140 MB in a year of a host that does nothing else."""

MAX_RETRY_AFTER_S: Final = 24 * 3600
"""The longest time to come again that a sender lets a receiver impose (R24), and that a clock which was set back can add to a
wait: a day, as sentry-native caps it."""

# --- the sender's admission -----------------------------------------------------------------------------------------------------
MAX_RULES: Final = 64
"""Rules of a sender's admission. Each handler makes a regular expression of each pattern, with the process waiting: 0.1 to 0.2 ms
for one of 20 characters, 1 to 4 ms for one of 255 (measured, Python 3.11, two busy CPUs); so 64 take 0.01 s, or 0.25 s."""

MAX_RULE_PATTERN: Final = 255
"""Characters of a rule's pattern for an executable or a cgroup: NAME_MAX (limits.h), the longest name that a file can have. A path
may be longer, but a ``*`` goes over slashes, so its end is enough. 64 patterns of 4096 take 1 to 4 s (measured likewise)."""

MAX_RULE_UNIT: Final = 255
"""Of its pattern for a unit: UNIT_NAME_MAX of systemd.unit(5)."""

MAX_RULE_USER: Final = 255
"""Of its user: LOGIN_NAME_MAX (limits.h) without the final NUL; useradd(8) takes 32."""

MAX_KERNEL_LOG_BYTES: Final = 4 * MIB
"""What is read of the kernel's log at once: a ring is 256 KiB with CONFIG_LOG_BUF_SHIFT at 18, as distributions have it; machines
with many processors have some MiB. 1,093 records of 139 KB take 4.5 ms (measured, two busy CPUs)."""

KERNEL_LOG_S: Final = 0.5
"""For how long it is read, with a process waiting whose crash is taken: MAX_KERNEL_LOG_BYTES take 0.14 s by the same measure."""

KERNEL_LOG_EVERY_S: Final = 5
"""Between two looks at it: the kernel tells of ten skipped ones in so many seconds at most, and how
often it kept silent only afterwards (DEFAULT_RATELIMIT_INTERVAL of include/linux/ratelimit_types.h)."""

# --- the handler's process ------------------------------------------------------------------------------------------------------
HANDLER_NICE: Final = 5
"""Its processor priority: a third of an ordinary process's share. On two processors with two others at work a core of 250 MiB was
drained in 1.7 s at 0, 2.9 s at 5 and 7.4 s at the lowest, 19, and in about 1.2 s where nobody else was at work (one run each)."""

MAX_NICE: Final = 19
"""The lowest there is; what is above an ordinary process's, below 0, is nobody's business at a crash."""

HANDLER_MEMORY_BYTES: Final = 192 * MIB
"""Private writable memory: more than twice the most that was measured, 84 MiB, of which a third is the stacks of
threads, hardly touched."""

MIN_HANDLER_MEMORY_BYTES: Final = 128 * MIB
"""The least that sender.toml takes: half more than was measured. Below 80 MiB cores were cut."""

MAX_HANDLER_MEMORY_BYTES: Final = 16 * GIB
"""The most: who wants no limit has one that no handler meets."""

FLUSH_MEMORY_BYTES: Final = 512 * MIB
"""Of the flush unit, beyond which the kernel ends it: 45 MiB were measured for a core of noise, and 110 bytes for each frame of the
dump that is under way, so it is enough for a core of 4 TiB. What is cached of files counts too, and is let go of first."""

HANDLER_DEADLINE_S: Final = 3600.0
"""How long a handler may live before it gives its receiver up: at 200 MB/s a core of 720 GB is drained in that time. The waits for
a receiver end much sooner by themselves; this is for what nobody has thought of, and for a process that never ends its core."""

MAX_HANDLER_DEADLINE_S: Final = 24 * 3600.0
"""The longest: each of CORE_PIPE_LIMIT handlers that hang keeps a crash from being handled."""

SOURCE_DEADLINE_S: Final = 300.0
"""How long each MiB of a core may take to come, while it is waited for. The kernel says nothing of a mapping that was never touched
while it looks through it, and takes 33 ms for each GiB (measured up to a TiB, Linux 6.18): 300 s are enough for 9 TiB. The 256
pages of a MiB that is swapped out have more than a second each."""

HANDLER_GRACE_S: Final = 60.0
"""From there to the end of reading, and from that to the end of the process; the deadline again where that is less. Time for a ring
of frames, and for an entry's end, to get to a busy disk."""

TERMINATION_GRACE_S: Final = 3.0
"""From SIGTERM to the end of reading. At a shutdown Slackware's rc.6 gives all processes five seconds before it kills them, systemd
90 (DefaultTimeoutStopSec). What is left is for a ring of frames, and an entry's end, to get to the disk."""

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
