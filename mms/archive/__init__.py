"""The model archive: what is in it, how it is read safely and written reproducibly.

Knows files only: nothing here starts a process, opens a socket or runs a model's code. Where
archives come from is the business of `mms.fetch`, packing a trained model that of `mms.export`.
"""
