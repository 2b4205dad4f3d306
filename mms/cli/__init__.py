"""The commands: parse flags into a configuration, do the work, return an exit status."""
