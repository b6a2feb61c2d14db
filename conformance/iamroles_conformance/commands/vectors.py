"""`iamroles conformance vectors`: questions and right verdicts as files, for authors without this suite."""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

from iamroles_conformance.commands.options import Command
from iamroles_conformance.reports import contract, report
from iamroles_conformance.reports import vectors as made
from iamroles_scenarios.commands.values import OutputPath

INDEX = "index.json"


@click.command(cls=Command)
@click.option(
    "--output", required=True, type=OutputPath(folder=True), help="Folder: empty, or of this command."
)
@click.option(
    "--now",
    default=str(made.NOW),
    show_default=True,
    metavar="EPOCH|now",
    help="The clock for which the verdicts are right: seconds, or the word now.",
)
@click.option(
    "--keys", default=made.KEYS, show_default=True, metavar="URL", help="Where the folder is served."
)
@click.option(
    "--only", multiple=True, metavar="NAME", help="A file of vectors, such as orders; may be repeated."
)
def vectors(*, output: Path, now: str, keys: str, only: tuple[str, ...]) -> None:
    """Write tokens, key sets, policies, questions and right verdicts as JSON.

    The README.md in the folder explains them (docs/vectors.md). With the same --now and --keys the files are
    the same, but for five tokens that need random numbers (PSS, encryption) or a certificate.
    """
    if now != "now" and not (now.isascii() and now.isdigit() and len(now) <= 10):
        raise click.BadParameter("say seconds since 1970, or the word now.", param_hint="--now")
    if any(output.iterdir()) and not (output / INDEX).is_file():
        raise click.BadParameter(f"{output} holds other files. Name an empty folder.", param_hint="--output")
    clock = int(time.time()) if now == "now" else int(now)
    content_of = dict(made.files(clock, keys.rstrip("/"), only))
    if unknown := [name for name in only if f"vectors/{name}.json" not in content_of]:
        raise click.BadParameter(f"no file of vectors is named {', '.join(unknown)}.", param_hint="--only")
    index: dict[str, Any] = {
        "format": made.FORMAT,
        "specification": report.SPEC,
        "suite": version("haproxy-iam-roles"),
        "now": clock,
        "within": made.WITHIN,
        "files": [],
    }
    for old in (output / "vectors").glob("*.json"):  # of another clock
        old.unlink()
    for name, content in content_of.items():
        path = output / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(_lines(content), encoding="utf-8")
        if groups := content.get("groups"):
            count = sum(len(group["vectors"]) for group in groups)
            index["files"].append({"path": name, "groups": len(groups), "vectors": count})
    schema = files("iamroles_conformance.reports") / "vectors.schema.json"
    (output / "schema.json").write_text(schema.read_text(encoding="utf-8"), encoding="utf-8")
    (output / "README.md").write_text(contract.document("vectors"), encoding="utf-8")
    (output / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    click.echo(f"wrote {sum(each['vectors'] for each in index['files'])} vectors to {output}")


def _lines(content: dict[str, Any]) -> str:
    """Write JSON with a vector, or a key, a line."""
    for name in ("groups", "keys"):
        if name in content:
            rows = [_group(one) if name == "groups" else json.dumps(one) for one in content[name]]
            head = json.dumps({key: value for key, value in content.items() if key != name})[1:-1]
            return "{" + head + ", " * bool(head) + f'"{name}": [\n' + ",\n".join(rows) + "\n]}\n"
    raise AssertionError(content.keys())


def _group(group: dict[str, Any]) -> str:
    head = json.dumps({key: value for key, value in group.items() if key != "vectors"})[:-1]
    return f'{head}, "vectors": [\n' + ",\n".join(map(json.dumps, group["vectors"])) + "\n]}"
