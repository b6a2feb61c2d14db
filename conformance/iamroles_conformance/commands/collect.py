"""`iamroles conformance collect`: the report in an artifact of another repository becomes a submission.

The artifact is a stranger's archive: only its member `report.json` is read, up to a bound, and no name of it
is ever a path here. `.ci/results` downloads the artifacts and calls this for each.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
import tomllib
import zipfile
import zlib
from pathlib import Path
from typing import Any

import click

from iamroles_conformance.commands.options import Command
from iamroles_conformance.errors import ExitCode, ReportError
from iamroles_conformance.reports import submissions
from iamroles_scenarios.commands.values import OutputPath

_ARCHIVE = 8 << 20
"""Bytes of an artifact."""
_REPOSITORY = re.compile(r"[A-Za-z0-9-]{1,39}/[A-Za-z0-9._-]{1,100}")
_README = """# {project} {version}

Collected from the artifacts of https://github.com/{name}.

## Reproduce
Run the workflow again that wrote this report: https://github.com/{name}/actions/runs/{run}
"""


@click.command(cls=Command)
@click.argument("archive", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--list", "listed", required=True, type=click.Path(exists=True, path_type=Path), help="TOML.")
@click.option("--repository", default="", help="The one of the list that the archive is from.")
@click.option("--run", default=0, type=click.IntRange(min=0), help="Number of the workflow run.")
@click.option("--into", type=OutputPath(folder=True), help="Folder of all reports.")
def collect(*, archive: Path | None, listed: Path, repository: str, run: int, into: Path | None) -> None:
    """Put the report of a zip ARCHIVE into a folder of reports; without one, print the listed repositories.

    Exit code 0, or 1 if the report does not hold together, and nothing was put there.
    """
    known = _listed(listed)
    if archive is None:
        for name in known:
            click.echo(name)
        return
    if repository not in known or into is None:
        raise click.UsageError(f"say --into, and --repository as one of: {', '.join(known) or 'none'}.")
    try:
        click.echo(f"collected  {_put(archive, known[repository], run, into)}")
    except ReportError as error:
        click.echo(f"{'REFUSED':10} {repository}: {error}")
        sys.exit(ExitCode.FAILED)


def _listed(path: Path) -> dict[str, dict[str, Any]]:
    try:
        rows = tomllib.loads(path.read_text(encoding="utf-8"))["repository"]
        found = {str(row["name"]): dict(row) for row in rows}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise click.UsageError(
            f"{path}: is not a list of repositories ({error}); see its comment."
        ) from error
    if wrong := [name for name in found if not _REPOSITORY.fullmatch(name)]:
        raise click.UsageError(f"{path}: name: {wrong[0]!r} is not owner/repository.")
    return found


def _put(archive: Path, row: dict[str, Any], run: int, into: Path) -> str:
    content = _report(archive)
    try:
        version = str(json.loads(content)["product"]["version"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ReportError("report.json: product.version: is not there. Upload what the run wrote.") from error
    project = re.sub(r"[^a-z0-9._-]+", "-", str(row.get("project", "")).lower())
    if not submissions.FOLDER.fullmatch(project) or not submissions.FOLDER.fullmatch(version):
        raise ReportError(
            f"report.json: product.version: {version[:40]!r} names no folder. Use [A-Za-z0-9._-]."
        )
    if (into / project / version).exists():
        raise ReportError(
            f"report.json: product.version: {version} is there already. Keep one artifact of it."
        )
    if any((into / project).glob(f"*/{submissions.SIGNATURE}")):
        raise ReportError(
            f"{project}: public_key: signs other reports of this project. Sign this one, in a pull request."
        )
    form = {key: value for key, value in row.items() if key != "name"} | {"version": version}
    with tempfile.TemporaryDirectory(dir=into, prefix=".") as scratch:
        folder = Path(scratch, project, version)
        folder.mkdir(parents=True)
        lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in form.items())
        (folder / submissions.IMPLEMENTATION).write_text(lines, encoding="utf-8")
        (folder / submissions.REPORT).write_bytes(content)
        text = _README.format(project=project, version=version, name=row["name"], run=run)
        (folder / submissions.README).write_text(text, encoding="utf-8")
        name = submissions.read(folder).name
        (into / project).mkdir(exist_ok=True)
        shutil.move(folder, into / project / version)
    return name


def _report(archive: Path) -> bytes:
    """Read the one member `report.json` of an archive.

    Raises:
        ReportError: it has none or two, or is too large or broken.
    """
    bound = submissions.SIZES[submissions.REPORT]
    if archive.stat().st_size > _ARCHIVE:
        raise ReportError(
            f"artifact: size: more than {_ARCHIVE} bytes. Upload the folder of the report alone."
        )
    try:
        with zipfile.ZipFile(archive) as opened:
            names = [one for one in opened.infolist() if one.filename == submissions.REPORT]
            if len(names) != 1:
                what = "twice" if names else "not"
                raise ReportError(f"artifact: report.json: is {what} in it. Upload the folder of the report.")
            with opened.open(names[0]) as file:
                content = file.read(bound + 1)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError) as error:
        raise ReportError(f"artifact: archive: is not a sound zip file: {error}. Upload it again.") from error
    if len(content) > bound:
        raise ReportError(f"artifact: report.json: is larger than {bound} bytes. Play fewer checks.")
    return content
