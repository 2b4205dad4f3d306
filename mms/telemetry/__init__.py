"""What the server counts, and where it is shown or written.

What a 1.x handler imports to report metrics is public and lies in `mms.metrics`.
"""
