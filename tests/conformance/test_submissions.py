"""Reports of others: the form, what a hostile one tries, and the page."""

import json
import os
import re
import shutil
import socket
import subprocess

import pytest
from invoking import said
from markdown_it import MarkdownIt

from iamroles_conformance.reports import submissions

ROOT = submissions.Path(__file__).parents[2]
FORM = """organization = "Vendor"
project = "agent"
url = "https://vendor.example/agent"
version = "1"
contact = "@vendor"
"""
README = "# Agent\n\n## Reproduce\nRun `iamroles conformance run --agent agent.toml` with [ours](https://vendor.example/x).\n"


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """The report of a real run of this suite, of the reference agent under another version."""
    folder = tmp_path_factory.mktemp("played")
    said(f"conformance run --stage processes --check wire.ack.exactly-one --quiet --report {folder}")
    return json.loads((folder / "report.json").read_text())


@pytest.fixture
def sent(tmp_path, played):
    """Write a submission, with changes; return the folder of all reports."""

    def write(change=lambda _: None, form=FORM, readme=README, where="agent/1"):
        document = json.loads(json.dumps(played))
        document["product"]["version"] = "1"
        who, more = f"{document['product']['name']} 1", {"features": document["features"]}
        told = submissions.statement(who, document["checks"], known_failures={}, **more)
        document["statement"]["sentence"] = told["sentence"]
        text = change(document) or json.dumps(document)
        folder = tmp_path / "reports" / where
        folder.mkdir(parents=True)
        (folder / "report.json").write_text(text)
        (folder / "implementation.toml").write_text(form)
        (folder / "README.md").write_text(readme)
        return tmp_path / "reports"

    return write


def _refused(folder, file, key, remedy):
    told = said("conformance verify-report", folder, code=1)
    assert re.search(rf"^REFUSED +agent/1/{re.escape(file)}: {key}", told, re.MULTILINE), told
    assert remedy in told


