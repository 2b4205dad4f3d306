"""PUBLIC: the classes that services derive from, under the import paths of MMS 0.4."""
