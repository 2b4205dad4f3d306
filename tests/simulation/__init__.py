"""The pure core of the server under a virtual clock, with faults drawn from a seed."""
