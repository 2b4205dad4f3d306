"""Element types of tensors, by their names in the Open Inference Protocol V2. Pure.

Every other table of types is derived from this one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DataType:
    """One element type.

    Attributes:
        name: The protocol's name.
        numpy: Kind and size in NumPy's notation; "O" for byte strings, whose size varies.
        onnx: Name in ONNX graphs, as onnxruntime prints it.
        grpc_field: Field of gRPC's InferTensorContents that holds the elements; "" if none does.
        array: Type code of those elements in Python's `array`; "" if `array` has none.
    """

    name: str
    numpy: str
    onnx: str
    grpc_field: str
    array: str

    @property
    def is_float(self) -> bool:
        """Whether it is a floating-point type."""
        return self.numpy[0] == "f"

    @property
    def is_whole(self) -> bool:
        """Whether it is an integer type, including BOOL with 0 and 1."""
        return self.numpy[0] in "biu"


TABLE = (
    DataType("BOOL", "b1", "bool", "bool_contents", "B"),
    DataType("UINT8", "u1", "uint8", "uint_contents", "B"),
    DataType("UINT16", "u2", "uint16", "uint_contents", "H"),
    DataType("UINT32", "u4", "uint32", "uint_contents", "I"),
    DataType("UINT64", "u8", "uint64", "uint64_contents", "Q"),
    DataType("INT8", "i1", "int8", "int_contents", "b"),
    DataType("INT16", "i2", "int16", "int_contents", "h"),
    DataType("INT32", "i4", "int32", "int_contents", "i"),
    DataType("INT64", "i8", "int64", "int64_contents", "q"),
    DataType("FP16", "f2", "float16", "", ""),
    DataType("FP32", "f4", "float", "fp32_contents", "f"),
    DataType("FP64", "f8", "double", "fp64_contents", "d"),
    DataType("BYTES", "O", "string", "bytes_contents", ""),
)
