"""What every test needs: Ctrl-C works here and in the processes tests start, even when a shell in the background ignores it."""

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)  # an ignored signal would be inherited as ignored
