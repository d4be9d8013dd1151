"""The bounds of enrolment on line; those of the whole are in securecore/limits.py."""

from typing import Final

from securecore.limits import KIB, MAX_CRL_BYTES
from securecore.pki.reply import MAX_REPLY_BYTES

MIN_TOKEN_TTL_S: Final = 60
"""The least: what is shorter ends before it is typed in."""

MAX_TOKEN_TTL_S: Final = 7 * 24 * 3600
"""The most: a host that is installed by post. Whoever reads a token, or the ledger, while it counts can enrol as that host."""

MAX_TOKEN_FILE_BYTES: Final = KIB
"""A token takes 81 bytes with its newline."""

MAX_LINE_BYTES: Final = 32 * KIB
"""What a client may say: ours says 1 KiB; the largest request that is read for a refusal in words, 16 KiB, takes 22 in base64."""

MAX_ANSWER_BYTES: Final = 2 * (MAX_REPLY_BYTES + MAX_CRL_BYTES)
"""What a server may answer: the largest ca.pem and crl.pem that a receiver reads, twice for the escapes of JSON (one in 65)."""

REQUEST_DEADLINE_S: Final = 10.0
"""From the connection to the end of its handshake, and from there to the end of what the client asks: as HANDSHAKE_DEADLINE_S."""

ANSWER_DEADLINE_S: Final = 30.0
"""For the wait for the PKI's lock, which a command that was stopped may hold, and anew for the answer's way, with
ANSWER_RATE_BYTES_PER_S beyond. A client waits for both."""

ANSWER_RATE_BYTES_PER_S: Final = 64 * KIB
"""The rate at which an answer must be taken beyond its deadline; at it the largest takes nine minutes."""

MAX_CLIENTS: Final = 64
"""Connections at once, each with a thread: a fleet of 10,000 that renews within an hour makes eight a second, each of at most
10 ms of CPU beside the handshake where the ledger has 10,000 certificates (measured: 7 ms for an enrolment, 2 for a refusal)."""

MAX_CLIENTS_PER_NETWORK: Final = 16
"""Of one address (of IPv6 a /64) at once, so that four are needed to keep everybody out."""

MAX_CLIENTS_PER_SITE: Final = 32
"""Of one IPv6 /48 at once, which may have 65,536 of the former: half of all."""

CLIENTS_PER_MINUTE: Final = 240
"""Of one address (of IPv6 a /64) within a minute: two for an enrolment, so 120 hosts behind one address. A handshake costs a
millisecond of CPU."""

SITE_CLIENTS_PER_MINUTE: Final = 960
"""Of one IPv6 /48 within a minute: as of four addresses, and a second of CPU."""

MAX_NETWORKS: Final = 4096
"""Addresses, and IPv6 /48s, of which is remembered how often they came within the minute; while there are more, all others count as
one."""

RENEWALS_PER_DAY: Final = 10
"""Certificates that one host may be given on line within a day: one is needed in sixty days, and somebody may try a few times. At
600 bytes a line of the ledger, a stolen host's key adds 2 MB in a year."""

STRANGERS_LINES: Final = 1000
"""Lines in an hour about connections whose peer has not shown who it is, and that nothing was issued for; more are counted. As
STRANGER_LINES."""

STRANGER_LINES: Final = 250
"""The same of one address (of IPv6 a /48), so that four are needed to use up those of all."""

HOSTS_LINES: Final = 1000
"""The same about hosts that have shown who they are, by a certificate or a token: no part of the strangers' lines, which may be
used up by then."""

HOST_LINES: Final = 20
"""The same of one host: one that was misled asks once a day, and one that is in a thief's hands is to leave others theirs."""

FAULT_LINES: Final = 1000
"""The same about what this machine could not do, whoever came."""

CHECK_EVERY_S: Final = 3600.0
"""How often a server signs what CRLs are due, takes a renewed certificate of its own, and says how much it counted."""
