"""Checks that are derived from the contract's own tables, so that nothing of them stays unchecked.

An example shows one fault. Whoever writes examples stops when he has no more ideas, and the next argument,
key or claim comes without any. So the modules here hold *tables*, with one row for each thing that the
contract names, and make the questions out of them:

==================  ==================================  ======================================================
module              one row for each                    what is made of it
==================  ==================================  ======================================================
`arguments`         argument of a question (2)          questions that differ in it alone, in both orders
`credentials`       part of a credential                good credentials, their parts exchanged or bent
`rules`, `issuers`  key of the policy (6)               a world with it, one without, both sides of its edge
`refused`           key of the policy (6)               worlds that must not load
`events`            table of the policy (6)             added, changed and taken away, nothing else with it
`seconds`           rule of time (5, 6)                 its last and its first second, told and kept
`claims`            claim that a policy can name (5)    every shape of JSON that might stand there
`exact`             text that is compared (5, 6, 7)     its neighbours: case, slash, blank, Unicode
`reasons`           reason (4)                          a question that gets it, and what its cause hides
`waits`             call that an agent makes            every way in which its answer never ends
`passes`            reason that a reload can end        the same bytes: refused, accepted, refused again
==================  ==================================  ======================================================

What an answer may hold is a table too (`answers`, section 3), and every answer of all these is held against
it. `tests/scenarios/test_derived.py` compares the tables with SPEC.md and with the policy's schema: whatever
is there and has no row, or no exemption that says why, fails the suite's own tests.

Where the contract leaves open what an agent does, the row says so, and both ways pass.
"""
