"""The recording of a check: exchanges, connections, waits; and never a signature."""

import base64
import threading
import time
from types import SimpleNamespace

import pytest

from iamroles_scenarios.base import polling
from iamroles_scenarios.base.recording import Wait, carried, note, recorded, waited, without_secrets
from iamroles_scenarios.declarations.scenario import Expectation
from iamroles_scenarios.engine import bench, players
from iamroles_scenarios.engine.bench import Bench
from iamroles_scenarios.engine.observation import Observation
from iamroles_scenarios.jose import SigningKey, mint

_KEYS = [SigningKey.generate(algorithm, kid=algorithm) for algorithm in ("RS256", "ES256")]
_STS = "https://sts.amazonaws.com/?Action=GetCallerIdentity&X-Amz-Security-Token={0}&X-Amz-Signature={0}"


@pytest.mark.parametrize("key", ["RS256", "ES256"])
@pytest.mark.parametrize(
    "before", ["Authorization: Bearer {}", "/orders/{}?x", "basic {}", "Bearer{}", '"{}"']
)
@pytest.mark.parametrize("dot", [".", ",", "%2E", " . ", ".."])
def test_no_token_keeps_its_signature_however_it_is_broken(key, before, dot):
    parts = mint({"key": key}, _KEYS, time.time(), "http://idp/corp").split(".")
    shown = without_secrets(before.format(dot.join(parts)))

    assert parts[2][:20] not in shown
    assert parts[2][-20:] not in shown


def test_a_token_is_shown_by_header_and_claims():
    shown = without_secrets(mint({"sub": "alice", "key": "ES256"}, _KEYS, time.time(), "http://idp/corp"))

    assert '"alg": "ES256"' in shown
    assert '"sub": "alice"' in shown


def test_a_presigned_request_is_shown_without_what_signs_it():
    secret = "0123456789abcdef" * 4
    url = base64.urlsafe_b64encode(_STS.format(secret).encode()).decode().rstrip("=")
    shown = without_secrets(f"Authorization: Bearer iam-sts-v1.{url}")

    assert "Action=GetCallerIdentity" in shown
    assert secret not in shown
    assert url not in shown


def test_bytes_are_cut_where_they_spell_a_credential_and_stay_where_they_are_a_frame():
    signature = b"\x00\x00\x01\x2c\x03" + b"Pizt_crP0M0iqFZNe7udPElGJI0nVytD9YFZtvm"
    frame = bytes([0, 0, 0, 19, 3]) + b"method\x08\x03GET\x04path\x08\x01/" + bytes(12)

    assert signature[-20:].hex(" ") not in without_secrets(f">> RAW {signature.hex(' ')} … (300 bytes)")
    assert without_secrets(f">> RAW {frame.hex(' ')}") == f">> RAW {frame.hex(' ')}"


def test_deep_nesting_brings_nobody_down():
    deep = base64.urlsafe_b64encode(b"[" * 100_000).decode()

    assert len(without_secrets(f"eyJhbGciOiJFUzI1NiJ9.{deep}.x")) < 200
    assert without_secrets("x" * 100_000) == "x" * 100_000


def test_the_first_and_the_last_are_kept_and_the_others_counted():
    with recorded(keeps=True) as found:
        for number in range(200):
            note(f"question {number}", f"answer {number}")

    text = found.text()
    assert "question 0\n\nanswer 0" in text
    assert "question 199" in text
    assert "question 100" not in text
    assert "120 more, not kept" in text


def test_nothing_is_kept_where_nobody_asked():
    note("outside of any")
    with recorded(keeps=False) as found:
        note("inside")

    assert found.text() == ""


def test_the_wait_that_came_nearest_to_its_bound_is_kept():
    with recorded() as found:
        waited("quick", 0.1, 10.0)
        waited("slow", 1.0, 2.0)
        waited("long", 5.0, 60.0)

    assert found.narrowest == Wait("slow", 1.0, 2.0)
    assert found.narrowest.margin == 0.5


def test_of_a_wait_for_an_answer_the_time_until_it_was_asked_for_counts(monkeypatch):
    now = [0.0]

    def passes(seconds):
        now[0] += seconds

    def slowly(*_asked, **_how):
        passes(3.0)  # an agent may hold a question while it fetches keys
        return next(statuses)

    for module in (bench, players, polling):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=passes))
    here = Bench(SimpleNamespace(seconds=lambda seconds: seconds), SimpleNamespace(suffix=""))
    here.client = SimpleNamespace(ask=slowly)
    margins = []
    for answers in ([200], [401, 200]):  # the last look comes at its bound
        statuses = (Observation(status, True, "", "") for status in answers)
        with recorded() as found:
            here.expect("a new key", "", Expectation(status=200), within=2.0)
        margins.append(found.narrowest.margin)

    assert margins == [1.0, 0.0]


def test_another_thread_notes_in_the_recording_that_it_is_given():
    with recorded(keeps=True) as found:
        for target, text in ((carried(note), "with"), (note, "alone")):
            thread = threading.Thread(target=target, args=(text,))
            thread.start()
            thread.join()

    assert "with" in found.text()
    assert "alone" not in found.text()
