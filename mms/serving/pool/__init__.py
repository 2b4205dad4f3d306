"""The workers of a servable: where they run, how they start, when they are replaced."""
