"""The ground that all rooms above stand on: configuration, identity, reasons, errors, clocks."""
