"""Listening sockets, at which HAProxy reaches the agent: `host:port` or `unix:/path`."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import logging
import os
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from iamroles_agent.base.config import AgentSettings
from iamroles_agent.base.errors import ENDING, InUseError, StartError

BACKLOG = 1024
"""Connections that may wait to be accepted: a HAProxy reload reconnects all threads at once."""
UNIX = "unix:"
PLAIN = (
    "plain TCP: HAProxy believes any process that binds it while the agent is away, and shows that process "
    "bearer tokens; and any process that can connect may ask with any `src`, and gets a signed identity. Use "
    "a Unix socket, or [agent.tls] (docs/haproxy.md)"
)
_PATIENCE = 5.0
"""Seconds for another agent that binds in the same directory at this moment."""

log = logging.getLogger("iamroles.server")


def split_host_port(listen: str) -> tuple[str, int]:
    """Read `host:port`, IPv6 addresses in brackets.

    Raises:
        StartError: it is neither that nor `unix:/path`.
    """
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 0xFFFF:
        raise StartError(f'cannot listen on {listen!r}: write "host:port", "[ipv6]:port" or "unix:/path"')
    return host.removeprefix("[").removesuffix("]"), int(port)


def open_all(settings: AgentSettings, inherited: Sequence[socket.socket] = ()) -> list[socket.socket]:
    """Listen on all addresses of `agent.listen`, on sockets of the agent before if it had the same.

    Other sockets of that agent are closed in this process: that agent still accepts what waits there.

    Raises:
        StartError: an address cannot be used; of the addresses of the default both.
    """
    left = list(inherited)
    found: list[socket.socket] = []
    why: list[str] = []
    for listen in settings.addresses:
        held = next((sock for sock in left if same(address_of(sock), listen)), None)
        if held is not None:
            left.remove(held)
            found.append(held)
            continue
        try:
            sock = bind(listen, settings.listen_group)
            listen_on(sock)
        except StartError as error:
            why.append(str(error))
        else:
            found.append(sock)
    if why and (settings.listen is not None or not found):
        for sock in found:
            if sock not in inherited:
                remove_unix(address_of(sock))
            sock.close()
        raise StartError("; ".join(why))
    for sock in left:
        sock.close()
    for text in why:
        log.warning("%s", text)
    return found


def warnings(addresses: Sequence[str], settings: AgentSettings) -> Iterator[str]:
    """Say what an impostor could do at these addresses."""
    for address in addresses:
        if address.startswith(UNIX):
            path = Path(address.removeprefix(UNIX))
            if (directory := _writable(path)) is not None:
                yield (
                    f"{directory} can be changed by other users than root and the agent's: they can put a "
                    f"socket of theirs in the place of {path}. Choose a directory of the agent's alone"
                )
        elif settings.tls is None:
            default = "agent.listen is left out, so " if settings.listen is None else ""
            yield f"{default}{address} is {PLAIN}"


def same(address: str, listen: str) -> bool:
    """Look whether `agent.listen` names this address; any port will do for port 0."""
    return address == listen or (listen.endswith(":0") and address.startswith(listen[:-1]))


def bind(listen: str, group: str | None = None) -> socket.socket:
    """Bind, so that a second agent on the same address is found out here; a Unix socket listens, too.

    Raises:
        StartError: the address is taken, unknown or forbidden.
    """
    end = time.monotonic() + ENDING
    while True:
        try:
            if listen.startswith(UNIX):
                return _bind_unix(Path(listen.removeprefix(UNIX)), group)
            return _bind_tcp(listen)
        except InUseError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def _bind_tcp(listen: str) -> socket.socket:
    host, port = split_host_port(listen)
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise StartError(
            f"cannot listen on {listen}: {host!r} is not an address of this host ({error.strerror})"
        ) from None
    sock = socket.socket(family, kind, proto)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise _refused(listen, error) from None
    return sock


def listen_on(sock: socket.socket) -> None:
    """Accept connections on a bound socket.

    Raises:
        StartError: another process listens there.
    """
    try:
        sock.listen(BACKLOG)
    except OSError as error:
        raise _refused(address_of(sock), error) from None
    sock.setblocking(False)


def address_of(sock: socket.socket) -> str:
    """The address in the form that the configuration and HAProxy use, the real port in place of 0."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"{UNIX}{name}"
    host, port = name[:2]
    return f"[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{host}:{port}"


