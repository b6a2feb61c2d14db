"""The reports of real implementations, and the page made from them.

    python conformance/reports/publish.py run               # judge all of ../examples, write <name>/
    python conformance/reports/publish.py run node          # one
    python conformance/reports/publish.py page              # docs/implementations.md, between its two marks

The adapters need a Python with their library (`IAMROLES_ADAPTER_PYTHON`); two other examples need `node`, and
jwt-verify-cert needs HAProxy 3.3 or later (`IAMROLES_HAPROXY`).
What is kept of a report is what others compare: verdicts and reasons, no logs, and nothing of this machine.
That is too little for `iamroles conformance report`, which says what it lacks.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from iamroles_scenarios.declarations.catalogue import CLASSES

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PAGE = ROOT / "docs" / "implementations.md"
BEGIN, END = "<!-- made from conformance/reports: begin -->", "<!-- end -->"
WHAT = {
    "node": ("an agent in Node, from SPEC.md alone", ()),
    "auth-request": ("an HTTP service as for `auth_request`, behind Lua", ()),
    "jwt-verify": ("HAProxy's own `jwt_verify`, no agent", ()),
    "jwt-verify-cert": ("HAProxy's own `jwt_verify_cert`, no agent", ()),
    "spoe-forge": ("the Python library spoe-forge", ("--lane=wire",)),
    "haproxyspoa": ("the Python library haproxyspoa", ("--lane=wire",)),
}
"""Each implementation in words, and the limits of its run."""
_CHECK = ("check", "lane", "name", "verdict", "message")
_FAILED = ("fail", "known-failure", "harness-error")
_HOST = re.compile(r"\b127\.0\.0\.1:\d+|(?<![\w.])/(?:[\w.+-]+/)+[\w.+-]*|\b\d+\.\d+ m?s\b")


def judge(name: str) -> None:
    """Run the suite against one example, and keep its report."""
    agent = f"conformance/examples/{name}/agent.toml"
    with tempfile.TemporaryDirectory() as scratch:
        argv = ["conformance", "run", "--quiet", "--stage=processes", f"--agent={agent}", *WHAT[name][1]]
        program = Path(sys.executable).parent / "iamroles"
        done = subprocess.run([program, *argv, f"--report={scratch}"], cwd=ROOT, check=False)  # noqa: S603
        if done.returncode not in (0, 1):
            raise SystemExit(f"{name}: the run ended with {done.returncode}; nothing was written")
        document = json.loads(Path(scratch, "report.json").read_text())
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        for form in ("summary.md", "badge.svg"):
            (folder / form).write_text(_HOST.sub("…", Path(scratch, form).read_text()).rstrip() + "\n")
    (folder / "report.json").write_text(dump(kept(document)))


def kept(document: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a result document that is published."""
    checks = [{key: one[key] for key in _CHECK} for one in document["checks"]]
    for one in checks:
        one["message"] = _HOST.sub("…", one["message"])
    wanted = ("schema", "specification", "suite", "product", "finished", "haproxy", "features")
    return {
        **{key: document[key] for key in wanted},
        **{key: document[key] for key in ("known_failures", "reproduce", "digests", "totals", "coverage")},
        "statement": {
            **{key: document["statement"][key] for key in ("sentence", "beside", "grade", "conforms")},
            "classes": {one["class"]: _counts(one["core"]) for one in document["statement"]["classes"]},
        },
        "checks": checks,
    }


def dump(document: dict[str, Any]) -> str:
    """One check a line: small, and a change is a line of the difference."""
    rows = ",\n".join(json.dumps(one, ensure_ascii=False) for one in document["checks"])
    head = json.dumps({**document, "checks": []}, ensure_ascii=False, indent=1)
    return head.removesuffix("[]\n}") + f"[\n{rows}\n]\n}}\n"


def read(name: str) -> dict[str, Any]:
    """A published report."""
    found: dict[str, Any] = json.loads((HERE / name / "report.json").read_text())
    return found


def published() -> list[str]:
    """Those that have a report, in the page's order."""
    return [name for name in WHAT if (HERE / name / "report.json").is_file()]


def matrix() -> str:
    """The tables of the page."""
    said = {name: read(name)["statement"] for name in published()}
    classes = list(CLASSES)
    rows = [f"| implementation | {' | '.join(classes)} |", "|---" * (len(classes) + 1) + "|"]
    for name, one in said.items():
        cells = [_cell(each, one) for each in classes]
        rows.append(f"| [{name}](#{name}): {WHAT[name][0]} | {' | '.join(cells)} |")
    return "\n".join([*rows, *(part for name, one in said.items() for part in _section(name, one))])


def _counts(core: dict[str, Any]) -> dict[str, int]:
    return {"of": core["of"], "passed": core["passed"], "failed": len(core["failed"])}


def _cell(name: str, said: dict[str, Any]) -> str:
    for grade in ("strict", "core"):
        if name in said["conforms"][grade]:
            return f"conforms ({grade})"
    found = said["classes"].get(name)
    if not found or (not found["passed"] and not found["failed"]):
        return "not played"
    return f"{found['passed']} of {found['of']}" + (f", {found['failed']} failed" if found["failed"] else "")


def _section(name: str, said: dict[str, Any]) -> list[str]:
    document = read(name)
    lines = ["", f"### {name}", "", said["sentence"], "", *(f"- {text}" for text in said["beside"])]
    failed = [
        one for one in document["checks"] if one["verdict"] in ("fail", "known-failure", "harness-error")
    ]
    if failed:
        counts = Counter(one["check"].rpartition(".")[0] for one in failed)
        lines.append(
            f"- failed: {', '.join(f'`{check}` {count}' for check, count in sorted(counts.items()))}"
        )
    haproxy = f", HAProxy {document['haproxy']}" if document["haproxy"] else ""
    lines += ["", f"Judged on {document['finished'][:10]}{haproxy}: `{document['reproduce']}`"]
    return lines


def page(text: str) -> str:
    """Return the page with the text between the marks replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{matrix()}\n{END}{after}"


def main(argv: list[str]) -> None:
    """`run [NAME…]`, or `page`."""
    match argv:
        case ["run", *names]:
            for name in names or WHAT:
                judge(name)
        case ["page"]:
            PAGE.write_text(page(PAGE.read_text()))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
