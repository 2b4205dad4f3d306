"""Resolve a model location, a path or a URL, to a local file: policy, download, cache.

Knows archives as files of bytes: it reads none, and it loads no model.
"""
