"""Tools that all other rooms use: errors, recordings, durations, child processes."""
