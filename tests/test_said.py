"""Promises: what agent and tools say of themselves, what would make it untrue, and the test that plays that.

Each text of the sources with one of the words of `WORDS` is a promise. So a new sentence that promises
something has no row of `PROMISES`, and fails here, until a test plays what would make it untrue.
"""

import ast
import re
from functools import cache

import pytest
from test_house import python_files

WORDS = re.compile(r"\bin force\b|\bkept in\b|\bWHOLE\b|\bconfirmed by\b|^healthy$")
DENIED = re.compile(r"\b(NOT|not|cannot|could not|refused)\b")
"""What is denied promises nothing."""
_REVOKED = [
    "test_a_wrong_file_is_not_in_force_in_status_and_health",
    "test_who_may_not_ask_the_agent_is_not_said_that_none_runs",
    "test_an_agent_whose_parent_stands_still_is_not_said_to_be_absent",
    "test_another_user_who_answers_is_not_believed",
    "test_an_answer_that_makes_no_sense_is_not_taken_for_an_absent_agent",
]
_STREAMS = [
    "test_a_master_that_does_not_answer_is_a_revocation_that_is_not_in_force",
    "test_without_a_master_socket_open_streams_are_not_reached_and_that_is_said",
]
_CONFIRMED = [
    "test_an_outcome_that_waited_long_enough_tells_how_many_have_confirmed",
    "test_who_does_not_switch_in_time_is_killed_and_the_outcome_waits_for_its_replacement",
    "test_a_newborn_that_is_behind_a_commit_does_not_serve_before_it_has_caught_up",
]
_ACCEPTED = [
    "test_a_removed_grant_stays_removed_when_everybody_is_killed",
    "test_what_was_accepted_outlives_the_agent",
    "test_a_state_directory_that_was_tampered_with_stops_the_start",
]
PROMISES = {
    "in force for new requests in all ": _REVOKED,
    "in force for open streams": _STREAMS,
    "in force": _REVOKED + _STREAMS,
    "in force: version ": _CONFIRMED,
    "confirmed by ": _CONFIRMED,
    " is in force in ": [*_CONFIRMED, "test_ready_waits_for_the_last_of_several_reloads"],
    "revocations of %s are in force: no worker serves without them": _CONFIRMED,
    "%s\nthe revocations in force stay in force": ["test_a_fifo_in_place_of_a_file_holds_nothing_up"],
    "%s\nthe policy that was accepted last is in force": _ACCEPTED,
    "to take over, both agents need the same agent.state_dir: it hands over what is in force": [
        "test_a_new_agent_that_does_not_get_ready_changes_nothing",
    ],
    "%s; the certificates before it stay in force": ["test_certificates_rotate_without_a_lost_question"],
    "issuer %s: %d keys in force": ["test_a_key_reaches_all_workers_by_one_fetch_and_outlives_its_issuer"],
    "kept in ": [
        "test_what_is_not_on_the_disk_is_not_said_to_be_kept",
        "test_while_another_agent_gets_ready_nothing_is_saved_and_that_is_said",
        "test_an_outcome_waits_for_the_disk_but_not_for_ever_and_says_what_the_disk_does_not_have",
    ],
    "WHOLE: ": [
        "test_any_change_at_any_place_is_found",
        "test_bytes_after_the_last_record_are_said",
        "test_a_file_that_is_gone_is_found",
    ],
    "WHOLE up to there: ": ["test_bytes_after_the_last_record_are_said"],
    "healthy": ["test_health_checks_fail_while_nothing_can_be_decided"],
}
METRICS = "serving/scrape.py"
"""Its texts describe numbers; `test_metrics.py` holds them."""
TESTS = "".join(path.read_text() for path in python_files("tests"))


ADVICE = ("Directory of the state", ". Name a directory")
"""How a text begins that tells what to do."""


@cache
def promised():
    """Texts of the sources that promise something; docstrings promise to readers alone."""
    found = set()
    for path in python_files("reference"):
        tree = ast.parse("" if path.as_posix().endswith(METRICS) else path.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        found |= {
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
        }
    told = {text for text in found if WORDS.search(text) and not DENIED.search(text)}
    return {text for text in told if not text.startswith(ADVICE)}


def test_each_sentence_that_promises_something_has_a_row():
    assert promised() - set(PROMISES) == set()


@pytest.mark.parametrize("promise", PROMISES)
def test_what_would_make_it_untrue_is_played(promise):
    assert promise in promised(), "nobody says it: remove the row"
    assert [name for name in PROMISES[promise] if f"def {name}(" not in TESTS] == []
