"""What a sender shows and signs with, read while the rest of the handler is loaded: OpenSSL needs no interpreter for it."""

import ssl
from threading import Thread

from securecore import tls
from securecore.errors import ConfigError, StorageError
from securecore.sender.credentials import read_credentials
from securecore.sender.parcel import Papers
from securecore.sender.threads import start


class PapersReader:
    """Reads one identity directory, with the rights of whoever makes it; nobody may give these up before ``finish``."""

    def __init__(self, identity: str) -> None:
        """Begin. Where no thread can be started all is left to ``finish``."""
        self._identity = identity
        self._found: Papers | ConfigError | None = None
        self._thread = Thread(target=self._run, daemon=True)
        self._is_started = True
        try:
            start(self._thread)
        except StorageError:
            self._is_started = False

    def finish(self) -> Papers | ConfigError:
        """Return what is there, or why it is not fit to send: the core can be kept until it is."""
        if self._is_started:
            self._thread.join()
        # Without a thread, or without memory in it, this one reads, and has the error for its own.
        return self._found or read_papers(self._identity)

    def _run(self) -> None:
        try:
            self._found = read_papers(self._identity)
        except MemoryError:
            pass  # ``finish`` tries again.


def read_papers(identity: str, anchored: ssl.SSLContext | None = None) -> Papers | ConfigError:
    """Return what is in one identity directory, or why it is not fit to send: the core can be kept until it is.

    *anchored* is the context, where the roots were read before; it is not to be used for anything else.
    """
    try:
        if anchored is None:
            return Papers(tls.sender_context(identity), read_credentials(identity))
        tls.present(anchored, identity)
        return Papers(anchored, read_credentials(identity))
    except ConfigError as error:
        return error
