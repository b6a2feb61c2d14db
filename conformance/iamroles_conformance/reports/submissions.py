"""Reports of implementations as files in one folder, and the page that is made of them.

=======================================  ==================================================================
``<project>/<version>/``                 letters (of a project small), digits, `.`, `_`, `-`
``…/implementation.toml``                organization, project, url, version, contact; `public_key` if signed
``…/report.json``                        of `iamroles conformance run --report`, unmodified
``…/report.json.sig``                    64 bytes: Ed25519 over the bytes of ``report.json``; only if signed
``…/README.md``                          with a section "Reproduce"
=======================================  ==================================================================

Every byte is a stranger's. Files are opened without following links and read up to a bound; of a report only
counts, names and short texts get onto the page, each escaped. A report of this very suite is judged again in
whole. Of another suite, which alone knows its checks, the numbers must agree with its own checks.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from iamroles_conformance.errors import ReportError
from iamroles_conformance.reports import report
from iamroles_conformance.reports.evidence import digests
from iamroles_conformance.reports.shape import fault
from iamroles_conformance.reports.statement import holds, statement
from iamroles_conformance.subject import Subject
from iamroles_scenarios.base.errors import PageError
from iamroles_scenarios.declarations.catalogue import CLASSES
from iamroles_scenarios.declarations.results import Verdict

BEGIN = "<!-- reports: begin (written by `iamroles conformance verify-report --page`) -->"
END = "<!-- reports: end -->"
IMPLEMENTATION, REPORT, README = "implementation.toml", "report.json", "README.md"
SIGNATURE = f"{REPORT}.sig"
SIZES = {IMPLEMENTATION: 4 << 10, REPORT: 8 << 20, SIGNATURE: 64, README: 64 << 10}
"""Bytes that each file may have."""
_CHECKS = 5000
_NAMED = 40
"""Failed scenarios, or absent features, that the page names of a report."""
_SHOWN = {
    "failed": ("fail", "known-failure", "harness-error"),
    "departures (strict)": ("departure",),
    "warnings (SHOULD)": ("warning",),
}
"""Verdicts that the page counts by scenario."""
FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_UNKNOWN = frozenset({Verdict.UNTESTABLE.value, Verdict.HARNESS_ERROR.value})
_JUDGED = frozenset(one.value for one in Verdict) - _UNKNOWN - {Verdict.NOT_APPLICABLE.value}
_LINK = re.compile(r"\]\s*\(\s*([^\s)]*)|^ {0,3}\[[^\]]*\]:\s*(\S*)", re.MULTILINE)
_REPRODUCE = re.compile(r"^#{1,6} +Reproduce *#* *$(.*?)(?=^#|\Z)", re.MULTILINE | re.DOTALL)
_RUN = "Give the report.json of a run, unchanged."


def _printable(text: str) -> str:
    if not text.isprintable() or text != text.strip():
        raise ValueError("must be printable, without outer blanks")
    return text


_Text = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_printable)]
_Url = Annotated[
    str, Field(pattern=r"^https://[A-Za-z0-9.-]+(:[0-9]+)?(/[A-Za-z0-9._~/%+-]*)?$", max_length=200)
]
_Contact = Annotated[
    str, Field(pattern=r"^([A-Za-z0-9._+-]+@[A-Za-z0-9.-]+|@[A-Za-z0-9-]+|https://[A-Za-z0-9._~/-]+)$")
]


class Implementation(BaseModel):
    """The form of `implementation.toml`: a project, its makers, and a contact."""

    model_config = ConfigDict(extra="forbid", strict=True)
    organization: _Text
    project: _Text
    url: _Url
    version: _Text
    contact: _Contact
    public_key: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None


@dataclass(frozen=True, slots=True)
class Submission:
    """One report that holds together."""

    project: str
    version: str
    """The names of its folders."""
    of: Implementation
    document: Mapping[str, Any]
    ours: bool
    """True if this very suite made it, by its digests."""

    @property
    def name(self) -> str:
        return f"{self.project}/{self.version}"


def read_all(root: Path) -> tuple[list[Submission], list[str]]:
    """Read every report below a folder.

    Returns:
        The reports that hold together, and a sentence about each that does not.
    """
    found: list[Submission] = []
    wrong: list[str] = []
    for project in _folders(root, wrong):
        keys: dict[str, str | None] = {}
        for version in _folders(project, wrong):
            try:
                found.append(read(version))
                keys[found[-1].name] = found[-1].of.public_key
            except (ReportError, OSError) as error:
                wrong.append(str(error))
        if len(set(keys.values())) > 1:
            wrong.append(
                f"{project.name}: public_key: not the same in {', '.join(keys)}. A project that signs one "
                "report signs all of them, with one key."
            )
    return found, wrong


def _folders(root: Path, wrong: list[str]) -> Iterator[Path]:
    for entry in sorted(os.scandir(root), key=lambda one: one.name):
        if not entry.is_dir(follow_symlinks=False) or not FOLDER.fullmatch(entry.name):
            wrong.append(f"{root.name}/{entry.name!r}: name: is not a folder <project>/<version>. Remove it.")
        else:
            yield Path(entry.path)


def read(folder: Path) -> Submission:
    """Read the folder of a report.

    Raises:
        ReportError: names the file and the key that is wrong, and the remedy.
    """
    project, version = folder.resolve().parts[-2:]
    files = dict(_files(folder, f"{project}/{version}"))
    with _about(f"{project}/{version}/{IMPLEMENTATION}"):
        if missing := [name for name in (IMPLEMENTATION, REPORT, README) if name not in files]:
            raise _Wrong("files", f"{', '.join(missing)} is missing. docs/implementations.md has the form.")
        of = _implementation(files[IMPLEMENTATION])
        if of.version != version or re.sub(r"[^a-z0-9._-]+", "-", of.project.lower()) != project:
            raise _Wrong("project, version", "are not the names of its folders. Rename the folders.")
    with _about(f"{project}/{version}/{SIGNATURE}"):
        _signed(of.public_key, files)
    with _about(f"{project}/{version}/{README}"):
        _instructions(_decoded(files[README]))
    with _about(f"{project}/{version}/{REPORT}"):
        document = _json(files[REPORT])
        if (said := document["product"]["version"]) != of.version:
            raise _Wrong("product.version", f"is {said[:40]!r}, not that of {IMPLEMENTATION}. {_RUN}")
        return Submission(project, version, of, document, _judged(document))


class _Wrong(Exception):  # noqa: N818 - becomes a ReportError
    """A key, and what is wrong with it."""


@contextmanager
def _about(file: str) -> Iterator[None]:
    try:
        yield
    except _Wrong as error:
        raise ReportError(f"{file}: {error.args[0]}: {error.args[1]}") from error


def _files(folder: Path, name: str) -> Iterator[tuple[str, bytes]]:
    for entry in sorted(os.scandir(folder), key=lambda one: one.name):
        where = f"{name}/{entry.name!r}" if entry.name not in SIZES else f"{name}/{entry.name}"
        if entry.name not in SIZES:
            raise ReportError(f"{where}: file: does not belong there. Remove it.")
        if not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            raise ReportError(f"{where}: file: is a link, a pipe or a folder. Give a plain file.")
        opened = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(opened, "rb") as file:
            content = file.read(SIZES[entry.name] + 1)
        if len(content) > SIZES[entry.name]:
            raise ReportError(f"{where}: file: is larger than {SIZES[entry.name]} bytes. Make it shorter.")
        yield entry.name, content


def _decoded(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise _Wrong(f"byte {error.start}", "is not UTF-8. Save it as UTF-8.") from error


def _implementation(content: bytes) -> Implementation:
    try:
        return Implementation.model_validate(tomllib.loads(_decoded(content)))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise _Wrong(key, f"{first['msg']}. docs/implementations.md has the form.") from error
    except (ValueError, RecursionError) as error:
        raise _Wrong("document", "is not TOML. docs/implementations.md has the form.") from error


def _signed(key: str | None, files: Mapping[str, bytes]) -> None:
    signature = files.get(SIGNATURE)
    if key is None and signature is None:
        return
    if key is None or signature is None:
        what = "is missing, and" if key else "is there, but no"
        remedy = "Sign the report, or take both out."
        raise _Wrong("file", f"{what} {IMPLEMENTATION} names a public_key. {remedy}")
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(signature, files[REPORT])
    except (InvalidSignature, ValueError) as error:
        raise _Wrong("signature", f"does not fit {REPORT} and public_key. Sign the report again.") from error


def _instructions(text: str) -> None:
    """Hold a README to its form: no HTML, links to https alone, and a section on how to play it again."""
    if found := re.search(r"<[A-Za-z/!?]|&#?\w+;", text):
        raise _Wrong(f"character {found.start()}", "is HTML. Write Markdown without tags and entities.")
    if found := re.search(r"\b(javascript|data|vbscript|file)\s*:", text, re.IGNORECASE):
        raise _Wrong(f"character {found.start()}", f"is {found[1]}:. Link to https alone.")
    for found in _LINK.finditer(text):
        target = found[1] or found[2] or ""
        if not target.startswith("https://") or ".." in target:
            raise _Wrong(f"link {target[:80]!r}", "is not https. Link to https alone.")
    section = _REPRODUCE.search(text)
    if section is None or len(section[1].split()) < 3:
        raise _Wrong("section Reproduce", "is missing or empty. Say with which commands it is played again.")


def _json(content: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise _Wrong("document", f"has a member twice. {_RUN}")
        return found

    def no_number(text: str) -> None:
        raise _Wrong("document", f"holds {text}, which is not JSON. {_RUN}")

    try:
        found = json.loads(_decoded(content), object_pairs_hook=once, parse_constant=no_number)
    except RecursionError as error:
        raise _Wrong("document", f"is nested too deeply. {_RUN}") from error
    except ValueError as error:
        raise _Wrong("document", f"is not JSON: {str(error)[:80]}. {_RUN}") from error
    if not isinstance(found, dict) or (found.get("schema"), found.get("specification")) != (
        report.SCHEMA,
        report.SPEC,
    ):
        raise _Wrong("schema, specification", f"are not {report.SCHEMA} and {report.SPEC}. {_RUN}")
    if shape := fault(found):
        raise _Wrong("document", f"{shape[:200]}. {_RUN}")
    return found


class _Grade(BaseModel):
    model_config = ConfigDict(strict=True)
    conforms: bool
    of: Annotated[int, Field(ge=0)]
    played: int
    passed: int
    failed: list[str]
    missing: list[str]


_NOTHING = _Grade(conforms=False, of=0, played=0, passed=0, failed=[], missing=[])
"""The counts of a class that a statement leaves out: no check may bear on it."""


class _Class(BaseModel):
    class_: Annotated[str, Field(alias="class")]
    core: _Grade
    strict: _Grade


class _Claims(BaseModel):
    """The members of a document that the page shows, beside those of `shape`."""

    model_config = ConfigDict(strict=True)

    class Statement(BaseModel):
        grade: Literal["core", "strict"]
        holds: bool
        conforms: dict[Literal["core", "strict"], list[str]]
        classes: list[_Class]
        absent_features: list[str]

    class Check(BaseModel):
        name: Annotated[str, Field(max_length=200)]
        verdict: str
        level: Literal["MUST", "SHOULD"]
        grade: Literal["core", "strict"]
        classes: list[str]
        evidence: dict[str, Any] = {}

    passed: bool
    finished: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT[0-9:+-]+$")]
    suite: Annotated[str, Field(max_length=40)]
    haproxy: Annotated[str | None, Field(max_length=40)] = None
    digests: dict[str, str]
    reproduce: Annotated[str, Field(max_length=50_000)]
    statement: Statement
    checks: Annotated[list[Check], Field(max_length=_CHECKS)]


def _judged(document: dict[str, Any]) -> bool:
    """Hold a report to its checks; return whether this very suite made it."""
    try:
        said = _Claims.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _Wrong(".".join(map(str, first["loc"])), f"{first['msg']}. {_RUN}") from error
    verdicts = {one.name: one.verdict for one in said.checks}
    if len(verdicts) < len(said.checks):
        raise _Wrong("checks", f"name one check twice. {_RUN}")
    if document["totals"] != Counter(verdicts.values()):
        raise _Wrong("totals", f"are not the sums of its checks. {_RUN}")
    if said.statement.holds != holds(list(verdicts.values()), said.statement.grade) or (
        said.passed and not said.statement.holds
    ):
        raise _Wrong("passed, statement.holds", f"do not follow from its verdicts. {_RUN}")
    for grade in ("core", "strict"):
        classes = {one.class_: getattr(one, grade) for one in said.statement.classes}
        if not classes.keys() <= CLASSES.keys() or len(classes) < len(said.statement.classes):
            raise _Wrong("statement.classes", f"names an unknown class, or one twice. {_RUN}")
        for name in CLASSES:
            if not _adds_up(classes.get(name, _NOTHING), _bearing(said, name, grade)):
                raise _Wrong(f"statement.classes.{name}.{grade}", f"does not follow from its checks. {_RUN}")
        if said.statement.conforms.get(grade, []) != [name for name, one in classes.items() if one.conforms]:
            raise _Wrong(f"statement.conforms.{grade}", f"is more or less than its verdicts support. {_RUN}")
    own = digests(Subject().spec())
    if any(said.digests.get(name) != own[name] for name in ("suite", "scenarios")):
        return False
    counted = statement(
        f"{document['product']['name']} {document['product']['version']}".strip(),
        document["checks"],
        features=document["features"],
        known_failures=document["known_failures"],
        grade=said.statement.grade,
    )
    follows = report.derived(document) | {"statement": counted}
    for key in ("checks", "statement", "totals", "coverage", "requirements"):
        if follows[key] != document[key]:
            raise _Wrong(key, f"is not what this suite, which made it, says of its checks. {_RUN}")
    return True


def _bearing(said: _Claims, name: str, grade: str) -> dict[str, str]:
    """Return the verdicts of the checks that count in a class and grade; a false allow counts in both."""
    return {
        one.name: one.verdict
        for one in said.checks
        if name in one.classes
        and (one.evidence.get("false_allow") or (one.level == "MUST" and grade in (one.grade, "strict")))
    }


def _adds_up(counts: _Grade, verdicts: Mapping[str, str]) -> bool:
    """Tell whether the counts of a class are those of its checks.

    A check that does not apply may count or not, which only its own suite knows.
    """
    judged = {name for name, one in verdicts.items() if one in _JUDGED}
    failed = {name for name in judged if verdicts[name] != Verdict.PASS.value}
    unknown = {name for name in verdicts if verdicts[name] in _UNKNOWN}
    return (
        set(counts.failed) == failed
        and counts.passed == len(judged - failed)
        and unknown <= set(counts.missing)
        and not judged & set(counts.missing)
        and counts.played == counts.passed + len(counts.failed) == len(judged)
        and counts.of == counts.played + len(set(counts.missing))
        and counts.conforms == (counts.of > 0 and counts.passed == counts.of)
    )


# --- the page ----------------------------------------------------------------------------------------------


def escaped(text: str) -> str:
    """Write a stranger's text so that neither Markdown nor HTML reads anything into it."""
    flat = "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(text.split()))
    return re.sub(r"[^\w .,/=+@-]|_", lambda found: f"&#{ord(found[0])};", flat)


