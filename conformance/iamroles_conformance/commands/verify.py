"""`iamroles conformance verify-report`: is a bundle of evidence whole, consistent, signed, and true?

Of a folder of reports: has each its form, and do its numbers add up?
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from iamroles_conformance.commands.options import Command, judges
from iamroles_conformance.errors import BundleError, ExitCode, ReportError
from iamroles_conformance.reports import bundle, report, submissions
from iamroles_conformance.reports.bundle import Bundle
from iamroles_conformance.reports.evidence import digests
from iamroles_conformance.subject import Subject
from iamroles_scenarios.base.errors import PageError
from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.commands.values import OutputPath

_UNJUDGED = {"untestable": ExitCode.UNTESTABLE, "harness-error": ExitCode.STAGE_FAULT}
"""Verdicts that say nothing about the agent, and what a replay with one ends with if none differs."""
_UNSIGNED = (
    "none. An unsigned bundle proves nothing about who made it, nor that anything in it was ever measured: "
    "anybody can write one. Only what is replayed here is seen to be so."
)


@click.command("verify-report", cls=Command)
@click.argument("path", metavar="BUNDLE|FOLDER", type=click.Path(exists=True, path_type=Path))
@judges("agent", "address", "allowed", "stage", "require", "haproxy", "scale")
@click.option("--sample", default=20, show_default=True, type=click.IntRange(min=1), help="Checks to replay.")
@click.option("--seed", type=int, help="Chooses the sample; default: random, and printed.")
@click.option("--public-key", "key", type=click.Path(path_type=Path), help="PEM, Ed25519: the vendor's.")
@click.option("--page", type=OutputPath(), help="Of a folder: put the tables of its reports into this page.")
def verify_report(  # noqa: PLR0917 - as click gives them
    path: Path, subject: Subject, sample: int, seed: int | None, key: Path | None, page: Path | None
) -> None:
    """Check a bundle of evidence that somebody published, or a folder of reports.

    Its digests and its signature are checked; its report is rendered again from its checks. With --agent or
    --agent-address some of its checks are played again, with fresh tokens, and the verdicts compared.

    Exit code 0 if all of that holds, 1 if the bundle was changed, is not signed by --public-key, is of
    another suite (which alone can render it again), or a verdict differs, 2 for a mistake in the command, 3
    if the stage or the agent on it cannot be used, 6 if nothing differs but a check was untestable here.

    A folder is that of one report (`<project>/<version>/`), or one with many. Each must have the form that
    docs/implementations.md describes, and say no more than its checks do: 1 if one does not.
    """
    if path.is_dir():
        sys.exit(_folder(path, page))
    if page:
        raise click.UsageError("--page is made from a folder of reports.")
    wanted = _wanted(key)
    try:
        found = bundle.read(path)
        _say("digests", f"{len(found.files)} files are as the manifest says")
        _say("signature", _signature(found, wanted))
        document = found.document
        _agree(found, document)
        other = _other_suite(document)
        _say("report", other or _rendered(found, document))
    except BundleError as error:
        click.echo(f"{'REFUSED':10} {error}")
        sys.exit(ExitCode.FAILED)
    code = ExitCode.PASSED
    if subject.agent or subject.address:
        code = _replay(subject, document, sample, seed)
    else:
        _say("replayed", "nothing: say --agent or --agent-address")
    statement = document["statement"]
    for line in (statement["sentence"], *statement["beside"]):
        _say("it claims" if other else "it says", line)
    if other:
        anew = report.parsed(found.files[bundle.REPORT].decode(), bundle.REPORT)["statement"]
        _say("its checks", f"as this suite counts them: {anew['sentence']}")
    sys.exit(ExitCode.FAILED if other else code)


def _folder(path: Path, page: Path | None) -> ExitCode:
    """Check a folder of reports, and write the page of those that hold together."""
    try:
        text = page.read_text(encoding="utf-8") if page else ""
    except (OSError, ValueError) as error:
        raise PageError(f"{page}: cannot be read: {error}. Name a page with the two lines.") from error
    one = (path / submissions.IMPLEMENTATION).exists() or (path / submissions.REPORT).exists()
    try:
        found, wrong = ([submissions.read(path)], []) if one else submissions.read_all(path)
    except (ReportError, OSError) as error:
        found, wrong = [], [str(error)]
    for each in found:
        how = "this suite says the same of its checks" if each.ours else "another suite's; its numbers add up"
        _say("accepted", f"{each.name}: {how}")
    for sentence in wrong:
        _say("REFUSED", sentence)
    if page:
        page.write_text(submissions.page(text, found), encoding="utf-8")
        click.echo(f"wrote {page}")
    return ExitCode.FAILED if wrong or not found else ExitCode.PASSED


def _say(what: str, text: str) -> None:
    click.echo(f"{what:10} {text}")


def _wanted(key: Path | None) -> bytes | None:
    try:
        return None if key is None else bundle.public_key(key)
    except BundleError as error:
        raise click.BadParameter(str(error), param_hint="--public-key") from error


def _signature(found: Bundle, wanted: bytes | None) -> str:
    if wanted is None:
        if found.key is None:
            return _UNSIGNED
        return f"fits the key {found.key.hex()}. Whose key that is, only --public-key can tell."
    if found.key is None:
        raise BundleError(f"{bundle.SIGNATURE}: is missing: the bundle is unsigned.")
    if found.key != wanted:
        raise BundleError(f"{bundle.SIGNATURE}: is of another key, {found.key.hex()}.")
    return f"by the key given, {wanted.hex()}"


def _other_suite(document: dict[str, Any]) -> str | None:
    own = digests(Subject().spec())
    if any(document.get("digests", {}).get(name) != own[name] for name in ("suite", "scenarios")):
        return (
            f"not rendered again: it is of another suite ({document['suite']}, by its digests); that one can"
        )
    return None


def _agree(found: Bundle, document: dict[str, Any]) -> None:
    """Hold the transcripts to the verdicts.

    Raises:
        BundleError: one is missing, or of another verdict.
    """
    for check in document["checks"]:
        name = bundle.transcript_name(check["name"])
        head = f"{check['name']}: {check['verdict']}\n".encode()
        if not found.files.get(name, b"").startswith(head):
            raise BundleError(f"{name}: is missing, or of another verdict than {bundle.REPORT} says.")


def _rendered(found: Bundle, document: dict[str, Any]) -> str:
    """Make every form again from the names and verdicts of the checks.

    Raises:
        BundleError: one is another.
    """
    anew = report.derived(report.parsed(found.files[bundle.REPORT].decode(), bundle.REPORT))
    for name, text in report.forms(anew).items():
        if found.files.get(name) != text.encode():
            differing = [key for key in document if anew.get(key) != document[key]]
            raise BundleError(
                f"{name}: does not follow from names and verdicts of the checks in {bundle.REPORT}"
                + (f" ({', '.join(differing)})." if differing else ".")
            )
    return "statement, counts, requirements and pages follow from its checks"


def _replay(subject: Subject, document: dict[str, Any], sample: int, seed: int | None) -> ExitCode:
    """Play some checks again; return whether a verdict differs, or else why one could not be had."""
    for line in _unlike(subject, document):
        _say("NOTE", line)
    reported = {one["name"]: one["verdict"] for one in document["checks"]}
    silent = {"not-applicable", *_UNJUDGED}
    planned = [check for check in plan() if reported.get(check.name, "not-applicable") not in silent]
    if subject.spec().address:
        planned = [check for check in planned if check.lane == "wire"]
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    chosen = random.Random(seed).sample(planned, min(sample, len(planned)))  # noqa: S311 - to be repeated
    if not chosen:
        _say("replayed", "nothing: no check of it can be played here")
        return ExitCode.PASSED
    with subject.run(chosen) as run:
        here, there = run.haproxy_version, document.get("haproxy")
        if here and here != there:
            _say("NOTE", f"HAProxy here is {here}, the report's {there or 'not known'}")
        results = list(zip(chosen, run.results(), strict=True))
    codes: Counter[ExitCode] = Counter()
    for check, result in results:
        verdict = result.verdict.value
        if verdict == reported[check.name]:
            continue
        code = _UNJUDGED.get(verdict, ExitCode.FAILED)
        codes[code] += 1
        said = f"{check.name}: the report says {reported[check.name]}, here it was {verdict}"
        what = "DIFFERS" if code is ExitCode.FAILED else "NOT JUDGED"
        _say(what, f"{said}: {result.message}" if result.message else said)
    agree = f"{len(chosen) - codes.total()} agree, {codes[ExitCode.FAILED]} differ"
    if unjudged := codes.total() - codes[ExitCode.FAILED]:
        agree += f", {unjudged} could not be judged here"
    _say("replayed", f"{len(chosen)} of {len(planned)} checks with --seed {seed}: {agree}")
    return min(codes, default=ExitCode.PASSED)


def _unlike(subject: Subject, document: dict[str, Any]) -> Iterator[str]:
    """In what the agent here is not the one of the report; it may still answer the same."""
    spec = subject.spec()
    said = document["product"]
    if (spec.name, spec.version) != (said["name"], said["version"]):
        yield f"the agent here is {spec.name} {spec.version}, the report's {said['name']} {said['version']}"
    here, there = digests(spec).get("agent"), document.get("digests", {}).get("agent")
    if here != there:
        yield f"the agent's program here is {here or 'not known'}, the report's {there or 'not known'}"
    if dict(spec.features) != document["features"]:
        yield "the agent here declares other features than the report's"
