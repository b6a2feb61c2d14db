"""The child process: `python -m iamroles_conformance.selftest.mutants MUTANT[,MUTANT…] agent run`."""

from __future__ import annotations

import sys

from iamroles_agent.main import main as agent_main
from iamroles_conformance.selftest.registry import mutants


def main(argv: list[str]) -> None:
    """Apply the mutants named first, then run the `iamroles` command with the rest."""
    names, arguments = [name for name in argv[0].split(",") if name], argv[1:]
    known = mutants({name.partition(".")[0] for name in names})
    for name in names:
        known[name].apply()
    agent_main(arguments, prog_name="iamroles")


if __name__ == "__main__":
    main(sys.argv[1:])
