"""Listening sockets, at which HAProxy reaches the agent: `host:port` or `unix:/path`."""

from __future__ import annotations

import contextlib
import errno
import socket
import stat
from pathlib import Path

from iamroles_agent.base.errors import StartError

BACKLOG = 1024
"""Connections that may wait to be accepted: a HAProxy reload reconnects all threads at once."""
UNIX = "unix:"


def split_host_port(listen: str) -> tuple[str, int]:
    """Read `host:port`, IPv6 addresses in brackets.

    Raises:
        StartError: it is neither that nor `unix:/path`.
    """
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 0xFFFF:
        raise StartError(f'cannot listen on {listen!r}: write "host:port", "[ipv6]:port" or "unix:/path"')
    return host.removeprefix("[").removesuffix("]"), int(port)


def bind(listen: str) -> socket.socket:
    """Bind, without listening yet, so that a second agent on the same address is found out here.

    Raises:
        StartError: the address is taken, unknown or forbidden.
    """
    if listen.startswith(UNIX):
        return _bind_unix(Path(listen.removeprefix(UNIX)))
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


def remove_unix(address: str) -> None:
    """Remove the file of a Unix socket that is no longer served; nothing for TCP."""
    if address.startswith(UNIX):
        with contextlib.suppress(OSError):
            Path(address.removeprefix(UNIX)).unlink()


def _bind_unix(path: Path) -> socket.socket:
    """Bind to a path, removing the socket that a killed agent left behind, but never a live one or a file."""
    try:
        if stat.S_ISSOCK(path.lstat().st_mode):
            _remove_stale(path)
        else:
            raise StartError(f"cannot listen on {UNIX}{path}: a file that is not a socket is there")
    except FileNotFoundError:
        pass
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
    except OSError as error:
        sock.close()
        raise _refused(f"{UNIX}{path}", error) from None
    return sock


def _remove_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError:
            return  # bind will say what is wrong
        else:
            raise _refused(f"{UNIX}{path}", OSError(errno.EADDRINUSE, ""))


def _refused(listen: str, error: OSError) -> StartError:
    why = {
        errno.EADDRINUSE: "another process listens there; stop it, or choose another `agent.listen`",
        errno.EACCES: "permission denied; choose a port above 1023 or a directory this user may write",
        errno.EADDRNOTAVAIL: "it is not an address of this host; correct `agent.listen`",
    }.get(error.errno or 0, error.strerror or str(error))
    return StartError(f"cannot listen on {listen}: {why}")
