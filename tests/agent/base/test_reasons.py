"""The closed list of reasons and the limits of texts are the contract's (SPEC.md sections 2 and 4)."""

import re
from pathlib import Path

from iamroles_agent.base.reasons import Reason
from iamroles_agent.spop.messages import LIMITS

SPEC = (Path(__file__).parents[3] / "conformance" / "SPEC.md").read_text()


def section(number):
    return SPEC.partition(f'\n## <a id="c-{number}"></a>')[2].partition("\n## ")[0]


def test_reasons_and_what_they_tell_the_client():
    rows = re.findall(r"^\| (\d{3}) \| (.+?) \| (.+) \|$", section(4), re.MULTILINE)
    listed = {
        (reason, int(status), "" if error.startswith("(none)") else error.strip("`"))
        for status, error, reasons in rows
        for reason in re.findall(r"`(\w+)`", reasons)
    }

    assert listed == {(str(reason), reason.status, reason.error) for reason in Reason}


def test_limits():
    (sentence,) = re.findall(r"Texts have at most this many bytes: (.+?)\.\s", section(2), re.DOTALL)

    assert {name: int(length) for name, length in re.findall(r"`([\w-]+)` (\d+)", sentence)} == LIMITS
