"""The two commands: flags become configuration, one call does the work, its end is the status."""
