"""The child process, which loads one servable and runs its batches.

May import mxnet and user code. Started as ``python -m mms.worker``; its first frame contains
everything it needs.
"""
