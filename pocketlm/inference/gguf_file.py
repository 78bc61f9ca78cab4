"""The GGUF container: the keys of a file and where its tensors lie, without their numbers.

llama.cpp stops the whole process on some broken files, and the `gguf` package's reader takes 10 s
for the header of a 128k vocabulary (this one 0.5 s).
"""

import math
import mmap
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAGIC = b"GGUF"
STRING, ARRAY = 8, 9
NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}  # GGUF type -> struct's
PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
REQUIRED = object()  # no default: the key must be there


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """All of a model but its numbers. `tensors`: name -> shape, outputs first; `places`: name ->
    ggml's type and the byte.

    path: the file, the first of them where the model is split. parts: name -> its file, where that
    is another one. A key's `{arch}` stands for the architecture. Each reading of a key is a
    ValueError where it is not of that type.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, tuple[int, ...]]
    places: dict[str, tuple[int, int]]
    parts: dict[str, Path] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Any:
        """The value of a key, of whatever type; a missing key is a ValueError."""
        return self._value(key, REQUIRED)

    def integer(self, key: str, default: Any = REQUIRED, *, least: int = 1) -> int:
        """A whole number of at least `least`."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self._wrong(key, value, f"a whole number of at least {least}")
        return value

    def positive(self, key: str, default: Any = REQUIRED) -> float:
        """A number above 0."""
        value = self._value(key, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value < math.inf
        ):
            raise self._wrong(key, value, "a number above 0")
        return float(value)

    def flag(self, key: str, default: Any = REQUIRED) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: Any = REQUIRED) -> str:
        """A text; or None, where that is the default."""
        value = self._value(key, default)
        if not isinstance(value, str) and value is not default:
            raise self._wrong(key, value, "a text")
        return value

    def array(self, key: str, kinds: type | tuple[type, ...], default: Any = REQUIRED) -> list[Any]:
        """An array of values of one of these types."""
        value = self._value(key, default)
        if not isinstance(value, list) or not all(isinstance(item, kinds) for item in value):
            raise self._wrong(key, value, "an array of the right type")
        return value

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self.parts.get(name, self.path)

    def _value(self, key: str, default: Any) -> Any:
        key = self._spelled(key)
        if key in self.metadata:
            return self.metadata[key]
        if default is REQUIRED:
            raise ValueError(
                f"{self.path}: key {key} is missing; the file is not a language model of ours"
            )
        return default

    def _spelled(self, key: str) -> str:
        return key.replace("{arch}", str(self.metadata.get("general.architecture")))

    def _wrong(self, key: str, value: Any, wanted: str) -> ValueError:
        text = repr(value)
        text = text if len(text) < 60 else f"{text[:57]}..."
        return ValueError(
            f"{self.path}: key {self._spelled(key)} is {text}, not {wanted}; fetch or write the "
            "file again"
        )


def read_whole(path: Path) -> GgufHeader:
    """The header of a .gguf file, or of all parts of a split one, whichever of them is given."""
    header = _read(path)
    return _joined(header) if header.integer("split.count", 1, least=0) > 1 else header


def part_files(path: Path) -> list[Path]:
    """All files of a model by the name of one: each part of a split one, else the file itself."""
    named = PART.fullmatch(path.name)
    if not named:
        return [path]
    return [_part(path, named, number) for number in range(int(named["count"]))]


def _read(path: Path) -> GgufHeader:
    """The header of this one file."""
    if not path.is_file():
        raise FileNotFoundError(f"no .gguf file at {path}")
    with open(path, "rb") as file:
        if file.read(4) != MAGIC:
            raise ValueError(f"{path} is not a GGUF file: it does not start with GGUF")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _parse(path, content)
            except (struct.error, UnicodeDecodeError, OverflowError, MemoryError):
                raise ValueError(
                    f"{path}: the GGUF header is truncated or damaged; write or fetch the file "
                    "again"
                ) from None


