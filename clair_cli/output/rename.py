"""Renames that a kill can't catch half-way: into a free name, or exchanging two names.

Linux has a system call for both (renameat2). Elsewhere, and on file systems that refuse it, a
hard link does the first, and the second takes two steps.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from functools import cache
from pathlib import Path
from typing import Any

_NO_REPLACE, _EXCHANGE = 1, 2
_AT_FDCWD = -100
_UNSUPPORTED = {
    getattr(errno, name, -1)
    for name in ("ENOSYS", "EINVAL", "ENOTSUP", "EOPNOTSUPP", "EPERM", "EACCES", "EXDEV")
}


def put_new(source: Path, target: Path) -> None:
    """Rename a file or folder to a name that nothing has.

    Raises:
        FileExistsError: something is there by now.
        OSError: the system refuses.
    """
    if _renameat2(source, target, _NO_REPLACE):
        return
    if stat.S_ISREG(os.lstat(source).st_mode):
        try:
            os.link(source, target)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            pass
        else:
            os.unlink(source)
            return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    os.rename(source, target)


def swap(source: Path, target: Path, aside: Path) -> Path:
    """Put `source` at `target`, and keep what stood there.

    Args:
        aside: a free name beside them, used where names can't be exchanged.

    Returns:
        Where the old file or folder is now: `source` or `aside`. Call `swap` with it to undo.

    Raises:
        OSError: the system refuses; both are where they were.
    """
    if _renameat2(source, target, _EXCHANGE):
        return source
    if stat.S_ISREG(os.lstat(target).st_mode):
        try:
            os.link(target, aside)
        except OSError:  # a file system without hard links
            pass
        else:
            try:
                os.replace(source, target)
            except BaseException:
                os.unlink(aside)
                raise
            return aside
    os.rename(target, aside)
    try:
        os.rename(source, target)
    except BaseException:
        os.rename(aside, target)
        raise
    return aside


@cache
def _libc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    return library if hasattr(library, "renameat2") else None


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    """Whether the system call did it; False where it is not supported."""
    library = _libc()
    if library is None:
        return False
    import ctypes

    old, new = os.fsencode(source), os.fsencode(target)
    if library.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(target))
