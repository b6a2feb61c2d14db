"""Checks that are derived from the contract's own tables, so that nothing of them stays unchecked.

An example shows one fault. Authors of examples stop when they run out of ideas, and the next argument,
key or claim comes without any. So the modules here read *tables* (data/derived/), with one row for each thing
that the contract names, and make the questions out of them:

==================  ==================================  ======================================================
module              one row for each                    what is made of it
==================  ==================================  ======================================================
`arguments`         argument of a question (2)          questions that differ in it alone, in both orders
`credentials`       part of a credential                good credentials, their parts exchanged or bent
`rules`, `issuers`  key of the policy (6)               policies with it and without, both sides of its edge
`reloads`           key of the policy (6)               policies that must not load
`reloads`           table of the policy (6)             added, changed and taken away, nothing else with it
`reloads`           reason that a reload can end        the same bytes: refused, accepted, refused again
`issuers`           algorithm (5.10)                    a policy with it alone, tokens by every other
`seconds`           rule of time (5, 6)                 its last and its first second, reported and kept
`claims`            claim that a policy can name (5)    every shape of JSON that might stand there
`exact`             text that is compared (5, 6, 7)     its neighbours: case, slash, blank, Unicode
`reasons`           reason (4)                          a question that gets it, and what its cause hides
`key_sets`          answer of an issuer (5.25)          before it, after it, and after a withdrawal
`signatures`        algorithm (5.10)                    signatures in other octets, sound or not
`waits`             call that an agent makes            every way in which its answer never ends
==================  ==================================  ======================================================

A table says what an answer may hold, too (`engine.answers`, section 3), and the checks hold every answer
against it. The keys of the policy and their types come from policy.schema.json.
`tests/scenarios/test_derived.py` compares the tables with SPEC.md and with the schema: a thing that is there,
but has neither a row nor an exemption that says why, fails the suite's own tests.

If the contract leaves open what an agent does, the row says so, and both ways pass.
"""