def _joined(header: GgufHeader) -> GgufHeader:
    """The header of all parts, of which the first holds what is said of the model."""
    count, named = header.integer("split.count"), PART.fullmatch(header.path.name)
    if not named or int(named["count"]) != count:
        raise ValueError(
            f"{header.path}: one of {count} parts of a model, whose names must end in "
            f"-00001-of-{count:05}.gguf and so on"
        )
    files = [_part(header.path, named, number) for number in range(count)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(
            f"{header.path}: of the {count} parts of this model {', '.join(missing)} is not there"
        )
    parts = [header if file == header.path else _read(file) for file in files]
    tensors: dict[str, tuple[int, ...]] = {}
    places: dict[str, tuple[int, int]] = {}
    homes: dict[str, Path] = {}
    for number, part in enumerate(parts):
        if (part.integer("split.no", least=0), part.integer("split.count")) != (number, count):
            raise ValueError(
                f"{part.path}: says that it is part {part['split.no'] + 1} of "
                f"{part['split.count']}, not {number + 1}"
            )
        if twice := tensors.keys() & part.tensors.keys():
            raise ValueError(f"{part.path}: the tensor {min(twice)} is in an earlier part too")
        tensors |= part.tensors
        places |= part.places
        homes |= dict.fromkeys(part.tensors, part.path)
    whole = parts[0].integer("split.tensors.count", least=0)
    if len(tensors) != whole:
        raise ValueError(
            f"{parts[0].path}: {len(tensors)} tensors are in its {count} parts, {whole} should be"
        )
    return GgufHeader(
        path=files[0], metadata=parts[0].metadata, tensors=tensors, places=places, parts=homes
    )


def _part(path: Path, named: re.Match[str], number: int) -> Path:
    return path.with_name(f"{named['stem']}-{number + 1:05}-of-{named['count']}.gguf")


class _Reader:
    """Values one after the other; reading past the end is a struct.error."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.at = content, 4

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.content, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        size = self.number("Q")
        text = self.content[self.at : self.at + size]
        if len(text) != size:
            raise struct.error("a string beyond the end")
        self.at += size
        return text.decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self.array(self.number("I"), self.number("Q"))
        if kind not in NUMBERS:
            raise struct.error(f"type {kind}")
        return self.number(NUMBERS[kind])

    def array(self, kind: int, size: int) -> list[Any]:
        if size > len(self.content) or kind == ARRAY:
            raise struct.error("an array beyond the end, or of arrays")
        if kind not in NUMBERS:
            return [self.value(kind) for _ in range(size)]
        layout = f"<{size}{NUMBERS[kind]}"
        values = struct.unpack_from(layout, self.content, self.at)
        self.at += struct.calcsize(layout)
        return list(values)

    def shape(self) -> tuple[int, ...]:
        sizes = self.array(10, self.number("I"))
        if not 1 <= len(sizes) <= 4 or not all(sizes):
            raise struct.error("no shape of a tensor")
        return tuple(reversed(sizes))


def _parse(path: Path, content: mmap.mmap) -> GgufHeader:
    reader = _Reader(content)
    version = reader.number("I")
    if version not in (2, 3):
        raise ValueError(f"{path}: GGUF version {version}; known are 2 and 3, little-endian")
    num_tensors, num_keys = reader.number("Q"), reader.number("Q")
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = reader.string()
        if key in metadata:
            raise ValueError(f"{path}: key {key} is there twice; write or fetch the file again")
        metadata[key] = reader.value(reader.number("I"))
    tensors: dict[str, tuple[int, ...]] = {}
    places: dict[str, tuple[int, int]] = {}
    for _ in range(num_tensors):
        name = reader.string()
        if name in tensors:
            raise ValueError(
                f"{path}: the tensor {name} is there twice; write or fetch the file again"
            )
        tensors[name] = reader.shape()
        places[name] = reader.number("I"), reader.number("Q")
    header = GgufHeader(path=path, metadata=metadata, tensors=tensors, places=places)
    alignment = header.integer("general.alignment", 32)
    start = -(-reader.at // alignment) * alignment
    for name, (kind, offset) in places.items():
        places[name] = kind, start + offset
    return header
