"""The child process: loads one servable and runs its batches. May import mxnet and user code.

Started as ``python -m mms.worker``; everything it needs comes in its first frame.
"""