def test_a_sound_report_is_accepted_and_shown(sent, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{submissions.BEGIN}\nold\n{submissions.END}\nafter\n")

    told = said("conformance verify-report", sent(), "--page", page)

    assert "agent/1: this suite says the same of its checks" in told
    assert re.search(r"\| \[agent 1\]\(#agent-1\) \| [\d.]+ \(`[0-9a-f]{8}`\) \|", page.read_text())
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("after\n")
    assert said("conformance verify-report", tmp_path / "reports/agent/1")


@pytest.mark.parametrize(
    ("content", "told"), [(None, "cannot be read"), (b"\xff", "cannot be read"), (b"x", "lacks")]
)
def test_a_page_that_cannot_be_written_is_named(sent, tmp_path, content, told):
    page = tmp_path / "page.md"
    if content is not None:
        page.write_bytes(content)

    assert told in said("conformance verify-report", sent(), "--page", page, code=2)


def test_a_report_of_another_suite_must_add_up(sent):
    told = said(
        "conformance verify-report", sent(lambda one: one["digests"].update(suite="sha256:" + "0" * 64))
    )

    assert "another suite's; its numbers add up" in told


DEEP = '{"schema": 1, "specification": 1, "x": ' + "[" * 200_000 + "]" * 200_000 + "}"


def _counted(document):
    document["statement"]["classes"][0]["core"] |= {"conforms": True, "of": 1, "missing": []}
    document["statement"]["conforms"]["core"] = ["wire"]


def _failing(document):
    document["digests"]["suite"] = "sha256:other"
    document["checks"][0]["verdict"] = "fail"
    document["totals"] = {"fail": 1}


def _hidden(document):
    _failing(document)
    document["passed"] = document["statement"]["holds"] = False


def _left_out(document):
    _hidden(document)
    document["statement"]["classes"] = document["statement"]["classes"][1:]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda _: "{", "document: is not JSON"),
        (lambda _: DEEP, "document: is nested too deeply"),
        (lambda _: "[" * 9, "document: is not JSON"),
        (lambda one: json.dumps(one)[:-1] + ', "schema": 1}', "document: has a member twice"),
        (lambda one: json.dumps(one | {"x": float("nan")}), "document: holds NaN"),
        (lambda _: '{"schema": ' + "9" * 5000 + "}", "document: is not JSON"),
        (lambda one: one.update(schema=2), "schema, specification"),
        (lambda one: one.pop("checks") and None, "document: lacks checks"),
        (lambda one: one["product"].update(version="2"), "product.version"),
        (lambda one: one["checks"][0].update(name="x" * 201), "checks.0.name"),
        (lambda one: one.update(checks=one["checks"] * 2), "checks: name one check twice"),
        (lambda one: one.update(checks=one["checks"] * 5001), "checks: List should have at most 5000"),
        (lambda one: one.update(finished="<script>"), "finished"),
        (lambda one: one.update(reproduce="x" * 50_001), "reproduce"),
        (lambda one: one["totals"].update(**{"pass": 9}), "totals"),
        (
            lambda one: one["statement"]["conforms"].update(core=["wire"]),
            "statement.conforms.core: is more or less",
        ),
        (_counted, "statement: is not what this suite"),
        (lambda one: one["checks"][0].update(title="x"), "checks: is not what this suite"),
        (lambda one: one["checks"][0].update(requirements=[]), "checks: is not what this suite"),
        (_failing, "passed, statement.holds"),
        (_hidden, "statement.classes.wire.core"),
        (_left_out, "statement.classes.wire.core"),
        (lambda one: one["statement"].update(sentence="It conforms to all."), "statement: is not what"),
        (lambda one: one["coverage"]["MUST"].update(played=700), "coverage: is not what"),
    ],
)
def test_numbers_that_its_checks_do_not_support_are_refused(sent, change, key):
    _refused(sent(change), "report.json", key, "Give the report.json of a run, unchanged.")


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        ("Vendor", "", "organization: String should have at least 1"),
        ("Vendor", "x" * 101, "organization: String should have at most"),
        ("Vendor", "a\\nb", "organization: Value error, must be printable"),
        ("Vendor", "a\\u202eb", "organization: Value error, must be printable"),
        ('url = "https://', 'url = "javascript:', "url"),
        ('url = "https://', 'url = "file:///', "url"),
        ("/agent", "/a)[x](b", "url"),
        ("@vendor", "javascript:x", "contact"),
        ('contact = "@vendor"', "", "contact: Field required"),
        ('contact = "@vendor"', 'contact = "@vendor"\nmore = 1', "more: Extra inputs"),
        ('version = "1"', "version = 1", "version: Input should be a valid string"),
        ('version = "1"', 'version = "2"', "project, version: are not the names"),
        ("organization", "[" * 3000, "document: is not TOML"),
    ],
)
def test_a_form_that_is_not_filled_in_is_refused(sent, before, after, key):
    _refused(sent(form=FORM.replace(before, after)), "implementation.toml", re.escape(key), ". ")


@pytest.mark.parametrize(
    ("readme", "key"),
    [
        ("# Agent\n\nNothing.\n", "section Reproduce: is missing"),
        ("# Agent\n\n## Reproduce\n\n## More\na b c d\n", "section Reproduce: is missing or empty"),
        (README + "<img src=x onerror=alert(1)>", "character"),
        (README + "<!-- x -->", "character"),
        (README + "[a](javascript&colon;alert(1))", "character"),
        (README + "[a](JavaScript:alert(1))", "character"),
        (README + "[a]: data:text/html,x", "character"),
        (README + "[a](file:///etc/passwd)", "character"),
        (README + "[a](../../../secret)", "link"),
        (README + "![a]( http://vendor.example/pixel)", "link"),
        (README + "[a]: //vendor.example", "link"),
        ("\udcff", "byte 0: is not UTF-8"),
    ],
)
def test_a_readme_that_says_no_command_or_links_elsewhere_is_refused(sent, readme, key):
    root = sent()
    (root / "agent/1/README.md").write_bytes(readme.encode(errors="surrogateescape"))

    _refused(root, "README.md", key, ". ")


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda one: (one.unlink(), one.symlink_to("/etc/passwd")), "is a link, a pipe or a folder"),
        (lambda one: (one.unlink(), os.mkfifo(one)), "is a link, a pipe or a folder"),
        (lambda one: (one.unlink(), one.mkdir()), "is a link, a pipe or a folder"),
        (lambda one: one.write_bytes(b" " * ((8 << 20) + 1)), "is larger than"),
    ],
)
def test_files_that_are_no_plain_files_of_a_bounded_size_are_refused(sent, spoil, what):
    root = sent()
    spoil(root / "agent/1/report.json")

    _refused(root, "report.json", f"file: {what}", ". ")


