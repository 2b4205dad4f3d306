"""The one place the version lives."""

__version__ = "2.0.0"
