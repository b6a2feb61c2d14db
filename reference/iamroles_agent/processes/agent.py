"""The agent put together: its configuration, its members, and what is in force at the start."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from iamroles_agent import __version__
from iamroles_agent.base import files
from iamroles_agent.base.config import Config
from iamroles_agent.base.errors import ConfigError, StartError
from iamroles_agent.control import policy_part
from iamroles_agent.control.document import POLICY, Document, Part, Parts
from iamroles_agent.control.store import Restored, Store
from iamroles_agent.live import revocations
from iamroles_agent.policy import load
from iamroles_agent.policy.load import identity_secrets, nonce_key, shadow_of
from iamroles_agent.processes import handover, identity_keys, local_socket
from iamroles_agent.processes.fetcher import Fetcher
from iamroles_agent.processes.handover import Inheritance
from iamroles_agent.processes.link import Startup
from iamroles_agent.processes.supervisor import Life, Supervisor
from iamroles_agent.processes.watch import Watch
from iamroles_agent.processes.worker import Worker
from iamroles_agent.serving import listening
from iamroles_agent.serving.bounded import RESERVED, raise_descriptors, room
from iamroles_agent.serving.tls import Tls

log = logging.getLogger("iamroles.agent")

SOCKET = "agent.sock"
_Found = TypeVar("_Found")
_WITHOUT_STATE = (
    "agent.state_dir is not set: if the whole agent dies, the file decides at the next start, whatever was "
    "accepted; key sets are fetched again, live.revocations is read; an identity header without "
    "secrets has new keys"
)


class Agent:
    """One `iamroles agent run`.

    Args:
        path: the configuration, read again at each reload.
        config: its content at the start.
        document: the document in force at the start.
        store: where the document is saved.
        inherited: sockets and lock of the agent that it takes over from.
        died: whether the previous agent ended without draining.
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        document: Document,
        store: Store | None,
        inherited: Inheritance | None = None,
        *,
        died: bool = False,
        stamp: files.Stamp | None = None,
    ) -> None:
        self.path, self.config = path, config
        self._inherited, self._died, self._stamp = inherited, died, stamp
        self._document, self._store = document, store
        self._local: socket.socket | None = None
        self._began = time.time()
        self._tls: Tls | None = None

    @classmethod
    def read(cls, path: Path, state_dir: Path | None = None, *, take_over: bool = False) -> Agent:
        """Read and check the configuration, and what was kept of the agent before.

        Args:
            path: the configuration.
            state_dir: in place of the configuration's; then what was accepted comes back even if the
                configuration can no longer be read.
            take_over: whether to take over from the agent that runs with this state directory, if one does.

        Raises:
            ConfigError: every problem of the configuration.
            StartError: what was kept cannot be trusted, or cannot be taken over.
        """
        store = restored = inherited = None
        stamp = files.stamp(path)
        if not take_over:
            store, restored = _opened(state_dir)
        try:
            config, parts = _read(path)
        except ConfigError as error:
            if take_over:  # a plain start, unless a running agent has the lock
                with suppress(StartError):
                    store, restored = _opened(state_dir)
            if restored is None or not restored.died:
                raise
            log.error("%s\nthe policy that was accepted last is in force", error)
            parts = {POLICY: restored.document.parts[POLICY]}
            config = _readable(parts[POLICY], policy_part.decode_base)
        if state_dir is None:
            state_dir = _beside(path, config.agent.state_dir)
        if take_over:
            if state_dir is None:
                raise StartError(
                    "to take over, both agents need the same agent.state_dir: it hands over what is in force"
                )
            socket_path = _beside(path, config.agent.control_socket) or state_dir / SOCKET
            inherited = handover.take(socket_path, config.agent.addresses)
        if store is None:
            store, restored = _opened(state_dir, None if inherited is None else inherited.lock)
        if store is None:
            log.warning(_WITHOUT_STATE)
        if inherited is not None and restored is not None:
            restored = replace(restored, died=False)
        document = identity_keys.at_start(
            config.identity_header,
            _at_start(restored, parts[POLICY]),
            time.time(),
            parts.get(identity_keys.IDENTITY_KEYS),
        )
        document = revocations.at_start(_beside(path, config.live.revocations), document)
        died = restored is not None and restored.died
        return cls(path, config, document, store, inherited, died=died, stamp=stamp)

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; the exit status.

        Raises:
            StartError: see its text.
        """
        raise_descriptors()
        if (wanted := self.config.agent.max_connections) > room():
            log.warning(
                "agent.max_connections is %d, but a worker has descriptors for %d connections, and %d for "
                "all else: the lower bound holds. Raise the hard limit (ulimit -Hn, systemd's LimitNOFILE)",
                *(wanted, room(), RESERVED),
            )
        if (tls := self.config.agent.tls) is not None:
            self._tls = Tls(tls, self.path.parent)
        kept = None if self._store is None else self._store.directory / SOCKET
        self._local_path = _beside(self.path, self.config.agent.control_socket) or kept
        if self._inherited is not None:
            self._local = self._inherited.local
        elif self._local_path is not None:
            self._local = local_socket.bind(self._local_path)
            for text in listening.warnings([listening.address_of(self._local)], self.config.agent):
                log.warning("%s", text)
        if self.config.metrics.listen:
            import_module("iamroles_agent.serving.scrape")  # once, before any worker
        others = self._inherited is not None
        try:
            if self._store is not None:
                self._save(self._document, running=True)
            supervisor = Supervisor(
                self.config.agent,
                self._document,
                self,
                saves=self._store is not None,
                on_ready=self._ready,
                listeners=() if self._inherited is None else self._inherited.listeners,
            )
            try:
                status = supervisor.run()
            except StartError:
                if self._store is not None and not others:
                    # The agent before died and this one cannot start: the next must still know of the death.
                    self._save(self._document, running=self._died)
                raise
            others = supervisor.plane.left or (others and not supervisor.plane.members.served)
            if self._store is not None and not others:
                try:
                    self._save(supervisor.plane.document, running=False)
                except StartError as error:
                    # The index still tells of a running agent; but without its policy the file decides.
                    if left := self._store.disown(None):
                        raise StartError(f"{error}{left}") from None
                    log.error("%s", error)
            return status
        finally:
            if self._local is not None and self._local_path is not None and not others:
                listening.remove_unix(f"{listening.UNIX}{self._local_path}")
                self._local.close()

    def _ready(self) -> None:
        if self._inherited is not None:
            self._inherited.taken()
            if self._stamp != files.stamp(self.path):  # the agent before may have taken up what changed
                os.kill(os.getpid(), signal.SIGHUP)

    def _save(self, document: Document, *, running: bool) -> None:
        assert self._store is not None  # noqa: S101 - only called with one
        try:
            self._store.write(document, running=running)
        except OSError as error:
            where = self._store.directory
            why = f"what is in force cannot be saved in {where}: {error.strerror or error}"
            raise StartError(f"{why}. Make room there, or name another agent.state_dir") from None

    def _let_go(self) -> None:
        """Close, in a worker or loader, the files that must not outlive the parent there."""
        if self._local is not None:
            self._local.close()
        if self._store is not None:
            self._store.let_go()
        if self._inherited is not None:
            self._inherited.forget()

    # The members: see `supervisor.Crew`.

    def worker(self, startup: Startup) -> Life:
        self._let_go()
        return Worker(
            self.config,
            startup,
            takes_over=self._inherited is not None,
            master=self._master(),
            tls=self._tls,
        ).run()

    def _master(self) -> str | None:
        name = self.config.live.master_socket
        if name is None or (":" in name and "/" not in name):
            return name
        return str((self.path.parent / name).absolute())

    def fetcher(self, startup: Startup) -> Life:
        if self._inherited is not None:
            self._inherited.forget()
        fetcher = Fetcher(self.config, startup, self._store)
        if self._local is not None:
            fetcher.local_socket = local_socket.LocalSocket(self._local)
            fetcher.about = {
                "agent": __version__,
                "pid": os.getppid(),
                "started": self._began,
                "listen": ", ".join(map(listening.address_of, startup.listeners)),
                "state_dir": None if self._store is None else str(self._store.directory),
            }
        if (header := self.config.identity_header) is not None:
            fetcher.beside.append(lambda: identity_keys.keep_rotating(header, fetcher.link))
        if (listed := _beside(self.path, self.config.live.revocations)) is not None:
            fetcher.watch = Watch(listed, fetcher.link)
        return fetcher.run()

    def load(self) -> Parts:
        """Read the file again, and those that it names.

        Raises:
            ConfigError: every problem of it.
        """
        self._let_go()
        config, parts = _read(self.path)
        for table in ("agent", "audit", "metrics", "identity_header", "live"):
            if getattr(config, table) != getattr(self.config, table):
                log.warning("[%s] has changed: that takes a restart, not a reload", table)
        if (header := self.config.identity_header) is None or header.secrets is None:
            parts.pop(identity_keys.IDENTITY_KEYS, None)
        return parts


def _beside(path: Path, name: str | None) -> Path | None:
    """A file that the configuration names, relative to it; None if it names none."""
    return None if name is None else path.parent / name


def _opened(directory: Path | None, lock: int | None = None) -> tuple[Store | None, Restored | None]:
    if directory is None:
        return None, None
    store = Store(directory)
    store.lock(lock)
    return store, store.read()


def _at_start(restored: Restored | None, part: Part) -> Document:
    """Put in force at a start what was kept, and after an orderly end the policy of the file."""
    if restored is None:
        return Document(1, {POLICY: part})
    kept = restored.document
    if not restored.died:
        if POLICY not in kept.parts:
            log.warning("the agent before could not save the policy that it had accepted: the file decides")
        return kept if kept.parts.get(POLICY) == part else kept.edited({POLICY: part}, kept.version + 1)
    accepted = kept.parts[POLICY]
    _readable(accepted, policy_part.decode)
    if accepted.pieces != part.pieces:
        log.warning(
            "the agent before died: the policy that it had accepted (%s) is in force, not the file's (%s). "
            "SIGHUP takes up the file",
            accepted.digest,
            "only its nonce key or shadow policy differs" if accepted.digest == part.digest else part.digest,
        )
    return kept


def _readable(accepted: Part, decode: Callable[[Part], _Found]) -> _Found:
    try:
        return decode(accepted)
    except ValueError as error:
        raise StartError(
            f"the previous agent died, and the policy that it accepted ({accepted.digest}) cannot be read "
            f"by this release: {error}. Move the state directory away to start from the configuration"
        ) from None


def _read(path: Path) -> tuple[Config, dict[str, Part]]:
    config = load(path)
    parts = {POLICY: policy_part.encode(config, shadow_of(path, config), nonce_key(path, config))}
    if secrets := identity_secrets(path, config):
        parts[identity_keys.IDENTITY_KEYS] = identity_keys.shared(secrets)
    return config, parts
