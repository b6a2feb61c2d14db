"""What all rooms above use: errors, recordings, durations, child processes."""
