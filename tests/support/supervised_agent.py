"""A program for `test_server_supervisor.py`: `python -m` it, `<listen> <workers> <state file>`.

Each worker's gate tells its pid and the policy in force there, which is the text of the state file. The text
also says how to behave: `refuse` and `die` at the start of worker 1, `mortal` at that of a replacement;
`bad`, `crash`, `wait`, `long report` in the loader; `bad for one`, `slow for one`, `nonsense of one` where
worker 1 prepares; `deaf for one` where it should switch; `stuck` where a worker drains; `patient` leaves
connections to a worker with fewer for longer than any test.
"""

import asyncio
import os
import sys
import time
from pathlib import Path

from iamroles_agent.base.config import AgentSettings
from iamroles_agent.base.errors import ConfigError, Problem, StartError
from iamroles_agent.base.identity import Decision
from iamroles_agent.base.output import log_to_stderr
from iamroles_agent.base.reasons import Reason
from iamroles_agent.control.channel import message
from iamroles_agent.control.document import POLICY, Document, Part
from iamroles_agent.control.slots import Timing
from iamroles_agent.processes.link import Link
from iamroles_agent.processes.supervisor import Supervisor
from iamroles_agent.serving import accepting
from iamroles_agent.serving.metrics import ConnectionStats
from iamroles_agent.serving.server import Server
from iamroles_agent.spop.actions import encode_verdict

TIMING = Timing(prepare=1.5, switch=1.0)


class TellingWorker:
    """Worker, gate and holding in one."""

    def __init__(self, settings, startup):
        self._settings, self._startup = settings, startup
        self._state = ""

    async def live(self):
        connections = ConnectionStats()
        self.link = link = Link(self._startup.channel, self._startup.document, lambda: {"pid": os.getpid()})
        await link.open()
        await link.member.build({POLICY: self.prepare})
        if self._state == "refuse" and self._startup.index == 1:
            raise StartError("worker 1 will not")
        if (self._state == "die" and self._startup.index == 1) or (
            self._state == "mortal" and self._startup.why
        ):
            os._exit(7)
        if self._state == "patient":
            accepting.PATIENCE = 3600.0
        link.up()
        await link.serve.wait()
        startup = self._startup
        place = {"socks": startup.listeners, "counts": startup.counts, "slot": startup.index}
        server = Server(self, self._settings, stats=connections, **place)
        await server.start()
        link.send(message("serving"))
        await link.drained.wait()
        await server.drain()
        if self._state == "stuck":
            await asyncio.Event().wait()
        link.close()

    def prepare(self, edits, coming):
        del edits
        state = coming[POLICY].pieces[0].decode()
        one = self._startup.index == 1 and self._state != ""
        if one and state == "bad for one":
            raise ConfigError([Problem("state", "", "it is bad for worker 1", "Mend it")])
        if one and state == "slow for one":
            time.sleep(30)
        if one and state == "nonsense of one":
            os.write(self._startup.channel.fileno(), b"\0\0\0\5\0\0\0\0{bad}")

        def switch():
            if one and state == "deaf for one":
                time.sleep(30)
            self._state = state

        return switch

    def recall(self, key, context, /):
        return None

    async def judge(self, check, context, key, /):
        return encode_verdict(
            Decision(
                allow=True, principal=str(os.getpid()), session=self._state, issuer=str(self._startup.index)
            )
        )

    def unhealthy(self):
        return ""

    def failed(self, context, detail, /):
        return encode_verdict(Decision(allow=False, reason=Reason.INTERNAL_ERROR))


class TellingCrew:
    """The members."""

    def __init__(self, settings, state):
        self._settings, self._file = settings, state

    def worker(self, startup):
        return TellingWorker(self._settings, startup).live()

    async def fetcher(self, startup):
        link = Link(startup.channel, startup.document, dict)
        await link.open()
        await link.member.build({})
        link.up()
        await link.drained.wait()
        link.close()

    def load(self):
        state = self._file.read_text()
        if state == "bad":
            raise ConfigError([Problem("caf\udce9", "", "the file is bad", "Mend it")])
        if state == "long report":
            problem = Problem("state", "grants", "is wrong " * 20, "Mend it")
            raise ConfigError([problem] * 3000)
        if state == "wait":
            time.sleep(30)
        if state == "crash":
            raise RuntimeError("the reload crashed")
        return {POLICY: Part.of((state.encode(),), digest=state)}


if __name__ == "__main__":
    log_to_stderr("INFO")
    listen, workers, state = sys.argv[1:]
    settings = AgentSettings.model_validate(
        {"listen": listen, "workers": int(workers), "drain_timeout": "1s"}
    )
    crew = TellingCrew(settings, Path(state))
    try:
        document = Document(1, crew.load())
        sys.exit(Supervisor(settings, document, crew, timing=TIMING).run())
    except StartError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(3)
