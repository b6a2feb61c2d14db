"""`iamroles conformance`: the suite without pytest. Exit codes: 0 passed, 1 not, 2 usage, 3 no stage."""

from __future__ import annotations

import click

from iamroles_conformance.commands.doctor import doctor
from iamroles_conformance.commands.explain import explain
from iamroles_conformance.commands.fuzz import fuzz
from iamroles_conformance.commands.init import init
from iamroles_conformance.commands.listing import list_
from iamroles_conformance.commands.matrix import matrix
from iamroles_conformance.commands.oracle import oracle
from iamroles_conformance.commands.report import report
from iamroles_conformance.commands.run import run
from iamroles_conformance.commands.selftest import selftest
from iamroles_conformance.commands.spec import spec


@click.group()
def conformance() -> None:
    """Judge an agent against the role-check contract."""


for _command in (init, run, list_, explain, spec, report, doctor, selftest, fuzz, oracle, matrix):
    conformance.add_command(_command)
