"""Judge an agent while the judge itself is stopped, as its own process: `stopped_judge.py AGENT CHECK…`.

AGENT is `sound`, or a mutant's id. At the first three moments of each playing at which time counts (a life, a
bound or a wait), the whole process is stopped by SIGSTOP for 0.7 s. It prints a line of JSON for each result.
"""

import json
import os
import subprocess
import sys
import threading
from collections import Counter

from iamroles_conformance.selftest.registry import mutants
from iamroles_conformance.selftest.runner import Selftest
from iamroles_conformance.subject import default_agent_toml
from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.engine.run import Options, Run
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.stage import AgentSpec, open_stage

STOPS = 3
SCRIPT = "import os, sys, time; os.kill(int(sys.argv[1]), 19); time.sleep(0.7); os.kill(int(sys.argv[1]), 18)"
seconds, stops = Target.seconds, Counter()


def stopped(target, number):
    stops[threading.get_ident(), target.scale] += 1
    if stops[threading.get_ident(), target.scale] <= STOPS:
        subprocess.run([sys.executable, "-c", SCRIPT, str(os.getpid())], check=True)
    return seconds(target, number)


def main(who, *ids):
    Target.seconds = stopped
    checks = [check for check in plan() if check.id in ids]
    with open_stage("processes") as stage:
        agent = AgentSpec.load(default_agent_toml())
        if who != "sound":
            agent = Selftest(stage, agent)._mutated([mutants()[who]])
        with Run(agent, checks, Options(), stage=stage, namespace="-stopped") as run:
            for found in run.results():
                sys.stdout.write(json.dumps([found.check, found.verdict, found.message, found.again]) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
