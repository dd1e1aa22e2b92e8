"""The program `clair`, and `python -m clair_cli`."""

from __future__ import annotations

import signal


def console() -> None:
    """Run the command line. Until it answers signals itself, Ctrl-C ends the process without a
    word, and not with a traceback of some import."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from clair_cli.cli.app import console as run

    run()


if __name__ == "__main__":
    console()
