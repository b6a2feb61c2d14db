"""Each file that the agent or a command opens, against what may stand in its place."""

import json
import os
import stat
import subprocess
import sys
from contextlib import suppress

import pytest
from invoking import ran
from programs import IAMROLES, PATIENCE, ROOT, world
from strangers import STRANGER, as_root, let_in, played_by

from iamroles_agent.audit.log import Audit
from iamroles_agent.base import files
from iamroles_agent.base.config import AgentTls, AuditSettings
from iamroles_agent.base.errors import ConfigError, StartError
from iamroles_agent.control.document import POLICY, Document, Part
from iamroles_agent.control.store import Store
from iamroles_agent.live import revocations
from iamroles_agent.policy import load, load_policy
from iamroles_agent.serving.tls import Tls
from iamroles_scenarios.engine.certificates import Authority
from iamroles_tools.haproxy.render import write as write_rendered

AUTHORITY = Authority()


@pytest.fixture
def place(tmp_path):
    """A directory of an agent with all its files, each sound."""
    for name in ("policy.json", "shadow.json"):
        (tmp_path / name).write_text(json.dumps(world()))
    (tmp_path / "revocations.toml").write_text("# nothing\n")
    store = Store(tmp_path / "state")
    store.lock()
    store.write(Document(1, {POLICY: Part.of((b"policy",))}))
    store.let_go()
    audit(tmp_path)
    write_rendered({"iam.cfg": "text"}, tmp_path)
    (tmp_path / "ca.pem").write_text(AUTHORITY.public)
    (tmp_path / "agent.pem").write_text(AUTHORITY.issue("agent.test"))
    return tmp_path


def opened_store(place):
    store = Store(place / "state")
    store.lock()
    try:
        assert store.read() is not None
    finally:
        store.let_go()


def audit(place):
    Audit(AuditSettings(path=str(place / "audit.jsonl"))).close()


def shadowed(place):
    (place / "main.json").write_text(json.dumps(world(agent={"shadow_policy": "shadow.json"})))
    load_policy(place / "main.json")


def revoke(file, code=0):
    return ran("revoke add --principal p --config x --file", file, code=code)


def revoked(place):
    done = revoke(place / "revocations.toml", (0, 2, 3))
    if done.exit_code:
        raise OSError(done.output)


def tls(place):
    Tls(AgentTls(certificate="agent.pem", ca="ca.pem"), place)


FILES = {
    "policy": ("policy.json", lambda place: load(place / "policy.json")),
    "shadow policy": ("shadow.json", shadowed),
    "revocations": ("revocations.toml", lambda place: revocations.read(place / "revocations.toml")),
    "revocations of the command": ("revocations.toml", revoked),
    "lock of the command": (".revocations.toml.lock", revoked),
    "index": ("state/in-force.json", opened_store),
    "part": ("state/part-*", opened_store),
    "lock of the state": ("state/lock", opened_store),
    "head of the audit": ("audit.jsonl.head", audit),
    "certificate": ("agent.pem", tls),
    "authority": ("ca.pem", tls),
    "rendered": ("iam.cfg", lambda place: write_rendered({"iam.cfg": "text"}, place)),
}
"""Each file that is opened, and how: files of operators may be links, the agent's own may not."""
OWN = {"lock of the command", "index", "part", "lock of the state", "head of the audit"}
MADE_EMPTY = {"lock of the command", "lock of the state", "head of the audit", "rendered"}


def link(path):
    moved = path.rename(path.with_name("elsewhere"))
    path.symlink_to(moved)


def huge(path):
    with path.open("r+b") as file:
        file.truncate(1 << 40)


def stranger(path):
    path.chmod(0o666)
    os.chown(path, STRANGER, STRANGER)


