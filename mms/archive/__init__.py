"""The model archive: its content, reading it safely and writing it reproducibly.

This package handles files, not processes: nothing here starts a worker or runs a model's code.
"""