def name_of(peer: object) -> str:
    """A peer in the log; a Unix socket's has no name."""
    match peer:
        case (str(host), int(port), *_):
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        case _:
            return "the peer of a Unix socket"


def remove_unix(address: str) -> None:
    """Remove the file of a Unix socket that is no longer served; nothing for TCP."""
    if address.startswith(UNIX):
        with contextlib.suppress(OSError):
            Path(address.removeprefix(UNIX)).unlink()


def remove_dead(address: str) -> None:
    """Remove the file of a Unix socket at which no process listens; nothing for TCP."""
    if address.startswith(UNIX):
        path = Path(address.removeprefix(UNIX))
        with contextlib.suppress(OSError, StartError), _locked(path.parent):
            _remove_stale(path)


def _bind_unix(path: Path, group: str | None) -> socket.socket:
    """Listen at a path, in place of the socket that a killed agent left, but never of a live one or a file.

    The socket is made and listens while its directory is locked, so that of two agents that start at once the
    second finds the first alive.
    """
    owner = -1 if group is None else _group(group)
    with contextlib.suppress(OSError):  # bind will say what is wrong
        path.parent.mkdir(0o750)
        os.chown(path.parent, -1, owner)
    before = os.umask(0o177 if group is None else 0o117)  # this user alone, or the group too
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _locked(path.parent):
            try:
                _remove_stale(path)
            except PermissionError:
                whose = f"user {path.lstat().st_uid}"
                raise StartError(
                    f"cannot listen on {UNIX}{path}: a socket of {whose} is there. Remove it, and choose a "
                    "directory that only this user may write"
                ) from None
            sock.bind(str(path))
            if group is not None and path.lstat().st_gid != owner:  # else a sandbox may forbid even this
                os.chown(path, -1, owner, follow_symlinks=False)
            sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EPERM:
            error = OSError(0, f"{group!r} in agent.listen_group is not a group of this user; add it there")
        raise _refused(f"{UNIX}{path}", error) from None
    except StartError:
        sock.close()
        raise
    finally:
        os.umask(before)
    return sock


def _group(name: str) -> int:
    if name.isascii() and name.isdigit() and int(name) < 0xFFFFFFFF:
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise StartError(
            f"agent.listen_group: this host has no group {name!r}. Write the group of HAProxy's user, by "
            "name or number"
        ) from None


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Lock a directory; go on after `_PATIENCE`, because any reader of the directory can keep the lock."""
    held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
        else:
            log.warning("another process keeps %s locked; the agent starts without the lock", directory)
        yield
    finally:
        os.close(held)


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise StartError(f"cannot listen on {UNIX}{path}: a file that is not a socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a live agent whose queue is full answers EAGAIN
        try:
            probe.connect(str(path))
        except BlockingIOError:
            pass
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        raise OSError(errno.EADDRINUSE, "")


def _writable(path: Path) -> Path | None:
    """Find a directory on the way to a path that another user than root and this one can change."""
    own = (0, os.geteuid())
    directories = path.parent.resolve()
    for directory in (directories, *directories.parents):
        about = directory.stat()
        shared = about.st_mode & 0o002 or (about.st_mode & 0o020 and about.st_gid)
        if directory != directories and about.st_mode & stat.S_ISVTX:
            shared = False  # others cannot rename what is there
        if shared or about.st_uid not in own:
            return directory
    return None


def _refused(listen: str, error: OSError) -> StartError:
    directory = Path(listen.removeprefix(UNIX)).parent
    why = {
        errno.EADDRINUSE: "another process listens there; stop it, or choose another `agent.listen`",
        errno.EACCES: "permission denied; choose a port above 1023 or a directory this user may write",
        errno.EADDRNOTAVAIL: "it is not an address of this host; correct `agent.listen`",
        None: "a path has 107 bytes at the most; choose a shorter one",  # Python itself refuses it
        errno.ENOENT: f"the directory {directory} does not exist; make it, for this user alone to write",
    }.get(error.errno, error.strerror or str(error))
    kind = InUseError if error.errno == errno.EADDRINUSE else StartError
    return kind(f"cannot listen on {listen}: {why}")
