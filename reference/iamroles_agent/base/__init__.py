"""Modules that all other rooms use: configuration, identity, reasons, errors, clocks."""
