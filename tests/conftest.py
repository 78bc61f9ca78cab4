"""What every test needs: Ctrl-C works here and in the processes tests start, even when a shell in the background ignores it.

Several pytest processes beside each other compute on one thread each: threads of two that wait for each other while both
cores are taken make a test several times slower. Tests of more threads ask for them.
"""

import os
import signal

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it when it is imported, which is later

signal.signal(signal.SIGINT, signal.default_int_handler)  # an ignored signal would be inherited as ignored
