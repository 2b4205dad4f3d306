"""Import modules of a package when their names are first used: MXNet and others take their time."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


def lazily(package: str, names: tuple[str, ...]) -> Callable[[str], ModuleType]:
    """Return the ``__getattr__`` of a package whose submodules are attributes without an import.

    Args:
        package: Its name.
        names: Submodules that it offers.
    """

    def find(name: str) -> ModuleType:
        # Here, as every interpreter of an environment with this package imports `mms`.
        import importlib

        if name in names:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find


def retired(name: str, instead: str) -> type:
    """Return a class for a public name of 0.4 or 1.x that has no part in this server.

    It can be imported and derived from, so that a file that only mentions the name loads.

    Args:
        name: Full name, ``module.Class``.
        instead: What to use; ends the sentence of the error that creating or calling it raises.
    """

    def refuse(*args: object, **kwargs: object) -> None:
        raise NotImplementedError(f"{name} is not part of this server; {instead}")

    class Refusing(type):
        """Refuses static methods and class attributes, too."""

        def __getattr__(cls, attribute: str) -> object:
            if attribute.startswith("__"):
                raise AttributeError(attribute)
            return refuse

    return Refusing(name.rpartition(".")[2], (), {"__init__": refuse, "__module__": "mms.lazy"})
