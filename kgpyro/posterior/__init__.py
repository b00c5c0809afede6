"""A fitted posterior: its draws, what it predicts, and the run folder it is saved to."""
