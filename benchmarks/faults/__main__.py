"""Faults by a stranger's method: `python -m benchmarks.faults [FAULT…]`.

The mutants of the self-test were written beside the checks. These faults were written by a walk through the
agent's source, file by file, without a look at the checks. Each replaces one text of a copy of
`reference/`; the suite judges that copy on the stage of processes, until a check FAILs, warns of a SHOULD,
or departs from the grade `strict`, which the agent keeps. The checks that prove the fault's clause are
played first, then the families that `families` names, then all others. The TOML files beside this one have
a row for each fault:

- `id`, and `kind`, a few words that group faults; `title`, the fault as a clause.
- `file` under reference/, and `old`, which stands there once, with `new` in its place.
- `families`, separated by blanks: what should see it; `clause` of SPEC.md: what it breaks, `shown`: by what.
- `missed`, if the suite did not see it at its first play; `same`, if no answer can differ, and why;
  `permitted`, if SPEC.md permits it after all, and why.

It prints one line for each fault, then the shares by kind. The exit code is 1 if a fault was not seen.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

from iamroles_conformance.subject import default_agent_toml
from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.declarations.catalogue import catalogue
from iamroles_scenarios.declarations.results import Verdict
from iamroles_scenarios.engine.run import Options, Run
from iamroles_scenarios.stage import AgentSpec, open_stage
from iamroles_scenarios.stage.rendering import SHIPPED

HERE = Path(__file__).parent
LONGEST = 900.0
"""Seconds for one fault."""
_PROGRAM = """#!{python}
import runpy, sys
sys.path.insert(0, {folder!r})
runpy.run_module("iamroles_agent", run_name="__main__", alter_sys=True)
"""


@cache
def others():
    """Return what the agent imports that is not its own: the fork server imports that for all faults."""
    program = "import sys, iamroles_agent.commands.serve\nprint(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return tuple(
        name for name in found.stdout.split() if not name.startswith(("iamroles", "_")) and name[0].islower()
    )


def copied(fault, folder):
    """Copy reference/ into `folder` with the fault, and return the agent that runs from there."""
    shutil.copytree(HERE.parents[1] / "reference", folder, dirs_exist_ok=True)
    path = folder / fault["file"]
    source = path.read_text()
    if source.count(fault["old"]) != 1:
        raise SystemExit(f"{fault['id']}: `old` stands {source.count(fault['old'])} times in {fault['file']}")
    path.write_text(source.replace(fault["old"], fault["new"]))
    program = folder / "agent.py"
    program.write_text(_PROGRAM.format(python=sys.executable, folder=str(folder)))
    program.chmod(0o755)
    child = (str(folder / "agent.py"),)
    spec = AgentSpec.load(default_agent_toml())
    spec = replace(spec, name=fault["id"], build="", command=(*child, *spec.command[1:]), preload=others())
    if "iamroles_tools" not in fault["file"]:
        return spec
    return replace(spec, haproxy={**spec.haproxy, "render": [*child, *SHIPPED[1:]]})


def _clauses(check):
    return {clause for name in check.requirements for clause in catalogue()[name].clauses}


def seen(fault, stage, turns):
    """Play the suite on the agent until a check sees it. Return it and its message, or what came near."""
    first = tuple(f"{family}." for family in fault["families"].split())
    checks = plan()
    clauses = set(fault.get("clause", "").split())

    def rank(check):
        return 0 if clauses & _clauses(check) else 1 if check.id.startswith(first) else 2

    near = []
    with tempfile.TemporaryDirectory(prefix="iamroles-fault-") as folder:
        spec = copied(fault, Path(folder))
        for turn in turns:
            if not (chosen := [check for check in checks if rank(check) == turn]):
                continue
            with Run(spec, chosen, Options(), stage=stage, namespace=f"-{fault['id']}-{turn}") as run:
                for check, result in run.in_budget(LONGEST):
                    if result.verdict in (Verdict.FAIL, Verdict.WARNING, Verdict.DEPARTURE):
                        return check.name, result.message
                    if result.verdict not in (Verdict.PASS, Verdict.NOT_APPLICABLE):
                        near.append(f"{result.verdict.value} {check.name}: {result.message[:200]}")
    return "", ", ".join(near[:5])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("fault", nargs="*", help="ids or prefixes of ids; default: all")
    parser.add_argument("--jobs", type=int, default=2)
    turns = "0: the checks of the clause; 1: others of the families; 2: all others"
    parser.add_argument("--turns", type=int, nargs="*", default=[0, 1, 2], help=turns)
    options = parser.parse_args()
    rows = [row for file in sorted(HERE.glob("*.toml")) for row in tomllib.loads(file.read_text())["fault"]]
    rows = [row for row in rows if row["id"].startswith(tuple(options.fault) or "")]
    count: dict[str, Counter[str]] = {}
    with open_stage("processes") as stage, ThreadPoolExecutor(options.jobs) as pool:
        for row, (check, message) in zip(
            rows, pool.map(lambda row: seen(row, stage, options.turns), rows), strict=True
        ):
            word = "seen" if check else "MISSED"
            print(f"{word:7}{row['id']:28} {row['title']} — {check} {message[:300]}", flush=True)
            ended = "same" if row.get("same") or row.get("permitted") else "seen" if check else "unseen"
            at_first = ["at first"] if ended == "seen" and not row.get("missed") else []
            count.setdefault(row["kind"], Counter()).update([ended, *at_first])
    print("\n| kind | faults | seen at first | seen now |\n|---|---|---|---|")
    for kind, found in sorted(count.items()):
        print(f"| {kind} | {found['seen'] + found['unseen']} | {found['at first']} | {found['seen']} |")
    return any(found["unseen"] for found in count.values())


if __name__ == "__main__":
    sys.exit(main())
