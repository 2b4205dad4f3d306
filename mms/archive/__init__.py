"""The model archive: its content, reading it safely and writing it reproducibly.

Knows files only: nothing here starts a process, opens a socket or runs a model's code. Where
archives come from is the business of `mms.fetch`, packing a trained model that of `mms.export`.
"""
