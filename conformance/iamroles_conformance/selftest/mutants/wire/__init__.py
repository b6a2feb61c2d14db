"""Mutants of the wire family: the protocol between HAProxy and the agent."""
