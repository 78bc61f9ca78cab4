"""SIGINT and SIGTERM, handled between two steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, so that the loop ends between two steps and not inside
    one.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return
    names = (signal.SIGINT, signal.SIGTERM)
    before = {name: signal.signal(name, lambda *_: requested.set()) for name in names}
    try:
        yield requested
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
