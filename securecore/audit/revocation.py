"""The revocation lists that entries of an audit log refer to, and what they say of a certificate that a dump came under."""

import re
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from hashlib import sha256
from typing import Final

from securecore.audit.entry import Value
from securecore.certs.judge import Judgement
from securecore.certs.revocation import RevocationLists
from securecore.errors import BrokenError

_HEX: Final = re.compile("[0-9a-f]{64}")
_REFERENCE: Final = re.compile(b'"crl_sha256":"([0-9a-f]{64})"')
"""Quotes within text are escaped, so these bytes in an entry are a field and nothing else."""
_PARSED: Final = 4
"""Files that stay parsed: one of 100,000 revoked hosts takes 10 MB, and the dumps of one time were judged by one and the same."""


def find_reference(entry: bytes) -> str | None:
    """Return the digest of the CRL file that a received entry refers to; None where it refers to none."""
    match = _REFERENCE.search(entry)
    return match[1].decode("ascii") if match is not None else None


class KeptLists:
    """CRL files by their digests, each read and parsed once as long as it is needed again soon. For one thread."""

    def __init__(self, read: Callable[[str], bytes | None]) -> None:
        """*read* returns the file of a digest, None when it is missing, and raises StorageError when it cannot be read."""
        self._read = read
        self._parsed: OrderedDict[tuple[str, str, bytes], RevocationLists] = OrderedDict()

    def check(self, digest: Value, judgement: Judgement, moment: datetime) -> str:
        """Check that the file of that digest did not speak against a judged certificate at *moment*; return it in words.

        1. It is there, and has that digest.
        2. It has lists of the chain's issuing CA and root, signed by these.
        3. None had expired at *moment*, longer ago than a receiver tolerates, and none revokes leaf or issuing CA.

        Raises BrokenError, or as RevocationLists.parse_for and its check do.
        """
        if not isinstance(digest, str) or not _HEX.fullmatch(digest):
            raise BrokenError(f"the entry refers to the revocation lists {digest!a:.100}, which is no digest")
        self._find(digest, judgement).check(judgement, moment)
        return f"by crls/{digest}.pem"

    def _find(self, digest: str, judgement: Judgement) -> RevocationLists:
        _, _, root = judgement.chain
        key = (digest, judgement.issuer_fingerprint, root.signature)
        if (found := self._parsed.get(key)) is None:
            pem = self._read(digest)
            if pem is None:
                raise BrokenError(f"crls/{digest}.pem, to which the entry refers, is missing")
            if sha256(pem).hexdigest() != digest:
                raise BrokenError(f"crls/{digest}.pem has other bytes than its name, and the entry, say")
            found = self._parsed[key] = RevocationLists.parse_for(pem, judgement)
            if len(self._parsed) > _PARSED:
                self._parsed.popitem(last=False)
        self._parsed.move_to_end(key)
        return found
