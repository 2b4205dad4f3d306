"""PUBLIC: holds names that services of MMS 0.4 import: ``mms.utils.mxnet`` and a decorator."""
