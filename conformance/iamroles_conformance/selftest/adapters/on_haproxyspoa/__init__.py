"""An agent on the library haproxyspoa."""
