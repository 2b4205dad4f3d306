"""Read the signature that counts: the service's own property, as 0.4 asked it at each request.

Most services return what signature.json says. One may compute it, take more inputs, or change it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from mms.archive.signature import Signature, parse_signature
from mms.errors import InvalidServiceOutput, SignatureError

#: A service that returns others all the time is asked each time.
_MAX_KNOWN = 64


class OwnSignature:
    """The signature of a service at the time of each request.

    Args:
        in_file: What signature.json says.
    """

    def __init__(self, in_file: Signature) -> None:
        self._in_file = in_file
        self._key_in_file = (in_file.input_type, in_file.output_type, *in_file.input_names)
        self._known: dict[Hashable, Signature] = {}

    def of(self, service: Any) -> Signature:
        """Return what a service's property says of its inputs and their type; else the file's.

        Raises:
            InvalidServiceOutput: It is no valid signature.
            Exception: Any exception of the property itself.
        """
        document = getattr(service, "signature", None)
        # 1.x made it a method, and bases of 0.4 without one return nothing.
        if not isinstance(document, Mapping) or "inputs" not in document:
            return self._in_file
        try:
            # What a request needs, and cheap to compare.
            key = (
                document.get("input_type"),
                document.get("output_type"),
                *[entry["data_name"] for entry in document["inputs"]],
            )
            # The file tells which sizes are free, and what is done to pictures of which size; 0.4's
            # property has a 1 for each free size.
            known = self._in_file if key == self._key_in_file else self._known.get(key)
        except (TypeError, KeyError) as error:
            raise InvalidServiceOutput(
                f"{type(service).__name__}.signature is no signature: its inputs need a data_name "
                f"each ({type(error).__name__})"
            ) from error
        if known is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            known = self._known[key] = self._parse(document, type(service).__name__)
        return known

    def _parse(self, document: Mapping[str, Any], service: str) -> Signature:
        try:
            own = parse_signature(dict(document), f"{service}.signature")
        except SignatureError as error:
            raise InvalidServiceOutput(str(error)) from error
        file = self._in_file
        is_same = (own.input_names, own.input_type, own.output_type) == (
            file.input_names,
            file.input_type,
            file.output_type,
        )
        # The file tells which sizes are free; 0.4's property has a 1 for each.
        return file if is_same else own
