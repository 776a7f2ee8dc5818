"""
Reads the tensors of a file written by `torch.save`, without running code from it.

A pickle is a program that can call any function. Here, it is not executed: its opcodes are interpreted with plain
containers, and every class or function that it names becomes a placeholder, except for those that tensors consist of.
The sizes that a file declares are compared with its real size before memory is allocated.
"""

import errno
import math
import os
import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of files that PyTorch wrote before version 1.6
_MOST_TENSORS = 10_000  # maximum number per model; the largest vision transformers have about 1,000
_MOST_OPCODES = 1_000_000  # of a pickle; a tensor and the state of its optimizer have about 100
_DAMAGED = "its pickle is damaged"
_PLACEHOLDER = object()  # for everything that is not a container, a number, a text or a tensor
_MARK = object()


@dataclass(frozen=True)
class _Global:
    """The name of a class or function: "module name"."""

    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    length: int  # in elements


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.size) * self.storage.dtype.itemsize

    def check(self, name: str):
        """
        Checks that the tensor is a view of elements of its storage, each at most once.

        Raises:
            ValueError: it is not.
        """
        numbers = (self.offset, *self.size, *self.stride)
        if len(self.size) != len(self.stride) or not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError(f"the shape of {name} is damaged")
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.size, self.stride))
        if not 0 < math.prod(self.size) <= self.storage.length or last >= self.storage.length:
            raise ValueError(
                f"{name} has the shape {self.size}, which does not fit its storage of {self.storage.length} elements"
            )


@dataclass
class _Unpickler:
    """Interprets the opcodes of one pickle; see the module docstring."""

    storages: dict[str, _Storage] = field(default_factory=dict)
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def load(self, file: BinaryIO) -> Any:
        """
        Returns the object in a pickle.

        Raises:
            ValueError: the pickle is damaged, or has too many opcodes.
        """
        for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if number == _MOST_OPCODES:  # most bytes of a pickle can make a container
                raise ValueError(f"it has a pickle of more than {_MOST_OPCODES:,} opcodes")
            if opcode.name in _CONSTANTS:
                self.stack.append(_CONSTANTS[opcode.name](argument))
            elif (step := getattr(self, f"_{opcode.name.lower()}", None)) is not None:
                try:
                    step(argument)
                except (IndexError, KeyError):  # too little on the stack, or not in the memo
                    raise ValueError(_DAMAGED) from None
            elif opcode.name not in ("PROTO", "FRAME", "STOP"):
                raise ValueError(f"a pickle of tensors does not contain {opcode.name}")
        if not self.stack:
            raise ValueError(_DAMAGED)
        return self.stack.pop()

    def _items(self) -> list[Any]:
        """Pops everything that was pushed on the stack since the last mark."""
        items = []
        while (value := self.stack.pop()) is not _MARK:
            items.append(value)
        return items[::-1]

    def _pop(self, _):
        self.stack.pop()

    def _pop_mark(self, _):
        self._items()

    def _dup(self, _):
        self.stack.append(self.stack[-1])

    def _put(self, index):
        self.memo[index] = self.stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _):
        self.memo[len(self.memo)] = self.stack[-1]

    def _get(self, index):
        self.stack.append(self.memo[index])

    _binget = _long_binget = _get

    def _tuple(self, _):
        self.stack.append(tuple(self._items()))

    def _last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _tuple1(self, _):
        self.stack.append(tuple(self._last(1)))

    def _tuple2(self, _):
        self.stack.append(tuple(self._last(2)))

    def _tuple3(self, _):
        self.stack.append(tuple(self._last(3)))

    def _list(self, _):
        self.stack.append(self._items())

    def _append(self, _):
        self._extend([self.stack.pop()])

    def _appends(self, _):
        self._extend(self._items())

    def _extend(self, items: list[Any]):
        if type(self.stack[-1]) is list:
            self.stack[-1].extend(items)

    def _dict(self, _):
        items = self._items()
        self.stack.append({})
        self._update(items)

    def _setitem(self, _):
        self._update(self._last(2))

    def _setitems(self, _):
        self._update(self._items())

    def _update(self, items: list[Any]):
        if type(self.stack[-1]) is dict:
            pairs = zip(items[::2], items[1::2])
            # Other keys, such as deeply nested tuples, are dropped, because hashing them is not safe.
            self.stack[-1].update((key, value) for key, value in pairs if type(key) in (str, int))

    def _stack_global(self, _):
        module, name = self._last(2)
        self.stack.append(_Global(f"{module} {name}") if type(module) is type(name) is str else _PLACEHOLDER)

    def _binpersid(self, _):
        match self.stack.pop():
            case ("storage", _Global(name), str(key), _, int(length), *rest) if rest in ([], [None]):
                module, _, kind = name.partition(" ")
                if module in ("torch", "torch.cuda") and kind in _DTYPES and length >= 0:
                    storage = _Storage(key, _DTYPES[kind], length)
                    if self.storages.setdefault(key, storage) != storage:
                        raise ValueError(_DAMAGED)  # a storage that is declared twice, in two ways
                    self.stack.append(storage)
                    return
        self.stack.append(_PLACEHOLDER)

    def _reduce(self, _):
        function, arguments = self._last(2)
        made = _PLACEHOLDER
        match (function, arguments):
            case (_Global("collections OrderedDict"), ()):
                made = {}
            case (
                _Global("torch._utils _rebuild_tensor_v2" | "torch._utils _rebuild_tensor"),
                (_Storage() as storage, int(offset), tuple(size), tuple(stride), *_),
            ):
                made = _Tensor(storage, offset, size, stride)
            case (_Global("torch._utils _rebuild_parameter"), (_Tensor() as tensor, *_)):
                made = tensor
        self.stack.append(made)

    def _newobj(self, _):
        self._last(2)
        self.stack.append(_PLACEHOLDER)

    def _newobj_ex(self, _):
        self._last(3)
        self.stack.append(_PLACEHOLDER)

    def _obj(self, _):
        self._items()
        self.stack.append(_PLACEHOLDER)

    def _inst(self, _):
        self._obj(_)

    def _build(self, _):
        """Drops the state of an object, such as the versions of modules that `state_dict()` records."""
        self.stack.pop()

    def _additems(self, _):
        self._items()


