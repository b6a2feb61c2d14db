"""Listening sockets: who may connect, and who cannot take their place."""

import errno
import fcntl
import logging
import os
import socket
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from strangers import STRANGER, as_root, let_in, played_by

from iamroles_agent.base import config
from iamroles_agent.base.config import AgentSettings
from iamroles_agent.base.errors import StartError
from iamroles_agent.processes import local_socket
from iamroles_agent.serving import listening


def settings(*listen, **more):
    return AgentSettings(listen=list(listen), **more)


@pytest.fixture
def opened():
    held: list[socket.socket] = []
    os.umask(mask := os.umask(0o022))

    def opens(*listen, inherited=(), **more):
        found = listening.open_all(settings(*listen, **more), inherited)
        held.extend(found)
        return found

    yield opens
    for sock in held:
        sock.close()
    os.umask(mask)  # threads that listen at once have one between them; agents are processes


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "agent.sock"


def test_the_group_may_connect_and_nobody_else(opened, path):
    group = next((number for number in os.getgroups() if number != os.getegid()), os.getegid())
    opened(f"unix:{path}", listen_group=str(group))

    for about, mode in ((path.stat(), 0o660), (path.parent.stat(), 0o750)):
        assert (stat.S_IMODE(about.st_mode), about.st_gid) == (mode, group)


@pytest.mark.parametrize("mask", [0, 0o022, 0o077])
def test_without_a_group_nobody_else_may(opened, path, mask):
    before, local = os.umask(mask), path.parent / "local" / "agent.sock"
    try:
        opened(f"unix:{path}")
        local_socket.bind(local).close()
        assert os.umask(mask) == mask
    finally:
        os.umask(before)

    modes = [stat.S_IMODE(found.stat().st_mode) for found in (path, local, local.parent)]
    assert modes == [0o600, 0o600, 0o750 & ~mask]


@pytest.mark.parametrize(
    ("group_below", "why"),
    [
        (("no-such", "a"), r"agent\.listen_group: this host has no group 'no-such'.*HAProxy"),
        (("9" * 20, "a"), r"agent\.listen_group: this host has no group '9999"),
        ((None, "a" * 120), r"a path has 107 bytes at the most; choose a shorter one"),
        (("1", "a"), r"'1' in agent\.listen_group is not a group of this user"),
        ((None, "a/b"), r"the directory .*/a/b does not exist; make it"),
    ],
)
def test_a_group_or_directory_of_no_use_is_named(opened, tmp_path, monkeypatch, group_below, why):
    def refuse(*_about, **_how):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    group, below = group_below
    with pytest.raises(StartError, match=why):
        opened(f"unix:{tmp_path}/{below}/agent.sock", listen_group=group)


@as_root
@pytest.mark.parametrize("mode", [0o600, 0o777])
def test_a_socket_of_a_stranger_is_named_with_the_remedy(opened, tmp_path, mode):
    let_in(tmp_path)
    tmp_path.chmod(0o1777)
    with played_by(STRANGER), socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{tmp_path}/agent.sock")
        (tmp_path / "agent.sock").chmod(mode)

    with played_by(1), pytest.raises(StartError, match="a socket of user 65534 is there"):
        opened(f"unix:{tmp_path}/agent.sock")


def test_a_live_agent_whose_queue_is_full_is_not_replaced(opened, path):
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as live, socket.socket(socket.AF_UNIX) as waiting:
        live.bind(str(path))
        live.listen(0)
        waiting.connect(str(path))
        with pytest.raises(StartError, match="another process listens there"):
            opened(f"unix:{path}")


@pytest.mark.parametrize("kind", ["file", "link to a file", "link to nothing", "directory"])
def test_anything_else_in_its_place_stays(opened, path, kind):
    path.parent.mkdir()
    precious = path.parent / "precious"
    precious.write_text("precious")
    {
        "file": lambda: precious.rename(path),
        "link to a file": lambda: path.symlink_to(precious),
        "link to nothing": lambda: path.symlink_to("nowhere"),
        "directory": path.mkdir,
    }[kind]()
    with pytest.raises(StartError, match="a file that is not a socket is there"):
        opened(f"unix:{path}")

    assert path.is_symlink() or path.is_dir() or path.read_text() == "precious"


def test_of_agents_that_start_at_once_over_a_stale_socket_one_starts(opened, path):
    opened(f"unix:{path}")[0].close()
    begin = threading.Barrier(8)

    def start(_number):
        begin.wait()
        with suppress(StartError):
            return opened(f"unix:{path}")

    with ThreadPoolExecutor(8) as pool:
        assert sum(found is not None for found in pool.map(start, range(8))) == 1
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_directory_that_others_keep_locked_does_not_stop_the_start(opened, path, monkeypatch, caplog):
    monkeypatch.setattr(listening, "_PATIENCE", 0.05)
    path.parent.mkdir()
    held = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    opened(f"unix:{path}")
    os.close(held)

    assert "keeps" in caplog.text


@pytest.mark.parametrize(
    ("mode", "own", "warned"),
    [(0o750, "", 0), (0o777, "", 1), (0o1777, "", 1), (0o777, "own/", 1), (0o1777, "own/", 0)],
)
def test_a_directory_in_which_others_could_bind_or_rename_is_warned_of(path, mode, own, warned):
    place = path.parent
    (place / own).mkdir(parents=True)
    place.chmod(mode)
    said = list(listening.warnings([f"unix:{place}/{own}agent.sock"], settings()))

    assert [str(place) in text for text in said] == [True] * warned


def test_plain_tcp_is_warned_of_and_tls_is_not():
    tls = config.AgentTls(certificate="a", ca="b")
    (said,) = listening.warnings(["127.0.0.1:9901"], settings())

    assert "believes any process that binds it while the agent is away" in said
    assert list(listening.warnings(["127.0.0.1:9901"], settings(tls=tls))) == []


def test_the_default_serves_what_can_be_used(path, monkeypatch, caplog):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr(config, "LISTEN", (f"unix:{path}", port))
        (found,) = listening.open_all(AgentSettings())
        assert f"cannot listen on {port}: another process listens there" in caplog.text
        with pytest.raises(StartError, match=r"agent.sock: another.*; cannot listen on 127"):
            listening.open_all(AgentSettings())
    assert listening.address_of(found) == f"unix:{path}"
    caplog.clear()
    (other,) = listening.open_all(AgentSettings())  # the former release is gone, another agent is not
    assert (listening.address_of(other), f"{path}: another process" in caplog.text) == (port, True)
    for sock in (found, other):
        sock.close()
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_if_one_of_a_list_cannot_be_used_none_is(opened, path):
    with pytest.raises(StartError, match=r"192\.0\.2\.1:1: it is not an address of this host"):
        opened(f"unix:{path}", "192.0.2.1:1")

    assert not path.exists()
