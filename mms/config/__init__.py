"""Settings, where their values come from, and what the machine offers."""