def page(text: str, found: list[Submission]) -> str:
    """Return a page with the tables between its two marks.

    Raises:
        PageError: it has no marks.
    """
    before, begun, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        raise PageError(f"the page lacks the lines {BEGIN} and {END}; put them where the tables belong.")
    parts = "\n\n".join(["\n".join(_table(found)), *("\n".join(_section(one)) for one in found)])
    return f"{before}{begun}\n{parts}\n{ended}{after}"


def _table(found: list[Submission]) -> Iterator[str]:
    yield f"| implementation | suite | HAProxy | {' | '.join(CLASSES)} |"
    yield "|---" * (len(CLASSES) + 3) + "|"
    for one in found:
        cells = [_cell(name, one.document["statement"]) for name in CLASSES]
        suite = f"{escaped(one.document['suite'])} (`{_short(one)}`)"
        name = f"[{escaped(one.of.project)} {escaped(one.of.version)}](#{one.project}-{one.version})"
        yield f"| {name} | {suite} | {escaped(one.document.get('haproxy') or '-')} | {' | '.join(cells)} |"


def _short(one: Submission) -> str:
    """Return the first digits of the suite's digest; the release alone does not tell two suites apart."""
    found = re.fullmatch(r"sha256:([0-9a-f]{8})[0-9a-f]{56}", one.document["digests"].get("suite", ""))
    return found[1] if found else "unknown"


