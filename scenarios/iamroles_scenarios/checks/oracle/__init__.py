"""The policy oracle: SPEC.md sections 6 and 7 a second time, small and slow, and worlds to try it on.

Shares no code with any agent. Where the agent compiles and indexes, this reads every rule for every request.
"""
