"""Tiny real services, one per behaviour. Each file is packed into an archive by `tests.models`."""
