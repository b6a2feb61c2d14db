"""An agent on the library spoe-forge."""
