"""`iamroles policy`: check, explain, compare and render a policy."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NoReturn

import click

from iamroles_agent.base.config import Config
from iamroles_agent.base.errors import ConfigError
from iamroles_agent.base.identity import Decision, McpHeaders, Request
from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.policy.compiled import Policy, version_of
from iamroles_agent.policy.load import PolicyFile, load_file, shadow_of
from iamroles_agent.policy.resources import WITH_HEADERS, Resources
from iamroles_agent.tokens.claims import actor_of
from iamroles_tools.commands.inputs import EpochSecond, act_claim, bad_input, table
from iamroles_tools.commands.policy_text import change_lines, considered_line, finding_lines
from iamroles_tools.haproxy.render import render
from iamroles_tools.policy import diff as differences
from iamroles_tools.policy import explain as explaining
from iamroles_tools.policy import lint as linting
from iamroles_tools.policy import matrix as matrices
from iamroles_tools.policy.findings import Finding
from iamroles_tools.policy.schema import schema_text
from iamroles_tools.policy.zones import as_sent

FILE = click.Path(exists=False, dir_okay=False, path_type=Path)


@click.group()
def policy() -> None:
    """Check, explain, compare and render a policy.

    Exit codes: 0 nothing found, 1 findings or differences, 2 bad input.
    """


_format_option = click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", help="For people or machines."
)


def _read(path: Path, form: str = "text", *, shadow: bool = False) -> PolicyFile:
    """Read a policy, and perhaps the shadow policy that it names, or print every problem and exit 2."""
    try:
        found = load_file(path)
        if shadow:
            shadow_of(path, found.config)
        return found
    except ConfigError as error:
        if form == "json":
            click.echo(json.dumps({"problems": [asdict(problem) for problem in error.problems]}, indent=2))
        else:
            count = len(error.problems)
            click.echo(
                f"{error}\n{count} problem{'s' if count != 1 else ''}: {path} cannot be enforced", err=True
            )
        sys.exit(2)


@policy.command()
@click.argument("file", type=FILE)
@_format_option
def check(file: Path, form: str) -> None:
    """Check whether FILE may be enforced: print every error, or its version."""
    config = _read(file, form, shadow=True).config
    facts: dict[str, Any] = {"file": str(file), "policy": version_of(config)}
    names = ("issuers", "sts", "roles", "backends", "grants", "denies")
    facts |= {name: len(getattr(config, name)) for name in names}
    if form == "json":
        click.echo(json.dumps(facts))
    else:
        counts = ", ".join(f"{count} {name}" for name, count in list(facts.items())[2:])
        click.echo(f"{file}: good, policy {facts['policy']}: {counts}")


@policy.command()
@click.argument("file", type=FILE)
@_format_option
@click.option("--strict", is_flag=True, help="Notes count as findings.")
def lint(file: Path, form: str, strict: bool) -> None:
    """Find rules that are shadowed, unreachable, redundant, conflicting or too wide, and more."""
    document = _read(file, form)
    findings = linting.lint(document.config, document.written)
    if form == "json":
        click.echo(json.dumps([_finding_json(document, item) for item in findings], indent=2))
    else:
        for item in findings:
            click.echo("\n".join(finding_lines(document, item)))
        notes = sum(item.note for item in findings)
        click.echo(f"{file}: {len(findings) - notes} findings, {notes} notes")
    if any(strict or not item.note for item in findings):
        sys.exit(1)


def _finding_json(document: PolicyFile, finding: Finding) -> dict[str, Any]:
    witness: dict[str, Any] | None = None
    if (one := finding.witness) is not None:
        witness = {**asdict(one), "src": str(one.src), "role": finding.role, "mcp": one.mcp._asdict()}
        if not any(one.mcp):
            del witness["mcp"]
        if finding.actor is not None:
            witness["actor"] = finding.actor._asdict()
    return {
        "kind": finding.kind,
        "level": "note" if finding.note else "warning",
        "file": document.name,
        "line": document.line(finding.key),
        **{name: getattr(finding, name) for name in ("key", "subject", "message", "remedy")},
        "witness": witness,
        "others": [
            {"id": name, "key": key, "line": document.line(key)} for name, key in finding.others.items()
        ],
    }


@policy.command()
@click.argument("file", type=FILE)
@click.argument("method")
@click.argument("target")
@click.option(
    "--role", "roles", multiple=True, help="A role of the token, by name or ARN; repeat for several."
)
@click.option("--claims", type=FILE, help="Instead: a token's claims as JSON (not verified).")
@click.option(
    "--issuer",
    default="",
    help="With --claims: the issuer whose claim names to use, by its name in the policy.",
)
@click.option("--request-role", help="The requested role (X-IAM-Role).")
@click.option("--preferred", help="The token's preferred role.")
@click.option("--scope", "scopes", multiple=True, help="A scope of the token; without any, unrestricted.")
@click.option("--actor", metavar="SUB[,ISS]", help="Who acts for the caller; ISS if it is another issuer's.")
@click.option("--mcp", metavar="METHOD[,NAME]", help="The call of MCP, as its standard headers say.")
@click.option("--src", default="192.0.2.1", show_default=True, help="The client's address.")
@click.option("--at", type=EpochSecond(), help="With --claims: epoch second at which to judge. Default: now.")
@_format_option
def explain(  # noqa: PLR0917 - click passes them by name
    file: Path,
    method: str,
    target: str,
    roles: tuple[str, ...],
    claims: Path | None,
    issuer: str,
    request_role: str | None,
    preferred: str | None,
    scopes: tuple[str, ...],
    actor: str | None,
    mcp: str | None,
    src: str,
    at: float | None,
    form: str,
) -> None:
    """Explain why METHOD TARGET is allowed or refused, and which rules are close.

    TARGET is a path, or a host and a path: `api.example.com/orders`; a query is ignored. Exit 0 if allowed, 1
    if refused.
    """
    document = _read(file, form)
    if "://" in target:
        bad_input(f"TARGET is a path, or a host and a path: leave {target.partition('://')[0]}:// out")
    act = {} if actor is None else {"act": act_claim(actor)}
    if (issuer or at is not None) if claims is None else (roles or preferred or scopes):
        bad_input("--issuer and --at go with --claims; --role, --preferred and --scope go without it")
    host, slash, path = target.partition("?")[0].partition("/")
    now: float | None = None
    assumed: list[str] = []
    try:
        request = Request(method, host, slash + path, ip_address(src), request_role)
        request = request if mcp is None else _calling(document.config, request, mcp)
        if claims is not None:
            now = time.time() if at is None else at
            data = table(claims, "a token's payload") | act
            identity, assumed = explaining.identity_of_claims(document.config, data, issuer, now)
        else:
            scoped = frozenset(scopes) if scopes else None
            identity = explaining.identity_of(Policy(document.config), list(roles), preferred, scoped)
            if act:
                # Without a token, a `sub` alone is an agent of the only issuer, or of an unknown one.
                urls = [issuer.issuer for issuer in document.config.issuers]
                own = urls[0] if len(urls) == 1 else "the token's own issuer"
                identity = identity._replace(actor=actor_of(act["act"], own))
    except Refusal as refusal:
        if claims is None:
            bad_input(refusal.detail)
        _refused(refusal, form)
    except ValueError as error:
        bad_input(str(error))
    explanation = explaining.explain(document.config, identity, request, now)
    decision = explanation.decision
    if form == "json":
        considered = {
            name: [{**asdict(item), "line": document.line(item.key)} for item in getattr(explanation, name)]
            for name in ("matching", "close")
        }
        shown = ("allow", "status", "reason", "role", "rule", "backend", "detail", "unmapped", "shadow")
        verdict = {name: getattr(decision, name) for name in shown}
        click.echo(json.dumps({"verdict": verdict, **considered, "assumed": assumed}, indent=2))
    else:
        click.echo(_verdict_line(decision))
        if assumed:
            click.echo(f"Absent from the claims, assumed to fit: {', '.join(assumed)}")
        if not host and decision.reason is not Reason.PATH_AMBIGUOUS:
            click.echo("No host was given: every deny with `hosts` matches, no grant with `hosts` does")
        for heading, items in (("Matching", explanation.matching), ("Close", explanation.close)):
            if items:
                click.echo(f"{heading}:")
            for item in items:
                click.echo(f"  {considered_line(document, item)}")
    sys.exit(0 if decision.allow else 1)


def _refused(refusal: Refusal, form: str) -> NoReturn:
    """Report that the agent would refuse the token itself, and exit 1."""
    if form == "json":
        verdict = {"allow": False, "status": refusal.reason.status, "reason": refusal.reason}
        click.echo(json.dumps({"verdict": verdict | {"detail": refusal.detail}, "matching": [], "close": []}))
    else:
        click.echo(f"DENY {refusal.reason.status} {refusal.reason}: {refusal.detail}")
    sys.exit(1)


def _calling(config: Config, request: Request, mcp: str) -> Request:
    """Return the request with the headers of a call, in the newest revision that its resource speaks."""
    call, _, name = mcp.partition(",")
    target = Resources(config).find(request).target
    version = WITH_HEADERS if target is None else max(target.versions)
    return replace(request, mcp=McpHeaders(version, call, as_sent(name)))


def _verdict_line(decision: Decision) -> str:
    if decision.allow:
        return f"ALLOW by {decision.rule}, to {decision.backend}, as {decision.role}"
    why = f"{decision.reason}" + (f" ({decision.rule})" if decision.rule else "")
    return f"DENY {decision.status} {why}" + (f": {decision.detail}" if decision.detail else "")


_SAME = (
    "No difference in what is reached, by whom, for how long, at which backend, who is trusted, or how safely"
)


@policy.command()
@click.argument("old", type=FILE)
@click.argument("new", type=FILE)
@click.option("--acknowledge", metavar="DIGEST", help="The digest of these very differences: exit 0.")
@click.option("--all", "everything", is_flag=True, help="Print every entry; long lists are cut without it.")
@_format_option
def diff(old: Path, new: Path, acknowledge: str | None, everything: bool, form: str) -> None:
    """Report what NEW opens, closes and moves against OLD: whole regions, each with a request that shows it.

    Made for a check before a merge: exits 1 while there are differences, unless --acknowledge gives their
    digest. The digest covers every region whole: to acknowledge these differences acknowledges no wider ones.
    """
    difference = differences.diff(_read(old, form).config, _read(new, form).config)
    if form == "json":
        click.echo(json.dumps({"digest": difference.digest, **difference.to_json()}, indent=2))
    elif not difference:
        click.echo("\n".join([_SAME, *change_lines(difference, everything=everything)]))
    else:
        click.echo("\n".join(change_lines(difference, everything=everything)))
        click.echo(f"To acknowledge exactly these: --acknowledge {difference.digest}")
    if difference and acknowledge != difference.digest:
        if acknowledge is not None:
            click.echo(f"Error: {acknowledge} names other differences than these", err=True)
        sys.exit(1)


@policy.command()
@click.argument("file", type=FILE)
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page instead.")
@_format_option
def matrix(file: Path, html: Path | None, form: str) -> None:
    """Show who reaches what: every role against every route."""
    config = _read(file, form).config
    found = matrices.matrix(config)
    if html is not None:
        try:
            page = matrices.to_html(found, file.name, version_of(config))
            html.write_bytes(page.encode(errors="backslashreplace"))
        except OSError as error:
            bad_input(f"{html} cannot be written: {error.strerror or error}")
        click.echo(f"Wrote {html}")
    elif form == "json":
        click.echo(json.dumps(asdict(found), indent=2))
    else:
        click.echo(matrices.to_text(found))


@policy.command()
def schema() -> None:
    """Print the JSON Schema of the policy file."""
    click.echo(schema_text(), nl=False)


policy.add_command(render)
