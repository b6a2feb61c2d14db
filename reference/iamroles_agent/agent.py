"""The agent put together: its configuration, its members, what is in force at the start."""

from __future__ import annotations

import logging
from pathlib import Path

from iamroles_agent.config import Config
from iamroles_agent.control import policy_part
from iamroles_agent.control.document import POLICY, Document, Part
from iamroles_agent.courier import Courier
from iamroles_agent.link import Birth
from iamroles_agent.policy import load, load_policy
from iamroles_agent.supervisor import Life, Supervisor
from iamroles_agent.tokens.authenticator import rules_of
from iamroles_agent.worker import Worker

log = logging.getLogger("iamroles.agent")


class Agent:
    """One `iamroles agent run`.

    Args:
        path: the configuration, read again at each reload.
        config: what it said at the start.
        policy: the part that was made of it.
    """

    def __init__(self, path: Path, config: Config, policy: Part) -> None:
        self.path, self.config = path, config
        self._policy = policy

    @classmethod
    def read(cls, path: Path) -> Agent:
        """Read and check the configuration.

        Raises:
            ConfigError: every problem of it.
        """
        config, part = _read(path)
        return cls(path, config, part)

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; the exit status.

        Raises:
            StartError: see its text.
        """
        document = Document(1, {POLICY: self._policy})
        return Supervisor(self.config.agent, document, self).run()

    # The members: see `supervisor.Crew`.

    def worker(self, birth: Birth) -> Life:
        """A worker's life."""
        return Worker(self.config, birth).run()

    def courier(self, birth: Birth) -> Life:
        """The courier's life."""
        return Courier(self.config, birth).run()

    def load(self) -> Part:
        """Read the file anew.

        Raises:
            ConfigError: every problem of it.
        """
        config, part = _read(self.path)
        for table in ("agent", "audit", "metrics"):
            if getattr(config, table) != getattr(self.config, table):
                log.warning("[%s] has changed: that takes a restart, not a reload", table)
        return part


def _read(path: Path) -> tuple[Config, Part]:
    config = load(path)
    policy = load_policy(path, config)
    rules_of(config)
    return config, policy_part.encode(policy)