# Opcodes that push something on the stack that only depends on their argument.
_CONSTANTS: dict[str, Callable[[Any], Any]] = {
    "MARK": lambda _: _MARK,
    "GLOBAL": _Global,
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    **dict.fromkeys(("EMPTY_SET", "PERSID", "EXT1", "EXT2", "EXT4"), lambda _: _PLACEHOLDER),
    **dict.fromkeys(
        (
            *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
            *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
            *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        ),
        lambda argument: argument,
    ),
}


class _Bounded:
    """A file that never reads more bytes than it has, because a pickle may declare a text of many gigabytes."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size = file, size
        self.tell, self.readline, self.seek = file.tell, file.readline, file.seek

    def read(self, count: int) -> bytes:
        return self.file.read(max(0, min(count, self.size - self.file.tell())))


def _read_zip(file: BinaryIO, size: int) -> tuple[Any, Callable[[_Storage], bytes]]:
    """Returns the object in a file from PyTorch 1.6 or later, and a function that reads its storages."""
    archive = zipfile.ZipFile(file)
    for record in archive.infolist():
        if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
            raise ValueError(f"its record {record.filename} is compressed, which torch.save never does")
    declared = sum(record.file_size for record in archive.infolist())
    if declared > size:
        raise ValueError(f"its records declare {declared:,} bytes, but the file has {size:,}")
    pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError("it is a zip archive, but not one that torch.save wrote (it has no data.pkl)")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise ValueError("it was written on a big-endian machine")

    def read(storage: _Storage) -> bytes:
        return archive.read(f"{folder}data/{storage.key}")

    return _Unpickler().load(BytesIO(archive.read(pickles[0]))), read


def _read_legacy(file: BinaryIO, size: int) -> tuple[Any, Callable[[_Storage], bytes]]:
    """Returns the object in a file from PyTorch before 1.6, and a function that reads its storages."""
    bounded: Any = _Bounded(file, size)
    for expected in (_LEGACY_MAGIC, 1001):
        if _Unpickler().load(bounded) != expected:
            raise ValueError("it does not begin like a file of torch.save")
    system = _Unpickler().load(bounded)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("it was written on a big-endian machine, or is damaged")
    unpickler = _Unpickler()
    content, keys = unpickler.load(bounded), _Unpickler().load(bounded)
    starts, position = {}, bounded.tell()
    for key in keys if isinstance(keys, list) else ():
        storage = unpickler.storages.get(key) if isinstance(key, str) else None
        bounded.seek(position)
        if storage is None or bounded.read(8) != struct.pack("<q", storage.length):
            raise ValueError("its list of storages is damaged")
        starts[key] = position + 8
        position += 8 + storage.length * storage.dtype.itemsize
        if position > size:
            raise ValueError(f"it is incomplete: storage {key} ends at byte {position:,} of {size:,}")

    def read(storage: _Storage) -> bytes:
        if storage.key not in starts:
            raise ValueError(f"storage {storage.key} is missing")
        bounded.seek(starts[storage.key])
        return bounded.read(storage.length * storage.dtype.itemsize)

    return content, read


def _find_state_dict(content: Any) -> dict[str, _Tensor]:
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not state or not isinstance(state, dict):
        raise ValueError("it has no `state_dict` of tensors")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise ValueError(f"it has no `state_dict` of tensors: {name!r} is not a tensor")
        value.check(name)
    return state


def _read_tensors(state: dict[str, _Tensor], size: int, read: Callable[[_Storage], bytes]) -> dict[str, torch.Tensor]:
    if len(state) > _MOST_TENSORS:
        raise ValueError(f"it has {len(state):,} tensors, more than any model that can be converted")
    declared = sum(tensor.nbytes for tensor in state.values())
    if declared > size:
        raise ValueError(f"its tensors declare {declared:,} bytes, but the file has {size:,}")
    contents: dict[str, torch.Tensor] = {}
    tensors = {}
    for name, tensor in state.items():
        storage = tensor.storage
        if storage.key not in contents:
            data = read(storage)
            if len(data) != storage.length * storage.dtype.itemsize:
                raise ValueError(
                    f"the storage of {name} has {len(data):,} bytes instead of {storage.length:,} numbers"
                )
            contents[storage.key] = torch.frombuffer(bytearray(data), dtype=storage.dtype)
        tensors[name] = contents[storage.key].as_strided(tensor.size, tensor.stride, tensor.offset)
    return tensors


def _kind_of(start: bytes) -> str | None:
    """Returns a description of a file, judging by its beginning, if it was certainly not written by torch.save."""
    if not start:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"
    if start[8:9] == b"{":
        return "it is a safetensors file, but checkpoints of the reference implementation are .pth files"
    if start.startswith(b"PK\x03\x04"):
        return "it is incomplete or damaged: a zip archive without its end"
    if all(byte >= 32 or byte in b"\t\n\r" for byte in start):
        text = " ".join(start[:40].decode("utf-8", "replace").split())
        return f"it is a text file that begins with {text!r}"
    return None


def read_state_dict(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """
    Returns the tensors of the `state_dict` in a file from `torch.save`, or of the file itself if it is a `state_dict`,
    on the CPU. Code in the file is not run. Memory is limited to a few times the size of the file, and 300 MB for the
    containers in its pickles.

    Raises:
        OSError: the file does not exist, or cannot be read.
        ValueError: the file is damaged, or does not contain tensors.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory, not a checkpoint file.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    with open(path, "rb") as file:
        try:
            size = os.fstat(file.fileno()).st_size
            is_zip = zipfile.is_zipfile(file)
            file.seek(0)
            if not is_zip and (kind := _kind_of(file.read(64))):
                raise ValueError(kind)
            file.seek(0)
            content, read = _read_zip(file, size) if is_zip else _read_legacy(file, size)
            return _read_tensors(_find_state_dict(content), size, read)
        # Errors that `zipfile` and the opcodes of a damaged pickle raise.
        except (
            *(ValueError, IndexError, KeyError, OverflowError, OSError, EOFError, struct.error),
            *(zipfile.BadZipFile, RuntimeError),
        ) as error:
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # an error of the disk
                raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
            reason = " ".join(str(error).split()) or type(error).__name__
            if not isinstance(error, ValueError):
                reason = f"it is damaged ({reason})"
            raise ValueError(
                f"{path} cannot be read as a checkpoint of the reference implementation: {reason}."
            ) from error
