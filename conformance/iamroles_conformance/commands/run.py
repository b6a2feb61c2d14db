"""`iamroles conformance run`: play checks, give verdicts."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click

from iamroles_conformance.commands.options import Command, judges
from iamroles_conformance.errors import ExitCode
from iamroles_conformance.reports import bundle, explain, report
from iamroles_conformance.subject import Subject
from iamroles_scenarios.declarations.results import CheckResult, Verdict
from iamroles_scenarios.declarations.scenario import PlannedCheck
from iamroles_scenarios.engine.run import Run, selected_by

_Pair = tuple[PlannedCheck, CheckResult]


@click.command(cls=Command)
@judges("agent", "address", "allowed", "lanes", "stage", "require", "haproxy", "scale", "grade")
@click.option("--check", "checks", multiple=True, metavar="NAME", help="A check, scenario or requirement.")
@click.option("--report", "directory", type=click.Path(path_type=Path), help="Write the report there.")
@click.option("--evidence", type=click.Path(path_type=Path), help="Write the bundle there, a .tar.gz file.")
@click.option("--sign-with", "signer", type=click.Path(path_type=Path), help="PEM, Ed25519: sign the bundle.")
@click.option("--quiet", "-q", is_flag=True, help="Say only what did not pass, and the sum.")
def run(
    *,
    subject: Subject,
    checks: tuple[str, ...],
    directory: Path | None,
    evidence: Path | None,
    signer: Path | None,
    quiet: bool,
) -> None:
    """Play checks and give verdicts.

    Exit code 0 if no MUST failed, 1 if one did, 2 for a mistake in the command or agent.toml, 3 if the stage
    or the agent on it cannot be used, 130 after Ctrl-C or SIGTERM, which report what was played. SHOULDs that
    fail are warnings; without `--grade strict`, so is what only `strict` asks. A running agent is judged on
    the wire alone.
    """
    if signer and not evidence:
        raise click.UsageError("--sign-with signs the bundle of --evidence: say both.")
    key = bundle.private_key(signer) if signer else None
    select = selected_by(checks)
    planned = [check for check in subject.planned() if select(check)]
    pairs, told = [], set[str]()
    with subject.run(planned, transcripts=evidence is not None) as started:
        _introduce(started)
        for check, result in _until_interrupted(started):
            pairs.append((check, result))
            if result.verdict not in (Verdict.PASS, Verdict.KNOWN_FAILURE, Verdict.NOT_APPLICABLE):
                again = ["iamroles", "conformance", "run", *subject.arguments("--"), "--check", check.name]
                click.echo(explain.failure(check, result, shlex.join(again), told) + "\n")
            elif not quiet:
                click.echo(f"{result.verdict.value:14} {check.name}")
        found = report.document(subject, started, pairs, checks)
    for path in report.write(found, directory) if directory else ():
        click.echo(f"wrote {path}")
    if evidence:
        bundle.write(evidence, found, {check.name: result for check, result in pairs}, key)
        click.echo(f"wrote {evidence}, {'signed' if key else 'unsigned'}")
    counts = Counter(result.verdict.value for _, result in pairs)
    totals = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    click.echo(f"{totals} in {found['seconds']} s")
    for line in (*found["findings"], found["statement"]["sentence"], *found["statement"]["beside"]):
        click.echo(line)
    if len(pairs) < len(planned):
        click.echo(f"interrupted: {len(planned) - len(pairs)} of {len(planned)} checks were not played")
        sys.exit(ExitCode.INTERRUPTED)
    sys.exit(ExitCode.PASSED if found["passed"] else ExitCode.FAILED)


def _until_interrupted(started: Run) -> Iterator[_Pair]:
    """Checks and their results in the order of the plan; after Ctrl-C what is known by then."""
    waiting = list(started.planned)
    try:
        for result in started.results():
            yield waiting.pop(0), result
    except KeyboardInterrupt:
        for check in waiting:
            if (known := started.settled(check)) is not None:
                yield check, known


def _introduce(started: Run) -> None:
    haproxy = f", HAProxy {started.haproxy_version}" if started.haproxy_version else ""
    click.echo(f"judging {started.agent.name} {started.agent.version}".rstrip() + haproxy)
    if started.stage is not None:
        click.echo(started.stage.why)
