"""Plays scenarios and checks against an agent on a stage, and gives verdicts."""
