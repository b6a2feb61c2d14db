"""Decisions put on record without a gate."""

import asyncio
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from iamroles_agent.audit.log import Audit
from iamroles_agent.audit.record import prepare
from iamroles_agent.base.config import AuditSettings
from iamroles_agent.base.identity import Decision

ALICE = Decision(allow=True, principal="alice")
ASKED = {
    "src": "192.0.2.7", "method": "GET", "host": "h", "path": "/orders", "requested_role": None,
    "policy_version": "v", "generation": 1,
}  # fmt: skip
"""The request that a decision is about."""


def decided(log, request_id, decision=ALICE, *, src_port=None, stream=None, **about):
    """Prepare and record in one go; returns as `Audit.record` does. `about` overrides `ASKED`."""
    return log.record(prepare(decision, **(ASKED | about)), request_id, src_port, stream)


def opened(path, *, worker=0, takeover=False, clock=time.time, **settings):
    """A log that writes every 40 ms, unless the test says otherwise."""
    validated = AuditSettings.model_validate({"path": str(path), "sync": "40ms"} | settings)
    return Audit(validated, worker=worker, takeover=takeover, clock=clock)


def written(path, *request_ids, **how):
    """A log of these decisions, from its start to its end."""
    log = opened(path, **how)
    for request_id in request_ids:
        decided(log, request_id)
    log.close()
    return path


def lines(path):
    return path.read_bytes().splitlines(keepends=True)


def records(*paths, kind=""):
    """Records of the files in order, or those of a kind."""
    found = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return [record for record in found if kind in ("", record.get("kind"))]


def requests(*paths):
    """The requests on record, in order."""
    return [found["request"] for found in records(*paths) if "request" in found]


def confirmed(log, request_id, **about):
    """Record a decision, and wait for the disk if the log does."""

    async def waited():
        return await log.confirmed()

    return decided(log, request_id, **about) and (not log.durable or asyncio.run(waited()))


def child(path, *programs):
    """A process that runs these texts; `path` is its argument."""
    return subprocess.Popen(
        [sys.executable, "-c", "".join(map(textwrap.dedent, programs)), str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent), "MALLOC_ARENA_MAX": "1"},
    )
