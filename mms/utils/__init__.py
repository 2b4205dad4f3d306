"""PUBLIC: holds only ``mms.utils.mxnet``, a name that services of MMS 0.4 import."""
