"""For the processes that tests start: on their path, so that every Python imports it first.

An audit hook can't be taken off again, and sees what C code does through Python's sockets too.
"""

import sys

_FORBIDDEN = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}


def _forbid(event: str, args: tuple[object, ...]) -> None:
    if event not in _FORBIDDEN:
        return
    if event in ("socket.connect", "socket.sendto") and isinstance(args[1], (str, bytes)):
        return  # a pipe on this machine (AF_UNIX)
    raise RuntimeError(f"a process of a test tried to reach the network: {event} {args[1:]}")


sys.addaudithook(_forbid)
