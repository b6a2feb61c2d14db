"""Sans-IO SPOP: frames, varints, typed data, the connection state machine (SPOE.txt section 3)."""
