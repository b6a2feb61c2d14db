"""`iamroles conformance run`: play checks, give verdicts."""

from __future__ import annotations

import shlex
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import click

from iamroles_conformance.commands.options import Command, judges
from iamroles_conformance.errors import ExitCode
from iamroles_conformance.reports import bundle, explain, report
from iamroles_conformance.reports.statement import holds, untestable
from iamroles_conformance.subject import Subject
from iamroles_scenarios.checks.plan import named_by
from iamroles_scenarios.commands.values import Length, OutputPath
from iamroles_scenarios.declarations.catalogue import Grade
from iamroles_scenarios.declarations.results import CheckResult, Verdict
from iamroles_scenarios.declarations.scenario import PlannedCheck
from iamroles_scenarios.engine.jobs import by_importance
from iamroles_scenarios.engine.run import Run

_Pair = tuple[PlannedCheck, CheckResult]


@click.command(cls=Command)
@judges("agent", "address", "allowed", "lanes", "stage", "require", "haproxy", "scale", "load", "grade")
@click.option("--check", "checks", multiple=True, metavar="NAME", help="A check, scenario or requirement.")
@click.option(
    "--report", "directory", type=OutputPath(folder=True), help="Folder for report.json and its forms."
)
@click.option(
    "--evidence", type=click.Path(path_type=Path), help="Bundle of report and transcripts, .tar.gz."
)
@click.option("--sign-with", "signer", type=click.Path(path_type=Path), help="PEM, Ed25519: sign the bundle.")
@click.option("--budget", type=Length(), metavar="60s", help="Time for the run; important checks first.")
@click.option("--quiet", "-q", is_flag=True, help="Print only what did not pass, and the sum.")
def run(
    *,
    subject: Subject,
    checks: tuple[str, ...],
    directory: Path | None,
    evidence: Path | None,
    signer: Path | None,
    budget: float | None,
    quiet: bool,
) -> None:
    """Play checks and give verdicts.

    Exit code 0 if no MUST failed, 1 if one did, 2 for a mistake in the command or agent.toml, 3 if the stage
    or the agent on it cannot be used, 6 if nothing failed but some checks could not be judged, 130 after
    Ctrl-C or SIGTERM, which report what was played. SHOULDs that fail are warnings; without `--grade strict`,
    so is what only `strict` asks. A running agent is judged on the wire alone. With `--under-load` wrong
    answers to that traffic, or none, are a failure too.
    """
    if signer and not evidence:
        raise click.UsageError("--sign-with signs the bundle of --evidence: say both.")
    key = bundle.private_key(signer) if signer else None
    if evidence:
        bundle.prepared(evidence)
    select = named_by(checks)
    planned = [check for check in subject.planned() if select(check)]
    planned = planned if budget is None else by_importance(planned)
    pairs, explained, asked = [], set[str](), subject.arguments("--")
    with _Interrupts() as interrupts:
        with (
            report.of_this_run(directory),
            subject.run(planned, transcripts=evidence is not None, budget=budget) as started,
        ):
            _introduce(started)
            for check, result in _until_interrupted(started, interrupts):
                pairs.append((check, result))
                if result.verdict not in (Verdict.PASS, Verdict.KNOWN_FAILURE, Verdict.NOT_APPLICABLE):
                    again = ["iamroles", "conformance", "run", *asked, "--check", check.name]
                    click.echo(explain.failure(check, result, shlex.join(again), explained) + "\n")
                elif not quiet:
                    click.echo(f"{result.verdict.value:14} {check.name}")
            over = budget is not None and started.elapsed >= budget
            if over and not pairs:
                raise click.UsageError(f"No check was played within {budget:g} s: give it more time.")
            if started.background_load is not None:
                started.background_load.end()
            found = report.document(subject, started, pairs)
        for path in report.write(found, directory) if directory else ():
            click.echo(f"wrote {path}")
        if evidence:
            bundle.write(evidence, found, {check.name: result for check, result in pairs}, key)
            click.echo(f"wrote {evidence}, {'signed' if key else 'unsigned'}")
    counts = Counter(result.verdict.value for _, result in pairs)
    totals = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    click.echo(f"{totals} in {found['seconds']} s")
    for line in report.sentences(found):
        click.echo(line)
    if missing := found["not_played"]:
        why = f"the budget of {budget:g} s is over" if over else "interrupted"
        click.echo(f"{why}: {len(missing)} of {len(planned)} checks were not played{_by_family(missing)}")
        if not over:
            sys.exit(ExitCode.INTERRUPTED)
    load = started.background_load
    wrong = load is not None and load.wrong
    sys.exit(_code(found, [result for _, result in pairs], subject.grade, wrong=wrong))


def _code(found: report.Document, results: list[CheckResult], grade: Grade, *, wrong: bool) -> ExitCode:
    """Return the exit code; a stage that failed excuses answers that are missing, and none that is wrong."""
    bad = [one for one in results if not holds([one.verdict.value], grade)]
    if not wrong and bad and all(one.cause and one.verdict is Verdict.HARNESS_ERROR for one in bad):
        return ExitCode.STAGE_FAULT
    if found["load_sound"] is False:
        return ExitCode.FAILED
    if untestable([result.verdict.value for result in results], grade):
        return ExitCode.UNTESTABLE
    return ExitCode.PASSED if found["passed"] else ExitCode.FAILED


def _by_family(names: list[str]) -> str:
    counts = Counter(name.partition(".")[0] for name in names)
    return f" ({', '.join(f'{count} {family}' for family, count in counts.items())})"


class _Interrupts:
    """Ctrl-C and SIGTERM: from the first check to the last file they end the waiting for checks and nothing
    else, so that an interrupt loses no report. Before, the first one ends everything, later the second.
    """

    def __init__(self) -> None:
        self._came, self._waits = False, True
        self._former = {
            number: signal.signal(number, self._take)
            for number in (signal.SIGINT, signal.SIGTERM)
            # A command that was started in the background ignores Ctrl-C.
            if signal.getsignal(number) is not signal.SIG_IGN
        }

    def _take(self, *_: object) -> None:
        again, self._came = self._came, True
        if self._waits or again:
            raise KeyboardInterrupt

    def until(self, source: Iterator[_Pair]) -> Iterator[_Pair]:
        while not self._came:
            try:
                self._waits = True
                pair = next(source, None)
                self._waits = False
            except KeyboardInterrupt:
                break
            if pair is None:
                break
            yield pair
        self._waits = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)


def _until_interrupted(started: Run, interrupts: _Interrupts) -> Iterator[_Pair]:
    """Checks and results, in the order of the plan or, under a budget, as they come.

    After an interrupt, and when the budget is over, what is known by then.
    """
    budget = started.options.budget
    waiting = {check.name: check for check in started.planned}
    source = zip(started.planned, started.results()) if budget is None else started.in_budget(budget)  # noqa: B905 - results may end early
    for check, result in interrupts.until(source):
        del waiting[check.name]
        yield check, result
    for check in waiting.values():
        if (known := started.result_so_far(check)) is not None:
            yield check, known


def _introduce(started: Run) -> None:
    haproxy = f", HAProxy {started.haproxy_version}" if started.haproxy_version else ""
    click.echo(f"judging {started.agent.name} {started.agent.version}".rstrip() + haproxy)
    if started.stage is not None:
        click.echo(started.stage.why)
    if started.host:
        click.echo(started.host)
