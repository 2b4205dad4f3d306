"""Settings, their sources, and the resources of this machine."""