def test_other_files_and_folders_are_refused(sent):
    root = sent()
    (root / "agent/1/x\n.html").write_text("")
    (root / "a b").mkdir()
    (root / "link").symlink_to(root / "agent")
    told = said("conformance verify-report", root, code=1)
    (root / "agent/1/README.md").unlink()
    (root / "agent/1/x\n.html").unlink()

    _refused(root, "implementation.toml", "files: README.md is missing", "has the form")
    assert "agent/1/'x\\n.html': file: does not belong there. Remove it." in told
    assert told.count("is not a folder <project>/<version>. Remove it.") == 2


def test_a_report_is_signed_by_the_key_that_it_names_or_by_none(sent, tmp_path):
    key, folder = tmp_path / "key.pem", tmp_path / "reports/agent/1"
    run = lambda *words: subprocess.run(["openssl", *words], check=True, capture_output=True).stdout  # noqa: E731
    run("genpkey", "-algorithm", "ed25519", "-out", key)
    public = run("pkey", "-in", key, "-pubout", "-outform", "DER")[-32:].hex()
    root = sent(form=FORM + f'public_key = "{public}"\n')

    _refused(root, "report.json.sig", "file: is missing", "Sign the report")
    sign = ("pkeyutl", "-sign", "-rawin", "-inkey", key, "-in", folder / "report.json")
    run(*sign, "-out", folder / "report.json.sig")
    assert "accepted" in said("conformance verify-report", root)
    with (folder / "report.json").open("a") as file:
        file.write("\n")
    _refused(root, "report.json.sig", "signature: does not fit", "Sign the report again")
    shutil.copytree(folder, root / "agent/0")
    run(*sign, "-out", folder / "report.json.sig")
    (root / "agent/0/report.json.sig").unlink()
    text = (root / "agent/0/report.json").read_text().replace('"version": "1"', '"version": "0"')
    (root / "agent/0/report.json").write_text(text.replace("reference 1", "reference 0"))
    (root / "agent/0/implementation.toml").write_text(FORM.replace('"1"', '"0"'))
    (root / "agent/0/report.json").write_text(re.sub("sha256:[0-9a-f]{64}", "sha256:x", text))
    assert "public_key: not the same in agent/0, agent/1" in said("conformance verify-report", root, code=1)


def test_the_page_escapes_every_text(sent, tmp_path):
    hostile = '"><script>alert(1)</script>|`[x](javascript:a)![](//b)**_<!--\n\n# x\u202e'

    def change(one):
        one["digests"]["suite"] = hostile
        one["haproxy"] = one["suite"] = hostile[:40]
        one["reproduce"] = hostile
        one["statement"]["absent_features"] = [hostile] * 50
        one["statement"]["sentence"] = hostile

    form = FORM.replace("Vendor", "<b>|[x](javascript:a)`_*").replace('"agent"', '"aGent"')
    page = tmp_path / "page.md"
    page.write_text(f"{submissions.BEGIN}\n{submissions.END}\n")
    said("conformance verify-report", sent(change, form), "--page", page)
    html = MarkdownIt("commonmark").enable("table").render(page.read_text())

    tags = set(re.findall(r"<(\w+)", html))
    assert tags <= {"table", "thead", "tbody", "tr", "th", "td", "h3", "a", "p", "code", "ul", "li"}, tags
    assert set(re.findall(r'href="([^"]*)"', html)) == {"#agent-1", "https://vendor.example/agent"}
    assert len(page.read_text()) < 20_000
    assert "\u202e" not in html
    assert html.count("and 10 more") == 1


def test_the_reports_of_the_repository_hold_together_and_the_page_is_made_of_them(tmp_path):
    page = tmp_path / "page.md"
    shutil.copy(ROOT / "docs/implementations.md", page)
    said("conformance verify-report", ROOT / "conformance/reports", "--page", page)

    assert page.read_text() == (ROOT / "docs/implementations.md").read_text()
    for path in (ROOT / "conformance/reports").rglob("*.*"):
        text = path.read_text() if path.is_file() else ""
        assert not re.search(rf"/(work|home|root|tmp)/|\b{re.escape(socket.gethostname())}\b/", text), path
