"""Attacks on the server, each with the answer it must get."""
