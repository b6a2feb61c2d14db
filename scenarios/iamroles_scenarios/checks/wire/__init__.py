"""Checks of the wire family: SPOP, frame by frame."""
