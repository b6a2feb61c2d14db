"""The policy oracle: SPEC.md sections 6 and 7 a second time, small and slow, and random policies to try.

It shares no code with any agent. The agent compiles and indexes; the oracle reads every rule for every
request.
"""