def _cell(name: str, said: Mapping[str, Any]) -> str:
    for grade in ("strict", "core"):
        if name in said["conforms"].get(grade, ()):
            return f"conforms ({grade})"
    core = next((one["core"] for one in said["classes"] if one["class"] == name), None)
    if core is None or not core["played"]:
        return "not played"
    failed = len(core["failed"])
    return f"{core['passed']} of {core['of']}" + (f", {failed} failed" if failed else "")


def _section(one: Submission) -> Iterator[str]:
    document, of = one.document, one.of
    yield f'### <a id="{one.project}-{one.version}"></a>{escaped(of.project)} {escaped(of.version)}'
    yield ""
    yield f"By [{escaped(of.organization)}]({of.url}); contact {escaped(of.contact)}."
    signed = f"signed by `{of.public_key}`" if of.public_key else "not signed"
    yield f"Played on {document['finished'][:10]} with the suite {escaped(document['suite'])}, {signed}:"
    yield f"<code>{escaped(document['reproduce'])}</code>"
    if absent := document["statement"]["absent_features"]:
        yield from ("", f"- absent features: {_listed(absent)}")
    for title, verdicts in _SHOWN.items():
        names = (check["name"] for check in document["checks"] if check["verdict"] in verdicts)
        counts = Counter(name.partition("[")[0].rpartition(".")[0] for name in names)
        if counts:
            yield from (
                "",
                f"- {title}: {_listed([f'{name} {count}' for name, count in sorted(counts.items())])}",
            )


def _listed(names: list[str]) -> str:
    more = [f"and {len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return ", ".join([*(escaped(name[:100]) for name in names[:_NAMED]), *more])
