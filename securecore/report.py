"""CrashReport: what is known of a crash, as a flat JSON object with bounded fields.

Every field is optional: a field that cannot be had is absent, and never costs the core. On the wire and in the store the report is
the sender's own bytes, whose digest the manifest signs; this module reads them leniently (unknown fields are skipped) and bounds
everything that it hands on.
"""

from securecore import limits, plain_json
from securecore.declarations import Final, NamedTuple
from securecore.errors import PeerError

_INTEGER_MAX: Final = (1 << 64) - 1
_CUTS: Final = (limits.MAX_TEXT, limits.MAX_TEXT // 4, limits.MAX_TEXT // 16, limits.MAX_TEXT // 64)
"""Characters left of each text, until the report fits: one character outside ASCII takes six or twelve bytes in JSON, and sixteen
texts of 64 of them take 12 KiB."""


class CrashReport(NamedTuple):
    """A crash, as the sender saw it: what the host says, not what is so. Text is at most MAX_TEXT characters long."""

    sender: str | None = None
    """The sender's program and version."""
    source: str | None = None
    """Where the core came from: ``kernel`` (the handler) or ``file`` (a core that a person had at hand)."""
    metadata: str | None = None
    """``verified`` when /proc was read through a directory that the pidfd proved to be the crashed process, else ``arguments``."""
    signal: int | None = None
    pid: int | None = None
    tid: int | None = None
    uid: int | None = None
    gid: int | None = None
    dump_mode: int | None = None
    """PR_GET_DUMPABLE of the process: 1 ordinary, 2 sensitive (set-uid and its like)."""
    core_limit: int | None = None
    """Soft RLIMIT_CORE in bytes; 2**64-1 is unlimited."""
    crashed_at: int | None = None
    """Unix seconds, by the host's clock."""
    program: str | None = None
    """The executable's file name, else the thread's name."""
    comm: str | None = None
    executable: str | None = None
    command_line: str | None = None
    """Arguments, separated by single spaces; nothing escaped."""
    cgroup: str | None = None
    unit: str | None = None
    container: str | None = None
    parent_pid: int | None = None
    threads: int | None = None
    started_at: int | None = None
    """Unix seconds, by the host's clock."""
    boot_id: str | None = None
    kernel: str | None = None
    machine: str | None = None
    node: str | None = None
    """The kernel's node name; a claim, not the host's identity."""
    build_id: str | None = None
    """Of the executable, in hexadecimal."""
    uuid: str | None = None
    """The content of the executable's ``.uuid`` section, as ``elfid.uuid_text`` writes it."""
    executable_device: int | None = None
    executable_inode: int | None = None
    """Of the file that the process ran, whatever stands at its path by now; st_dev and st_ino of stat(2)."""
    core_name: str | None = None
    """The file name that a person sent the core from; shown, never used as a path."""
    suppressed: int | None = None
    """Crashes of this program, run by this user, that its storm limit kept from being taken, since the last dump that counts."""
    suppressed_of_user: int | None = None
    """The same of this user, by the user's storm limit: of any program."""
    suppressed_of_host: int | None = None
    """The same on this host, by the host's storm limit: of any program and user."""
    suppressed_of_others: int | None = None
    """The same of programs and users that the sender has forgotten meanwhile, or never told apart from others."""
    declined: int | None = None
    """Crashes on this host that were declined: by a rule, for their size, or because the process wanted no core."""
    lost: int | None = None
    """Cores on this host that were taken, but neither delivered nor spooled."""
    skipped_by_kernel: int | None = None
    """Crashes on this host for which the kernel started no handler, as far as its log tells."""
    untaken_since: int | None = None
    """When the first of all these was met: Unix seconds, by the host's clock."""

    @property
    def is_sensitive(self) -> bool:
        """Whether the process had changed its privileges or could not be read, so that its core may hold what its user may not see.

        Dump modes other than 1: PR_SET_DUMPABLE of prctl(2), fs.suid_dumpable of proc(5). CVE-2022-4415, CVE-2025-4598 (R3).
        """
        return self.dump_mode not in (None, 1)

    def encode(self, spare_bytes: int = 0) -> bytes:
        """Return the canonical JSON: present fields only, keys sorted, ASCII, no spaces.

        Text is cut to MAX_TEXT characters, all of it to fewer where the whole would be longer than MAX_REPORT_BYTES: a process
        chooses its own command line, and must not make its core undeliverable by it. *spare_bytes* are left of MAX_REPORT_BYTES for
        fields that somebody adds.
        """
        encoded = b""
        for cut in _CUTS:
            encoded = self._encode_cut(cut)
            if len(encoded) <= limits.MAX_REPORT_BYTES - spare_bytes:
                break
        return encoded

    def _encode_cut(self, characters: int) -> bytes:
        fields: dict[str, int | str] = {}
        for key, value in zip(self._fields, self, strict=True):
            if isinstance(value, str):
                fields[key] = value[:characters]
            elif value is not None:
                fields[key] = value
        return plain_json.encode(dict(sorted(fields.items()))).encode("ascii")


_TEXT_FIELDS = frozenset(name for name, hint in CrashReport.__annotations__.items() if hint == str | None)


def parse_report(data: bytes) -> CrashReport:
    """Return the report that a peer sent as JSON.

    Fields of the wrong type or outside 64 bits are dropped, text is cut to MAX_TEXT, lone surrogates become question marks. Raises
    PeerError when *data* is longer than MAX_REPORT_BYTES or not one JSON object in UTF-8 without a byte order mark (RFC 8259
    section 8.1): other readers of the store take no other encoding. Not checked: that any of it is true.
    """
    if len(data) > limits.MAX_REPORT_BYTES:
        raise PeerError(f"report is {len(data)} bytes long, at most {limits.MAX_REPORT_BYTES} are allowed")
    try:
        fields = plain_json.parse(data)
    except (ValueError, RecursionError) as error:
        raise PeerError("report is not JSON") from error
    if not isinstance(fields, dict):
        raise PeerError("report is not a JSON object")
    known: dict[str, int | str] = {}
    for key, value in fields.items():
        if key not in CrashReport._fields:
            continue
        if key in _TEXT_FIELDS:
            if isinstance(value, str):
                known[key] = value[: limits.MAX_TEXT].encode("utf-8", "replace").decode("utf-8")
        elif type(value) is int and 0 <= value <= _INTEGER_MAX:
            known[key] = value
    return CrashReport(**known)  # type: ignore[arg-type]  # the loop above has matched each value's type to its field
