"""The model archive: what is in it, how it is read safely and written reproducibly.

Knows files, not processes: nothing here starts a worker or runs a model's code.
"""
