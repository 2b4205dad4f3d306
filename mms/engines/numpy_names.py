"""Make ``import mxnet`` work on current NumPy: MXNet 1.9.1 uses names that NumPy 1.24 removed.

Nothing is imported or changed until mxnet is: the names are restored just before. `import mms`
arranges that, and so does the file ``mms.pth`` at the start of every interpreter of an environment
in which this package is installed.
"""

from __future__ import annotations

import sys

#: MXNet uses these at import and in its operators.
_REMOVED_NAMES = {
    "bool": bool,
    "int": int,
    "float": float,
    "complex": complex,
    "object": object,
    "str": str,
}


def restore_numpy_names() -> None:
    """Restore the aliases that NumPy 1.24 removed, where they are missing."""
    import numpy as np

    for name, value in _REMOVED_NAMES.items():
        if name not in np.__dict__:
            setattr(np, name, value)


def restore_before_mxnet() -> None:
    """Restore the names as soon as anything imports mxnet; once is enough."""
    if not any(isinstance(finder, _BeforeMXNet) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BeforeMXNet())


class _BeforeMXNet:
    """A finder of modules that finds none, but sees that mxnet is about to be imported.

    Not derived from `importlib.abc.MetaPathFinder`: importing that takes 20 ms, which every
    interpreter would spend at its start.
    """

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        """Return None, so that the module is found as usual."""
        if fullname == "mxnet":
            restore_numpy_names()