PLAYS = {
    "FIFO": (lambda path: path.unlink() or os.mkfifo(path), "FIFO"),
    "directory": (lambda path: path.unlink() or path.mkdir(), "directory"),
    "empty": (lambda path: path.write_bytes(b""), ""),
    "link": (link, "link"),
    "huge": (huge, "larger than"),
    "stranger": (stranger, f"user {STRANGER}"),
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("play", PLAYS)
@pytest.mark.timeout(60)
def test_what_stands_in_place_of_a_file_is_refused_at_once_and_said(place, file, play):
    name, use = FILES[file]
    change, said = PLAYS[play]
    if play == "stranger" and os.geteuid():
        pytest.skip("plays another user, which takes root")
    with suppress(OSError):
        use(place)  # the lock of the command is there after the first use
    [path] = place.glob(name)
    change(path)
    filled = play in ("empty", "huge", "stranger") and file in MADE_EMPTY

    if (filled and not (play == "stranger" and "lock" in file)) or (play == "link" and file not in OWN):
        use(place)
        assert path.is_symlink() == (play == "link")
        return
    with pytest.raises((OSError, ConfigError, StartError)) as raised:
        use(place)
    assert said.casefold() in str(raised.value).casefold(), raised.value


def test_a_pipe_that_was_handed_over_is_read():
    command = [*IAMROLES, "policy", "check", "/dev/stdin"]
    text = (ROOT / "reference" / "examples" / "policy.toml").read_bytes()
    done = subprocess.run(command, input=text, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


# --- one writer


def test_a_write_keeps_owner_group_mode_and_link(tmp_path):
    real = tmp_path / "shared" / "real.toml"
    real.parent.mkdir()
    real.write_text("old")
    real.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(real, STRANGER, 12345)
    before = real.stat()
    path = tmp_path / "link.toml"
    path.symlink_to("shared/real.toml")

    files.write(path, b"new")

    after = real.stat()
    assert (path.is_symlink(), real.read_bytes()) == (True, b"new")
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    assert list(real.parent.iterdir()) == [real]


def test_a_write_syncs_the_file_before_its_name_and_the_directory_after(tmp_path, monkeypatch):
    steps, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: steps.append(stat.S_ISDIR(os.fstat(fd).st_mode)) or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda *names, **how: steps.append("name") or replace(*names, **how))

    files.write(tmp_path / "file", b"new")

    assert steps == [False, "name", True]


@pytest.fixture
def open_place(tmp_path):
    """A directory that every user reaches and may write."""
    let_in(tmp_path)
    return tmp_path


@as_root
def test_who_cannot_keep_the_owner_does_not_write(open_place):
    path = open_place / "file"
    path.write_text("old")

    with played_by(STRANGER), pytest.raises(OSError, match="belongs to user 0 and group 0"):
        files.write(path, b"new")

    assert (path.read_text(), list(open_place.iterdir())) == ("old", [path])


@as_root
@pytest.mark.parametrize("there", [True, False])
def test_a_link_of_a_stranger_leads_nobody_to_another_file(open_place, there):
    target = open_place / "target"
    if there:
        target.write_text("# a comment, which is TOML\n")
    with played_by(STRANGER):
        (open_place / "r.toml").symlink_to(target)

    assert "link of user 65534" in revoke(open_place / "r.toml", 3).output
    assert target.exists() == there
    assert not list(open_place.glob(".target*"))


# --- one lock


def test_a_lock_that_is_held_is_waited_for_no_longer_than_said_and_its_holder_named(tmp_path, monkeypatch):
    monkeypatch.setattr("iamroles_agent.commands.revoke._LOCKED", 0.2)
    file, lock = tmp_path / "r.toml", tmp_path / ".r.toml.lock"
    lock.touch(0o600)
    hold = "import fcntl, sys; fcntl.flock(f := open(sys.argv[1]), fcntl.LOCK_EX); print(flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", hold, lock], stdin=pipe, stdout=pipe) as holder:
        holder.stdout.readline()
        done = revoke(file, 3)
        holder.communicate(b"\n", timeout=PATIENCE)
    assert f"process {holder.pid} has held {lock} for 0.2 s" in done.output
    assert not file.exists()
    revoke(file)


@as_root
def test_a_lock_is_for_its_user_alone_and_one_of_a_former_release_becomes_so(open_place):
    file, lock = open_place / "r.toml", open_place / ".r.toml.lock"
    lock.touch(0o644)
    revoke(file)
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600
    with played_by(STRANGER), pytest.raises(PermissionError):
        lock.open("rb")
    lock.unlink()
    with played_by(STRANGER):
        lock.touch(0o600)
    assert "user 65534, who may hold it: remove it" in revoke(file, 3).output


@as_root
def test_root_locks_nobody_out_of_a_directory_of_his_own(open_place):
    os.chown(open_place, STRANGER, STRANGER)
    os.close(files.lock(open_place / "lock"))
    with played_by(STRANGER):
        os.close(files.lock(open_place / "lock"))


def test_a_lock_that_is_a_link_is_refused_and_its_target_left_alone(tmp_path):
    target, lock = tmp_path / "target", tmp_path / ".r.toml.lock"
    target.write_text("content")
    lock.symlink_to(target)

    assert f"{lock}: it is a link" in revoke(tmp_path / "r.toml", 3).output
    assert target.read_text() == "content"
