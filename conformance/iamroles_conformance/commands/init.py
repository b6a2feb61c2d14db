"""`iamroles conformance init`: a vendor's first `agent.toml`, and a workflow that judges each change."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from iamroles_conformance.commands.options import Command

_AGENT = """\
# What is judged; `iamroles conformance spec 8` says what each key means.
spec = 1
name = {name}
version = "0.1.0"

[launch]
command = {command}

[features]  # declared, never inferred
oidc = true
sts = false

[known_failures]  # "check" = "the reason"; a check that passes again fails the run
"""
_WORKFLOW = """\
name: Conformance
on: [push, pull_request]
permissions:
  contents: read
jobs:
  conformance:
    runs-on: ubuntu-latest
    timeout-minutes: 15
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.11"
      - run: pip install 'haproxy-iam-roles[conformance]'
      - run: iamroles conformance doctor --agent agent.toml
      - run: iamroles conformance run --quiet --agent agent.toml --stage processes --report report
      - if: always()
        run: test ! -f report/summary.md || cat report/summary.md >> "$GITHUB_STEP_SUMMARY"
      - if: always()
        uses: actions/upload-artifact@v4
        with:
          name: conformance
          path: report
"""


@click.command(cls=Command)
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False), default=".")
@click.option("--command", default="./agent", show_default=True, help="Command line that starts the agent.")
@click.option("--name", default="my-agent", show_default=True, help="The product's name.")
def init(*, directory: Path, command: str, name: str) -> None:
    """Write agent.toml and .github/workflows/conformance.yml into DIRECTORY.

    If one of these files exists, nothing is written: exit code 2.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise click.UsageError(f"--command: {error}") from error
    if not words:
        raise click.UsageError("--command: names no program")
    texts = {
        directory / "agent.toml": _AGENT.format(
            name=json.dumps(name, ensure_ascii=False), command=json.dumps(words, ensure_ascii=False)
        ),
        directory / ".github" / "workflows" / "conformance.yml": _WORKFLOW,
    }
    if there := [str(path) for path in texts if path.exists()]:
        raise click.UsageError(f"{', '.join(there)}: exists already; move it away, or edit it.")
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        click.echo(f"wrote {path}")
    click.echo("next: iamroles conformance doctor --agent agent.toml")
