"""No credential in the audit, whatever its kind, wherever a client puts it, however it is spelled or cut."""

import pytest
from audit_support import decided, opened
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from misplaced import EACH, misplaced

from iamroles_agent.audit.redaction import shown
from iamroles_agent.base.identity import Decision

WHERE = ("path", "host", "method", "requested_role", "detail", "principal", "session", "request", "event")


def recorded(path, where, text):
    """Put a text into one place of the log; return all that is written."""
    log = opened(path)
    about = {where: text} if where in ("path", "host", "method", "requested_role") else {}
    who = {where: text} if where in ("detail", "principal", "session") else {}
    decided(log, text if where == "request" else "r", Decision(allow=False, roles=(text,), **who), **about)
    if where == "event":
        log.event("cut", {"cause": text, "about": [text]})
        log.policy(text, accepted=False, detail=text)
    log.close()
    return path.read_text()


@given(one=misplaced(), where=st.sampled_from(WHERE))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_run_of_a_credential_is_on_record(tmp_path_factory, one, where):
    written = recorded(tmp_path_factory.mktemp("log") / "audit.jsonl", where, one.text)

    assert not one.shown_by(written)


@given(one=misplaced(), limit=st.integers(64, 2000), before=st.integers(0, 3000))
@settings(max_examples=300, deadline=None)
def test_no_cut_shows_a_run_of_a_credential(one, limit, before):
    assert not one.shown_by(shown("/a" * (before // 2) + "/" + one.text, limit))


@pytest.mark.parametrize("limit", [64, 500, 2000])
def test_none_of_them_is_shown(limit):
    assert not [one.text for one in EACH if one.shown_by(shown(one.text, limit))]
