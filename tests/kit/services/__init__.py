"""Tiny real services, one per behaviour. `tests.kit.archives` packs them."""
