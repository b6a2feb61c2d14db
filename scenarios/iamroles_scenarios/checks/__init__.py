"""Checks written in Python, one folder for each family; scenario files hold the rest."""
