"""The workers of a servable: their placement, start and replacement."""
