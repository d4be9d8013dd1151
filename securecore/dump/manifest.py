"""The manifest: the sender's statement about a dump, as the payload that the host's key signs.

Canonical JSON with exactly the fields below; ``lost_frames`` is left out when it is 0. The signature (JWS, ES256, x5c) is the
business of ``certs.jws``; this module turns values into payload bytes and back, and refuses any payload that has another encoding
than its own.
"""


from securecore import limits, plain_json
from securecore.declarations import Final, NamedTuple
from securecore.errors import BrokenError
from securecore.names import DumpId, HostName, NameRefused, StoreId

MANIFEST_TYP: Final = "securecore-manifest+jws"
_TYPE: Final = "securecore/manifest"
_VERSION: Final = 1

COMPLETE: Final = "complete"
SOURCE_TRUNCATED: Final = "source-truncated"
CUT: Final = "cut"
OUTCOMES: Final = (COMPLETE, SOURCE_TRUNCATED, CUT)
"""``complete``: all that the source gave, and not less than the ELF arithmetic demands. ``source-truncated``: the source ended
before the predicted length. ``cut``: the sender lost a part (a full spool, a deadline)."""


class Manifest(NamedTuple):
    """What the sender states of a dump at its end."""

    dump: DumpId
    host: HostName
    store: StoreId
    outcome: str
    predicted_size: int | None
    """Plaintext bytes by ELF arithmetic; None when the source is no ELF core."""
    size: int
    """Plaintext bytes that were sent."""
    frames: int
    root: bytes
    """Merkle root over the leaf hashes of the frames' stored bytes."""
    report_sha256: bytes
    """SHA-256 of the report as sent in OPEN."""
    started_at: int
    """Unix milliseconds by the host's clock, when the sender met the core."""
    ended_at: int
    sender: str
    lost_frames: int = 0
    """The first so many frames are placeholders, whole pieces of zeroes, for frames that were lost: only of a ``cut`` dump."""

    def encode(self) -> bytes:
        """Return the payload: canonical JSON, hashes in lower-case hex."""
        # One encoding: nothing lost is not said.
        lost = {"lost_frames": self.lost_frames} if self.lost_frames else {}
        fields = {
            "type": _TYPE,
            "version": _VERSION,
            "dump": str(self.dump),
            "host": str(self.host),
            "store": str(self.store),
            "outcome": self.outcome,
            "predicted_size": self.predicted_size,
            "size": self.size,
            "frames": self.frames,
            "root": self.root.hex(),
            "report_sha256": self.report_sha256.hex(),
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "sender": self.sender[: limits.MAX_WORDS],
            **lost,
        }
        return plain_json.encode(dict(sorted(fields.items()))).encode("ascii")


def parse_manifest(payload: bytes) -> Manifest:
    """Return the manifest in *payload*; raises BrokenError unless it is exactly the encoding that Manifest.encode gives.

    Not checked: the signature, and that any number in it agrees with the dump.
    """
    if len(payload) > limits.MAX_MANIFEST_BYTES:
        raise BrokenError("manifest is too long")
    try:
        fields = plain_json.parse(payload)
        manifest = Manifest(
            dump=DumpId.parse(fields["dump"]),
            host=HostName(fields["host"]),
            store=StoreId.parse(fields["store"]),
            outcome=fields["outcome"],
            predicted_size=fields["predicted_size"],
            size=fields["size"],
            frames=fields["frames"],
            root=bytes.fromhex(fields["root"]),
            report_sha256=bytes.fromhex(fields["report_sha256"]),
            started_at=fields["started_at"],
            ended_at=fields["ended_at"],
            sender=fields["sender"],
            lost_frames=fields.get("lost_frames", 0),
        )
        numbers = [manifest.size, manifest.frames, manifest.started_at, manifest.ended_at, manifest.lost_frames]
        if manifest.predicted_size is not None:
            numbers.append(manifest.predicted_size)
        well_typed = all(type(number) is int and 0 <= number < 1 << 63 for number in numbers)
        manifest.sender.encode("utf-8")  # What is no text, or holds a lone surrogate, fails here and not where somebody prints it.
        well_typed &= manifest.outcome in OUTCOMES and len(manifest.root) == len(manifest.report_sha256) == 32
        if well_typed and manifest.lost_frames:
            well_typed = manifest.outcome == CUT and manifest.lost_frames <= manifest.frames
        canonical = well_typed and manifest.encode() == payload
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, NameRefused) as error:
        raise BrokenError("manifest is malformed") from error
    if not canonical:
        raise BrokenError("manifest is malformed or not in its canonical encoding")
    return manifest
