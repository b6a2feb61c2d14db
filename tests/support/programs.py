"""Programs as child processes: lines of JSON and a log; and a policy for `iamroles agent run`."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from policies import document, grant
from tokens_support import AUDIENCE, ROLE

from iamroles_scenarios.stage.fork_server import ForkServer

IAMROLES = [sys.executable, "-m", "iamroles_agent"]
ROOT = Path(__file__).parents[2]
PATIENCE = 20.0
PRELOAD = "iamroles_agent.commands.serve", "iamroles_agent.commands.agent", "iamroles_agent.serving.scrape"


@cache
def _server():
    return ForkServer([*PRELOAD, "encodings.idna"], ROOT)


class Forked(subprocess.Popen):
    """`python -m` a module, forked from a process that has imported the agent: an import is CPU time."""

    def _execute_child(self, args, _executable, _before, _close, _pass, cwd, env, *rest):
        pipes, orders = rest[3:9], _server()._socket
        assert [*args[:2], rest[-3]] == [*IAMROLES[:2], -1], "what this cannot is for `subprocess.Popen`"
        order = [list(map(str, args)), dict(env or os.environ), str(cwd or Path.cwd())]
        streams = [number if end < 0 else end for number, end in enumerate(pipes[i] for i in (0, 3, 5))]
        with _server()._lock:
            socket.send_fds(orders, [json.dumps(order).encode()], streams)
            self.pid = int(orders.recv(64))
        self._child_created = True
        self._close_pipe_fds(*pipes)


def module(name, *words, timeout=2 * PATIENCE):
    """Run `python -m` a module to its end, in the repository."""
    command, pipe = [sys.executable, "-m", name, *map(str, words)], subprocess.PIPE
    with Forked(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            said = process.communicate(timeout=timeout)
        finally:
            process.kill()
    return subprocess.CompletedProcess(command, process.returncode, *said)


def iamroles(*words):
    return module("iamroles_agent", *words)


def world(issuer="http://127.0.0.1:9", **tables):
    """A policy whose issuer publishes its keys at `/jwks`, and under which the reader may GET /orders."""
    corp = {"name": "corp", "issuer": issuer, "jwks_uri": f"{issuer}/jwks", "insecure_http": True}
    about = {
        "agent": {"listen": "127.0.0.1:0"},
        "audit": {"path": "none"},
        "issuers": [corp | {"audiences": [AUDIENCE], "algorithms": ["ES256"]}],
        "roles": [{"name": "reader", "arn": ROLE}],
        "backends": [{"name": "orders", "servers": ["127.0.0.1:9"]}],
    }
    return document(grant("R1", "reader", "GET", "/orders", "orders"), **about | tables)


class Program:
    """A program that prints lines of JSON; its log, which is its standard error, is a file of a directory."""

    def __init__(self, directory, *command):
        self.directory, self._command = directory, command
        (directory / "log").write_text("")

    def start(self, *options, popen=Forked, **how):
        with (self.directory / "log").open("a") as log:
            how = {"stdout": subprocess.PIPE, "stderr": log, "bufsize": 0} | how
            self.process = popen([*self._command, *options], **how)
        self._unread = b""

    def line(self):
        """The next line of standard output."""
        while b"\n" not in self._unread:
            assert select.select([self.process.stdout], [], [], PATIENCE)[0], self.log()
            data = os.read(self.process.stdout.fileno(), 4096)
            assert data, f"the program ended: {self.log()}"
            self._unread += data
        line, self._unread = self._unread.split(b"\n", 1)
        return json.loads(line)

    def log(self):
        return (self.directory / "log").read_text()

    def reload(self):
        self.process.send_signal(signal.SIGHUP)
        return self.line()

    def ended(self, *signals):
        """Return its exit status, once it has these signals; after SIGKILL its members may live a moment."""
        for number in signals:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def children(self, name=""):
        """Pids of its members, or of those whose names begin so."""
        pid = self.process.pid
        pids = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return {pid for pid in pids if name in ("", _comm(pid)[: len(name)])}

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def _comm(pid):
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@contextmanager
def running(directory, policy, **how):
    """An agent with this policy, and `ready`, its first line."""
    path = directory / "world.json"
    path.write_text(json.dumps(policy))
    agent = Program(directory, *IAMROLES, "agent", "run", "--config", str(path))
    agent.start(**how)
    try:
        agent.ready = agent.line()
        yield agent
    finally:
        agent.close()
