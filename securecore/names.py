"""Value types for everything that names a place: a constructor that refuses is the only way to one.

Nothing that a peer says becomes part of a path unless it has passed one of these. Import cost matters here (the crash handler
loads this module), hence plain slotted classes, and sets of characters in place of patterns, which would have to be compiled.
"""

from securecore.declarations import Final
from securecore.errors import SecurecoreError

_DIGITS: Final = "0123456789"
_LOWER: Final = "abcdefghijklmnopqrstuvwxyz"
_LABEL: Final = frozenset(f"{_DIGITS}{_LOWER}-")
_ADDRESS: Final = frozenset(f"{_DIGITS}{_LOWER}{_LOWER.upper()}._-")
_ADDRESS6: Final = frozenset(f"{_DIGITS}abcdefABCDEF:.")
_HEXADECIMAL: Final = frozenset(f"{_DIGITS}abcdef")
_UUID_PARTS: Final = (8, 4, 4, 4, 12)
_MAX_LABEL, _MAX_NAME, _MAX_ADDRESS6, _MAX_ZONE = 63, 253, 45, 15
"""Characters of a label and of a name (RFC 1123 section 2.1), an IPv6 address (INET6_ADDRSTRLEN) and a link's name (IFNAMSIZ)."""


class NameRefused(SecurecoreError, ValueError):
    """A text is not the name that it was offered as."""

    exit_code = 2
    name = "usage"


class HostName:
    """A host: a lower-case DNS name of at least two LDH labels (RFC 1123 section 2.1, RFC 5890 section 2.3.1).

    At most 253 characters in all and 63 a label, no trailing dot, last label not all digits (it would read as an address). Raises
    NameRefused on anything else, upper case and internationalised text included: the caller folds or encodes first, or refuses.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        labels = text.split(".")
        if len(text) > _MAX_NAME or len(labels) < 2 or not all(map(_is_label, labels)) or labels[-1].isdigit():
            raise NameRefused(
                f"not a host name: {text[:300]!a}",
                hint="lower-case letters, digits and hyphens, with a domain, as in web-1.example.org",
            )
        self._text = text

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"HostName({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HostName) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __lt__(self, other: "HostName") -> bool:
        return self._text < other._text


class Address:
    """Where to connect or listen: a host name or IP address and a port, written HOST:PORT with IPv6 in brackets.

    Raises NameRefused on a missing or impossible port and on hosts with characters that no name or address has. Not checked: that
    the name resolves.
    """

    __slots__ = ("host", "port")

    def __init__(self, text: str) -> None:
        host, separator, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        host = host[1:-1] if bracketed else host
        good_port = port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535
        good_host = _is_address6(host) if bracketed else _is_address(host)
        if not (separator and good_port and good_host):
            raise NameRefused(f"not an address: {text[:300]!a}", hint="HOST:PORT, as in collector.example.org:4455 or [::1]:4455")
        self.host = host
        self.port = int(port)

    @property
    def host_without_zone(self) -> str:
        """The host as a certificate can name it: a zone (fe80::1%eth0) says which of our own links leads there (RFC 4007)."""
        return self.host.partition("%")[0]

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"Address({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Address) and str(other) == str(self)

    def __hash__(self) -> int:
        return hash(str(self))


def _is_label(text: str) -> bool:
    return 0 < len(text) <= _MAX_LABEL and _LABEL.issuperset(text) and text[0] != "-" != text[-1]


def _is_address(text: str) -> bool:
    """Return whether a text may be a name or an IPv4 address, by its characters alone."""
    return 0 < len(text) <= _MAX_NAME and _ADDRESS.issuperset(text) and text[0] not in "._-"


def _is_address6(text: str) -> bool:
    """Return whether a text may be an IPv6 address, with the link it is on or without, by its characters alone."""
    address, separator, zone = text.partition("%")
    is_zone = 0 < len(zone) <= _MAX_ZONE and _ADDRESS.issuperset(zone) if separator else True
    return ":" in address and 2 <= len(address) <= _MAX_ADDRESS6 and _ADDRESS6.issuperset(address) and is_zone


def is_uuid(text: str) -> bool:
    """Return whether a text is RFC 9562's form of sixteen bytes, in lower case; raises TypeError for what is no text."""
    parts = str.split(text, "-", len(_UUID_PARTS))
    return tuple(map(len, parts)) == _UUID_PARTS and all(map(_HEXADECIMAL.issuperset, parts))


class _Uuid:
    """Sixteen bytes with RFC 9562's text form; subclasses say which versions they take."""

    __slots__ = ("_raw",)
    _what: str = "identifier"
    _version: int = 0

    def __init__(self, raw: bytes) -> None:
        if len(raw) != 16 or raw[6] >> 4 != self._version or raw[8] >> 6 != 0b10:
            raise NameRefused(f"not a {self._what}: {raw[:32].hex()!r}")
        self._raw = bytes(raw)

    def __bytes__(self) -> bytes:
        return self._raw

    def __str__(self) -> str:
        digits = self._raw.hex()
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and bytes(other) == self._raw

    def __hash__(self) -> int:
        return hash(self._raw)


class DumpId(_Uuid):
    """A dump's id: a UUIDv7 (RFC 9562 section 5.7), made by the sender."""

    __slots__ = ()
    _what = "dump id"
    _version = 7

    @classmethod
    def make(cls, time_ms: int, randomness: bytes) -> "DumpId":
        """Return the id for a moment (Unix milliseconds, 48 bits) and ten random bytes."""
        head = (time_ms & (1 << 48) - 1).to_bytes(6, "big")
        return cls(head + bytes([0x70 | randomness[0] & 0x0F, randomness[1], 0x80 | randomness[2] & 0x3F]) + randomness[3:10])

    @classmethod
    def parse(cls, text: str) -> "DumpId":
        """Return the id that the 36 characters of *text* spell, lower case only; raises NameRefused."""
        if not is_uuid(text):
            raise NameRefused(f"not a dump id: {text[:100]!a}")
        return cls(bytes.fromhex(text.replace("-", "")))

    @property
    def short(self) -> str:
        """The last eight characters: the first eight are only a clock, and dumps of one minute share them."""
        return self._raw.hex()[-8:]

    @property
    def time_ms(self) -> int:
        """When the sender made the id, by the sender's clock: Unix milliseconds."""
        return int.from_bytes(self._raw[:6], "big")


class StoreId(_Uuid):
    """A store's id: a UUIDv4 written into its FORMAT file when it was made."""

    __slots__ = ()
    _what = "store id"
    _version = 4

    @classmethod
    def make(cls, randomness: bytes) -> "StoreId":
        """Return the id for sixteen random bytes."""
        raw = bytearray(randomness[:16])
        raw[6] = 0x40 | raw[6] & 0x0F
        raw[8] = 0x80 | raw[8] & 0x3F
        return cls(bytes(raw))

    @classmethod
    def parse(cls, text: str) -> "StoreId":
        """Return the id that the 36 characters of *text* spell, lower case only; raises NameRefused."""
        if not is_uuid(text):
            raise NameRefused(f"not a store id: {text[:100]!a}")
        return cls(bytes.fromhex(text.replace("-", "")))


def is_plain_path(path: str) -> bool:
    """Return whether *path* is absolute and in its simplest form, so that it names one place and reads as one line."""
    parts = path.split("/")
    return path.isprintable() and path.startswith("/") and len(path) > 1 and not {"", ".", ".."} & set(parts[1:])
