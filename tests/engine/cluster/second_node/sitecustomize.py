"""For the processes of one node of a Ray cluster: files that $TESTS_UNREADABLE names can't be
opened there, as soon as it is written."""

import errno
import os
import sys

_LIST = os.environ["TESTS_UNREADABLE"]


def _refuse(event: str, args: tuple[object, ...]) -> None:
    if event != "open" or not isinstance(args[0], str) or args[0] == _LIST:
        return
    try:
        with open(_LIST) as file:
            names = file.read().split()
    except OSError:
        return
    if args[0] in names:
        raise OSError(errno.EIO, os.strerror(errno.EIO), args[0])


sys.addaudithook(_refuse)
