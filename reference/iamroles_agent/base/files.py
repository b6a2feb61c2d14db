"""The one reader, writer and lock of files that other users and programs can touch.

Nothing here waits for another process without a bound: a FIFO or a device in place of a file is refused when
it is opened. Each fault is an `OSError` whose `strerror` says what is wrong. Links are followed if operators
may place them (a shared policy), and refused for files that the agent makes itself beside others.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
import time
from contextlib import suppress
from errno import EFBIG, EINVAL, EISDIR, ELOOP, EPERM
from pathlib import Path

_OPEN = os.O_CLOEXEC | os.O_NONBLOCK
_PAUSE = 0.05
_HANDED = "/dev/stdin", "/dev/fd/", "/proc/self/fd/"
"""Places of pipes that the caller of this command gave to it; no stranger can put a FIFO there."""
_KINDS = {stat.S_IFDIR: "directory", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}


class HeldError(OSError):
    """Another process holds a lock."""

    def __init__(self, path: Path, pid: int | None) -> None:
        super().__init__(EPERM, "another process" if pid is None else f"process {pid}", str(path))


def read(path: Path, limit: int, *, own: bool = False) -> bytes:
    """Read a regular file whole, without waiting.

    Args:
        path: of the file.
        limit: the most bytes that it may have.
        own: whether it must belong to this user alone, and must not be a link.

    Raises:
        OSError: it cannot be read, is not a regular file, is too large, or strangers may write it.
    """
    descriptor = _opened(path, os.O_NOFOLLOW if own else os.O_RDONLY)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if own:
            check_private(path, found)
        elif found.st_uid not in (0, os.geteuid()) and found.st_mode & stat.S_IWOTH:
            raise _fault(EPERM, path, f"it belongs to user {found.st_uid}, and everybody may write it")
        content = b"" if found.st_size > limit else file.read(limit + 1)
        if max(found.st_size, len(content)) > limit:
            size = f"{limit >> 20} MiB" if limit >> 20 else f"{limit} octets"
            raise _fault(EFBIG, path, f"it is larger than {size}")
    return content


def read_secret(path: Path, limit: int) -> bytes:
    """Read a file whole that nobody but this user, and root, may read.

    A file of root's that a group of this user's may read is such a file too: so does Kubernetes mount a
    Secret for a pod's `fsGroup`.

    Raises:
        OSError: others may read or write it, or as `read`.
    """
    found = path.stat()
    mounted = os.geteuid() != found.st_uid == 0 and found.st_gid in {os.getegid(), *os.getgroups()}
    if not mounted or found.st_mode & 0o037:
        check_private(path, found)
    return read(path, limit)


Stamp = tuple[int, int, int, int]


def stamp(path: Path) -> Stamp | None:
    """Return what differs if a file was replaced, written or made readable; None if it is not there.

    Its change time is in it: a copy may keep the modification time, and a new file may get an old number.
    """
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_ctime_ns, about.st_size, about.st_ino


def write(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace a file whole or not at all, durably; a link to it, its owner, group and mode stay.

    Args:
        path: of the file, or of a link to it.
        content: what it holds then.
        mode: of a file that does not exist yet.

    Raises:
        OSError: it is not written; what was there still is.
    """
    real = target(path)
    directory = os.open(real.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    beside = f".{real.name}.{secrets.token_hex(8)}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(beside, flags, 0o600, dir_fd=directory)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(descriptor, _like(real, descriptor, mode))
                os.fsync(descriptor)
            os.replace(beside, real.name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            # Half a file on a full disk would take the room of a smaller file that comes next.
            with suppress(OSError):
                os.unlink(beside, dir_fd=directory)
            raise
        os.fsync(directory)
    finally:
        os.close(directory)


def target(path: Path) -> Path:
    """Return the place of a file that a link leads to, unless a stranger made the link.

    Raises:
        OSError: a stranger did, and chose another user's file, or where a new one would be made.
    """
    real = Path(os.path.realpath(path))
    if path.is_symlink():
        owner = path.lstat().st_uid
        if owner not in (0, os.geteuid(), *((real.stat().st_uid,) if real.exists() else ())):
            raise _fault(EPERM, path, f"it is a link of user {owner} to another user's file")
    return real


def open_beside(path: Path, mode: int) -> int:
    """Open, or make, a file of the agent's own beside another; never through a link.

    Raises:
        OSError: it cannot be opened, or is a link or anything else than a regular file.
    """
    return _opened(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, mode)


def lock(path: Path, within: float = 0.0) -> int:
    """Hold a lock file until its descriptor, which is returned, is closed.

    Args:
        path: of the lock file, which is made for this user alone.
        within: seconds for which it may be held by another process.

    Raises:
        HeldError: another process holds it.
        OSError: it cannot be opened, or another user may hold it.
    """
    made = True
    try:
        descriptor = _opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        made, descriptor = False, _opened(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        found, owner = os.fstat(descriptor), path.parent.stat().st_uid
        if made and owner != found.st_uid and os.geteuid() == 0:
            os.fchown(descriptor, owner, -1)  # root revoked first; that must not lock its owner out
        elif found.st_uid not in (os.geteuid(), owner):
            raise _fault(EPERM, path, f"it belongs to user {found.st_uid}, who may hold it: remove it")
        if found.st_mode & 0o077:
            os.fchmod(descriptor, 0o600)  # a former release let everybody hold it
        deadline = time.monotonic() + within
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise HeldError(path, holder(path)) from None
                time.sleep(_PAUSE)
            else:
                return descriptor
    except BaseException:
        os.close(descriptor)
        raise


def holder(path: Path) -> int | None:
    """Find the process that holds a file's lock, as the kernel lists it; None if it lists none."""
    try:
        locks, found = Path("/proc/locks").read_text("ascii"), path.stat()
    except OSError:
        return None
    at = re.search(rf" FLOCK .* (\d+) \S+:{found.st_ino} ", locks)
    return int(at[1]) if at else None


def check_private(path: Path, found: os.stat_result) -> None:
    """Look whether a file or directory belongs to this user alone.

    Raises:
        OSError: it does not.
    """
    if found.st_uid != os.geteuid():
        raise _fault(EPERM, path, f"{path.name} belongs to user {found.st_uid}")
    if mode := found.st_mode & 0o077:
        raise _fault(EPERM, path, f"others may read or write {path.name} (mode {mode:04o} for them)")


def _opened(path: Path, flags: int, mode: int = 0) -> int:
    try:
        descriptor = os.open(path, flags | _OPEN, mode)
    except OSError as error:
        if error.errno == ELOOP and flags & os.O_NOFOLLOW and path.is_symlink():
            raise _fault(ELOOP, path, "it is a link") from None
        raise
    try:
        found = os.fstat(descriptor)
        if stat.S_ISFIFO(found.st_mode) and str(path).startswith(_HANDED):
            os.set_blocking(descriptor, True)
        else:
            _check_regular(path, found)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(path: Path, found: os.stat_result) -> None:
    kind = stat.S_IFMT(found.st_mode)
    if kind != stat.S_IFREG:
        error = EISDIR if kind == stat.S_IFDIR else EINVAL
        raise _fault(error, path, f"it is a {_KINDS.get(kind, 'device')}, not a regular file")


def _like(path: Path, descriptor: int, mode: int) -> int:
    """Give a new file the owner and group of the file that it replaces, if there is one; return the mode."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return mode
    _check_regular(path, found)
    made = os.fstat(descriptor)
    try:
        if (made.st_uid, made.st_gid) != (found.st_uid, found.st_gid):  # a sandbox may forbid the call
            os.fchown(descriptor, found.st_uid, found.st_gid)
    except PermissionError:
        whose = f"user {found.st_uid} and group {found.st_gid}"
        raise _fault(EPERM, path, f"it belongs to {whose}: do it as that user, or as root") from None
    return stat.S_IMODE(found.st_mode)


def _fault(number: int, path: Path, what: str) -> OSError:
    return OSError(number, what, str(path))
