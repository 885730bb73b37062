"""Of all tests."""

import os
import signal

# Of this process alone, where the package's own become errors (pyproject.toml): others would print them.
os.environ.pop("PYTHONWARNDEFAULTENCODING", None)

# Under nohup, or in the background of a shell, signals are ignored, and what is ignored stays so in a run.
for number, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)
