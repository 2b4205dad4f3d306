"""PUBLIC: the base classes of services, under the import paths of MMS 0.4."""
