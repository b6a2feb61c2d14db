"""One worker's parts, put together: policy, credentials, audit, metrics, gate; and how they reload.

A reload is all or nothing (RELOAD-BAD-001). The new file is read and compiled first; only when nothing can
fail any more do policy, issuers and memory change, in one step of the event loop. A bad file changes nothing,
and the line that answers SIGHUP says where it is wrong.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from iamroles_agent.audit.log import Audit
from iamroles_agent.config import Config
from iamroles_agent.errors import ConfigError
from iamroles_agent.gate import Gate
from iamroles_agent.metrics import Metrics
from iamroles_agent.policy import Policy, load, load_policy
from iamroles_agent.server import ConnectionStats
from iamroles_agent.tokens import Authenticator

_log = logging.getLogger("iamroles.agent")


class Application:
    """What one worker runs behind its sockets; see `supervisor.App`.

    Args:
        path: the configuration file, read again at each reload.
        config: what it said at the start.
        worker: index of this worker.
    """

    def __init__(self, path: Path, config: Config, worker: int = 0) -> None:
        self._path = path
        self._worker = worker
        self._config = config
        self._close: list[Callable[[], None]] = []

    @property
    def gate(self) -> Gate:
        """Who decides; exists after `start`."""
        return self._gate

    async def start(self, connections: ConnectionStats) -> None:
        """Open the audit log and the metrics port, begin to fetch keys.

        Raises:
            StartError, ConfigError: see their text.
        """
        config = self._config
        policy = load_policy(self._path, config)
        self._audit = audit = Audit(config.audit, worker=self._worker)
        self._close.append(audit.close)
        self._metrics = metrics = Metrics(config.metrics, worker=self._worker)
        metrics.connections, metrics.audit = connections, audit.state
        metrics.authenticator = self._authenticator = Authenticator(config)
        self._gate = Gate(policy, self._authenticator, audit, metrics)
        metrics.policy(policy.version)
        audit.policy(policy.version, accepted=True)
        if address := metrics.serve():
            self._close.append(metrics.close)
            _log.info("metrics on http://%s/metrics", address)
        await self._authenticator.start()

    async def reload(self) -> dict[str, object]:
        """Take up the changed file, or keep all as it was."""
        self._audit.reopen()
        try:
            config = await asyncio.to_thread(load, self._path)
            policy = await asyncio.to_thread(load_policy, self._path, config)
            await self._put_in_force(policy, config)
        except ConfigError as error:
            self._metrics.policy_rejected()
            self._audit.policy(self._gate.policy.version, accepted=False, detail=str(error))
            _log.error("the new configuration is turned down, the old one stays in force:\n%s", error)
            return {"reloaded": False, "error": str(error), "policy": self._gate.policy.version}
        self._metrics.policy(policy.version)
        self._audit.policy(policy.version, accepted=True)
        return {"reloaded": True, "policy": policy.version}

    async def _put_in_force(self, policy: Policy, config: Config) -> None:
        # `reconfigure` changes its rules before its first suspension, so both change in one step.
        former = self._gate.policy
        self._gate.replace(policy, self._authenticator)
        try:
            await self._authenticator.reconfigure(config)
        except ConfigError:
            self._gate.replace(former, self._authenticator)
            raise
        for table in ("agent", "audit", "metrics"):
            if getattr(config, table) != getattr(self._config, table):
                _log.warning("[%s] has changed: that takes a restart, not a reload", table)
        self._config = config

    async def close(self) -> None:
        """Release everything; also after a failed start."""
        if hasattr(self, "_authenticator"):
            await self._authenticator.close()
        for close in reversed(self._close):
            await asyncio.to_thread(close)
