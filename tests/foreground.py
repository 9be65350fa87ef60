"""Child processes that heed signals, wherever the tests were started from."""

import signal


def heed_signals() -> None:
    """To be called in the child. A shell lets what it starts in the background ignore Ctrl-C, and
    `nohup` a hang-up; both are inherited."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
