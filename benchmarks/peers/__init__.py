"""Other model servers beside ours: the same work, the same machine, one run."""
