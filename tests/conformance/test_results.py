"""The action's step, and what collects the artifacts of other repositories, as bash runs them."""

import io
import json
import os
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from invoking import agent_toml, finished

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
LIST = """[[repository]]
name = "vendor/agent"
organization = "Vendor"
project = "Agent"
url = "https://vendor.example/agent"
contact = "@vendor"

[[repository]]
name = "gone/agent"
"""


def _act(tmp_path, agent, arguments, path=BIN):
    """Run the action's step; return exit code, outputs as GitHub reads them, and the summary."""
    output, summary = tmp_path / "output", tmp_path / "summary"
    summary.write_text("")
    files = {"GITHUB_OUTPUT": output, "GITHUB_STEP_SUMMARY": summary, "REPORT": tmp_path / "report"}
    given = {"AGENT": agent, "ARGUMENTS": arguments, "PATH": f"{path}:{os.environ['PATH']}"}
    variables = given | {name: str(file) for name, file in files.items()}
    done = finished("bash", ROOT / ".ci/action", env=variables, cwd=tmp_path)
    found, lines = {}, iter(output.read_text().splitlines())
    for line in lines:
        name, mark = line.split("<<")
        found[name] = "\n".join(iter(lambda mark=mark: (text := next(lines)) != mark and text, False))
    return done.returncode, found, summary.read_text()


def test_a_run_gives_its_statement_and_its_code(tmp_path):
    one = "--stage processes --check wire.ack.exactly-one"
    code, outputs, summary = _act(tmp_path, ROOT / "conformance/agent.toml", one)

    assert (code, outputs["conforms"]) == (0, "")
    assert "checks played: 1 passed, 0 failed. That is no statement" in outputs["statement"]
    assert outputs["statement"] in summary

    silent = agent_toml(tmp_path, [sys.executable, "-c", "import time; time.sleep(60)"])
    code, outputs, summary = _act(tmp_path, silent, one + " --time-scale 0.1")

    assert (code, outputs["conforms"]) == (3, "")  # and not the report that stood there before
    assert "1 passed" not in outputs["statement"]


def test_a_run_that_breaks_still_gives_outputs(tmp_path):
    code, outputs, summary = _act(tmp_path, "missing.toml", "--stage processes")

    assert code == 2
    assert summary.startswith("## Nothing was judged\n```\nmissing.toml: cannot be read")
    said = "The run ended with exit code 2 and wrote no report."
    assert outputs == {"conforms": "", "statement": said}


def test_hostile_words_stay_in_their_output(tmp_path):
    said = "x\nEOF\nconforms=wire:strict\nstatement<<y\r\n\u2028z\ud800"
    report = {"statement": {"sentence": said, "conforms": {"strict": ["a\nconforms=b"], "core": ["gate"]}}}
    fake = tmp_path / "iamroles"
    (tmp_path / "made").write_text(json.dumps(report))
    fake.write_text("#!/bin/sh\nmkdir -p report; cp made report/report.json; exit 1\n")
    fake.chmod(0o755)
    code, outputs, _ = _act(tmp_path, "agent.toml", "", tmp_path)

    assert code == 1
    assert outputs == {
        "conforms": "a conforms=b:strict gate:core",
        "statement": "x EOF conforms=wire:strict statement<<y z?",
    }


def _zip(**members):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), text)
    return content.getvalue()


@pytest.fixture
def collected(tmp_path):
    """Run `.ci/results` with a `gh` that serves local archives; return its words and the folder."""

    def run(*archives):
        hub = tmp_path / "hub"
        hub.mkdir()
        strangers = (
            f"9 9 {whence} iamroles-conformance-results 0\n" for whence in ("false main", "true feature")
        )
        rows = (f"{n} 7{n} true main iamroles-conformance-results {n}\n" for n in range(len(archives)))
        (hub / "list").write_text("".join([*strangers, *rows]))
        for number, content in enumerate(archives):
            (hub / f"{number}.zip").write_bytes(content)
        gh = tmp_path / "gh"
        gh.write_text(
            f'#!/bin/sh\ncase "$2" in\n*gone/*) exit 1 ;;\n'
            f"*/zip) p=${{2%/zip}}; exec cat {hub}/${{p##*/}}.zip ;;\n"
            f"*/artifacts*) exec cat {hub}/list ;;\n*) echo main ;;\nesac\n"
        )
        gh.chmod(0o755)
        (tmp_path / "results.toml").write_text(LIST)
        variables = {
            "PATH": f"{tmp_path}:{BIN}:{os.environ['PATH']}",
            "IAMROLES_RESULTS": str(tmp_path / "results.toml"),
        }
        done = finished("bash", ROOT / ".ci/results", tmp_path / "into", env=variables, check=True)
        return done.stdout + done.stderr, tmp_path / "into"

    return run


@pytest.fixture(scope="module")
def report():
    return next((ROOT / "conformance/reports/spoe-forge").iterdir()).joinpath("report.json").read_text()


def test_a_collected_report_stands_beside_those_of_the_repository(collected, report):
    told, into = collected(_zip(report_dot_json=report, report_dot_html="<script>", **{"..__..__x": "x"}))

    assert "collected  agent/0.0.8" in told
    assert "gone/agent: its artifacts cannot be listed" in told
    assert sorted(path.name for path in (into / "agent/0.0.8").iterdir()) == [
        "README.md",
        "implementation.toml",
        "report.json",
    ]
    assert (into / "agent/0.0.8/report.json").read_text() == report
    assert "actions/runs/70" in (into / "agent/0.0.8/README.md").read_text()
    assert not (into.parent / "x").exists()
    page = shutil.copy(ROOT / "docs/implementations.md", into.parent / "page.md")
    finished(BIN / "iamroles", "conformance", "verify-report", into, "--page", page, check=True)
    assert "[Agent 0.0.8](#agent-0.0.8)" in page.read_text()
    assert "[spoe-forge 0.0.8](#spoe-forge-0.0.8)" in page.read_text()


def test_a_project_with_a_signed_report_takes_no_unsigned_one(collected, report, tmp_path):
    signed = tmp_path / "into/agent/0.0.7"
    signed.mkdir(parents=True)
    (signed / "report.json.sig").touch()
    told, into = collected(_zip(report_dot_json=report))

    assert "agent: public_key: signs other reports" in told
    assert list((into / "agent").iterdir()) == [signed]


def test_hostile_archives_are_refused_and_leave_nothing(collected, report):
    bomb = _zip(report_dot_json=" " * (64 << 20))
    sound = _zip(report_dot_json=report)
    evil = json.loads(report) | {"product": {"name": "x", "version": "../../x"}}
    archives = {
        "is larger than": bomb,
        "more than 8388608 bytes": sound + bytes(9 << 20),
        "is not in it": _zip(**{"..__report_dot_json": report}),
        "is not a sound zip file": sound[:-30],
        "product.version: is not there": _zip(report_dot_json="[" * 100_000),
        "names no folder": _zip(report_dot_json=json.dumps(evil)),
        "totals": _zip(report_dot_json=report.replace('"pass": ', '"pass": 1')),
    }
    told, into = collected(*archives.values(), sound, sound)

    for words in archives:
        assert f"{words}" in told, told
    assert told.count("collected  agent/0.0.8") == 1
    assert "0.0.8 is there already" in told
    own = {path.name for path in (ROOT / "conformance/reports").iterdir()}
    assert {path.name for path in into.iterdir()} == own | {"agent"}
