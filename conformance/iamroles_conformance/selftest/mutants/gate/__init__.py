"""Mutants of the gate family: who is asking, what the policy says, what HAProxy makes of the answer."""
