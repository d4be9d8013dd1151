"""Starting a thread where there may be no memory for its stack."""

from threading import Thread

from securecore.errors import StorageError


def start(thread: Thread) -> None:
    """Start *thread*; raises StorageError when there is no memory for its stack, or no process is left for it."""
    try:
        thread.start()
    except RuntimeError as error:
        raise StorageError("a thread could not be started: out of memory, or of processes") from error
