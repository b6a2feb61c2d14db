"""Every argument of a question (SPEC.md section 2): values that differ by much and by little.

An agent that remembers verdicts and leaves one argument out of its key answers with the verdict of another
question. So the values of each argument follow each other while all the rest stays the same, in both orders,
each order with a token that was not seen before. The last questions move a letter from an argument to
the next: a key that is the arguments put together without a mark between them does not notice. The values are
in data/derived/arguments.toml.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from iamroles_scenarios.checks.derived.world import PATH, SOURCE, derived, iam_check
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.tables import ARN, filled, table
from iamroles_scenarios.engine.answers import ALLOW, REFUSE, expected
from iamroles_scenarios.engine.bench import Bench, SpopQuestion
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.wire.client import OMIT

Values = Sequence[tuple[Any, Any]]
"""Values of an argument, and the answer to each."""


def _one_bit_off(text: str, every: int) -> Values:
    """List the addresses that differ in a single bit; no grant of this world opens them."""
    address = ip_address(text)
    bits = range(0, address.max_prefixlen, every)
    return [(str(type(address)(int(address) ^ 1 << bit)), "no_grant") for bit in bits]


ARGUMENTS: Mapping[str, Values] = table("arguments")["iam-check"]
CONTEXT: Mapping[str, Sequence[Any]] = filled(table("arguments")["iam-context"], {"omit": OMIT})
_NEIGHBOURS = {"src": (*_one_bit_off(SOURCE, 1), *_one_bit_off("2001:db8::7", 4))}
_LONG = 3000
"""Letters that make a token so long that an agent may remember its questions in another way."""
_TEXTS = ("role", "method", "host", "path")


def _questions(here: Bench, name: str, values: Values, length: int = 0) -> list[SpopQuestion]:
    """Make one question for each value; all else, the token included, stays the same.

    The token is longer by a claim of this length.
    """
    padding: dict[str, Any] = {"claims": {"padding": "x" * length}}
    if name == "authorization":
        tokens = {value: here.token(roles=[value], **padding) for value, _ in values if value}
        return [
            SpopQuestion(f"authorization of {value}", iam_check(tokens.get(value)), expected(answer))
            for value, answer in values
        ]
    # A question of the argument `role` needs a token with a choice.
    token = here.token(roles=["kiosk", "clerk"] if name == "role" else ["kiosk"], **padding)
    return [
        SpopQuestion(f"{name} {value!r}", iam_check(token) | {name: value}, expected(answer))
        for value, answer in values
    ]


@check("policy.derived.arguments", "DERIVED-ARGUMENT-001", features={"oidc"})
def arguments(target: Target) -> str:
    """Questions that differ in one argument alone get their own answers, in any order.

    Each argument's values in both orders, once with a long token. Then letters wander from one argument to
    another.
    """
    with derived(target) as here:
        for name, listed in ARGUMENTS.items():
            values = [*listed, *_NEIGHBOURS.get(name, ())]
            here.ask_all(_questions(here, name, values), window=1)
            back = _questions(here, name, values[::-1], _LONG)
            here.ask_all(back, "in the other order, with a long token: ", window=1)
        here.ask_all(_shifted(here), window=1)
    return f"{here.asked} questions about {len(ARGUMENTS)} arguments"


def _shifted(here: Bench) -> list[SpopQuestion]:
    """Make a good question, then others of the same letters, with a letter moved to the next argument."""
    token = here.token(roles=["kiosk", "clerk"])
    good = iam_check(token, role=f"{ARN}kiosk")
    found = [SpopQuestion("before a letter wanders", good, ALLOW)]
    for one in _TEXTS:
        for other in _TEXTS:
            if one != other:
                moved = {one: good[one][:-1], other: good[one][-1] + good[other]}
                back = {one: good[one] + good[other][0], other: good[other][1:]}
                found += [
                    SpopQuestion(f"a letter of {one} at {other}", good | moved, REFUSE),
                    SpopQuestion(f"a letter of {other} at {one}", good | back, REFUSE),
                ]
    return found


@check("policy.derived.context", "DERIVED-ARGUMENT-002", features={"oidc"})
def context(target: Target) -> None:
    """The arguments of iam-context change no verdict.

    Other values of each, for an allow and for a refusal; also with tokens seen before.
    """
    with derived(target) as here:
        said = [{}, *({name: value} for name, values in CONTEXT.items() for value in values)]
        for answer, path in (("allow", PATH), ("no_grant", "/elsewhere")):
            # Each has its own token. With one token, the agent could answer all from the memory of the first.
            # The second time each token comes with another value, as its verdict is remembered by then.
            tokens = [here.token(roles=["kiosk"]) for _ in said]
            for values in (said, said[::-1]):
                questions = [
                    SpopQuestion(f"with {each}", iam_check(token, path=path), expected(answer), each)
                    for each, token in zip(values, tokens, strict=True)
                ]
                here.ask_all(questions, window=1)
