"""Recognise models that nobody has exported, one module per family.

Names and heads of files go in, a manifest and a signature come out. Nothing in a model is executed.
"""
