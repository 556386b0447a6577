"""`with_entries` and `read_container`: the data that an exported ONNX file carries in addition to its graph.

An exported file is an ordinary ONNX file. Its last metadata entries are those of this package::

    model | skpatchcore: JSON | skpatchcore.golden: npz | skpatchcore.region: npz (optional) | skpatchcore.sha256

The digest at the end covers all bytes before its own entry. In protobuf, the concatenation of a message and a further
field is a message with this field. Therefore entries are appended to the bytes of the model, and the package onnx is
needed neither for writing nor for reading them. Reading executes no code of the file.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from skpatchcore.deployment.errors import ExportError, ModelFileError

#: Version of the format of the entries; increased when their content changes.
FORMAT = 1
MANIFEST, GOLDEN, REGION, DIGEST = (
    "skpatchcore",
    "skpatchcore.golden",
    "skpatchcore.region",
    "skpatchcore.sha256",
)
# Numbers of fields of ONNX's ModelProto.
_PRODUCER_NAME, _GRAPH, _METADATA = 2, 7, 14
# Wire types of protobuf: a number of variable length, 8 bytes, bytes with their length, and 4 bytes.
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
# The first byte of an ONNX file: field 1 (ir_version) as a varint.
_FIRST_BYTE = b"\x08"
_N_DIGITS = 64
# Maximum size in bytes of the arrays of an entry. A small zip file can expand to any size.
_MAX_BYTES = 512 * 2**20


class _DamagedError(ValueError):
    """Raised if bytes are not a complete protobuf message."""


@dataclass(frozen=True)
class Container:
    """Content of an exported ONNX file.

    Attributes
    ----------
    name : str
        Path of the file, for errors.
    content : bytes
        The file.
    manifest : dict
        Settings, thresholds and calibration scores of the detector.
    golden_text : str
        Entry of the golden images. It is expanded only if `golden` is used.
    region_text : str or None
        Entry of the region of interest; None if all pixels are inspected.
    """

    name: str
    content: bytes
    manifest: dict[str, Any]
    golden_text: str
    region_text: str | None

    @property
    def digest(self) -> str:
        """SHA-256 of the file without its last entry, as 64 hexadecimal digits."""
        return self.content[-_N_DIGITS:].decode("ascii")

    @cached_property
    def golden(self) -> dict[str, np.ndarray]:
        """Images and the results of each stage for these images.

        Raises
        ------
        ModelFileError
            If the entry is not an npz file without pickles, or expands to more than 512 MiB.
        """
        return _arrays_of(self.golden_text, self.name)

    @cached_property
    def region(self) -> dict[str, np.ndarray] | None:
        """The region of interest; None if all pixels are inspected. Raises ModelFileError as `golden` does."""
        return None if self.region_text is None else _arrays_of(self.region_text, self.name)


def with_entries(model: bytes, entries: Mapping[str, str]) -> bytes:
    """Append metadata entries and the digest to a serialised ONNX model.

    Parameters
    ----------
    model : bytes
        A serialised ModelProto.
    entries : mapping of str to str
        Keys and values of the entries, in the order in which they are appended. The digest is appended last.

    Returns
    -------
    bytes
        A serialised ModelProto with the entries.

    Raises
    ------
    ValueError
        If `entries` contains the key of the digest.

    Examples
    --------
    >>> from skpatchcore.deployment.container import with_entries
    >>> len(with_entries(b"", {"skpatchcore": "{}"}))
    107
    """
    if DIGEST in entries:
        raise ValueError(f"entries contains {DIGEST!r}, which is computed.")
    content = b"".join([model, *(_entry(key, value.encode()) for key, value in entries.items())])
    return content + _entry(DIGEST, hashlib.sha256(content).hexdigest().encode())


def as_npz_text(arrays: Mapping[str, np.ndarray]) -> str:
    """Return arrays as the text of an entry: a compressed npz file in base64.

    Raises
    ------
    ExportError
        If the arrays take more than 512 MiB: :func:`read_container` would refuse the file.
    """
    n_bytes = sum(array.nbytes + 1024 for array in arrays.values())  # 1024 bytes for a header
    if n_bytes > _MAX_BYTES:
        raise ExportError(
            f"the golden images take {n_bytes / 2**20:.0f} MiB, at most {_MAX_BYTES // 2**20} MiB are possible. "
            "Pass fewer or smaller golden images."
        )
    stream = BytesIO()
    np.savez_compressed(stream, **dict(arrays))  # type: ignore[arg-type]
    return base64.b64encode(stream.getvalue()).decode("ascii")


def read_container(path: str | os.PathLike[str]) -> Container:
    """Read an exported ONNX file, and verify its digest.

    Parameters
    ----------
    path : path
        Path of the file.

    Returns
    -------
    Container

    Raises
    ------
    OSError
        If the file does not exist or cannot be read.
    ModelFileError
        If the file is damaged or truncated, was not written by ``skpatchcore.export``, or has a later format.
    """
    name, content = repr(os.fspath(path)), Path(path).read_bytes()
    tail = _entry(DIGEST, b"0" * _N_DIGITS)[:-_N_DIGITS]
    n_signed = len(content) - len(tail) - _N_DIGITS
    if n_signed < 0 or content[n_signed:-_N_DIGITS] != tail:
        raise ModelFileError(f"{name} {_why_unsigned(content)}")
    if content[-_N_DIGITS:] != hashlib.sha256(memoryview(content)[:n_signed]).hexdigest().encode():
        raise ModelFileError(f"{name} is damaged: its content does not match its digest. Export the detector again.")
    try:
        entries = dict(_entries_of(content))
        manifest = json.loads(entries[MANIFEST])
        of_format, written_by = int(manifest["format"]), str(manifest["skpatchcore"])
        if of_format > FORMAT:
            raise ModelFileError(
                f"{name} has format {of_format}, written by skpatchcore {written_by}, but this version reads files up "
                f"to format {FORMAT}: update skpatchcore."
            )
        golden = entries[GOLDEN]
    except ModelFileError:
        raise
    except Exception as error:  # the digest is correct, but `export` did not write these entries
        raise _foreign(name, error) from error
    return Container(os.fspath(path), content, manifest, golden, entries.get(REGION))


def is_exported(content: bytes) -> bool:
    """Return whether the bytes of a file end as the files of ``skpatchcore.export`` do."""
    return DIGEST.encode() in content[-len(DIGEST) - _N_DIGITS - 8 :]


def _why_unsigned(content: bytes) -> str:
    """Return why a file does not end with a digest, as the second half of a sentence."""
    foreign = "is an ONNX file that skpatchcore.export did not write: export a detector with skpatchcore.export."
    if content[:1] != _FIRST_BYTE:
        return "is not an ONNX file. Pass a file that skpatchcore.export wrote."
    try:
        fields = {number: value for number, value in _fields_of(content) if number in (_PRODUCER_NAME, _GRAPH)}
        is_ours = bytes(fields.get(_PRODUCER_NAME, b"")) == MANIFEST.encode() or MANIFEST in dict(_entries_of(content))
    except _DamagedError:
        return "is truncated or damaged: export the detector again, or copy the file again."
    if is_ours:
        return "is truncated or damaged: the digest at its end is missing. Export the detector again."
    return foreign if _GRAPH in fields else "is not an ONNX file. Pass a file that skpatchcore.export wrote."


def _entries_of(content: bytes) -> Iterator[tuple[str, str]]:
    """Yield the key and the value of each metadata entry of a serialised ModelProto."""
    for number, value in _fields_of(content):
        if number == _METADATA:
            parts = dict(_fields_of(value))
            try:
                yield bytes(parts.get(1, b"")).decode(), bytes(parts.get(2, b"")).decode()
            except UnicodeDecodeError as error:
                raise _DamagedError("a metadata entry is not UTF-8.") from error


def _fields_of(message: bytes | memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the number and the bytes of each field of a protobuf message; without bytes for numbers.

    Raises
    ------
    _DamagedError
        If the message ends within a field, or contains a field of an unknown type.
    """
    view, at = memoryview(message), 0
    while at < len(view):  # ends: each field takes at least one byte
        tag, at = _varint(view, at)
        kind, start = tag & 7, at
        if kind == _VARINT:
            _, at = _varint(view, at)
            start = at
        elif kind == _BYTES:
            length, start = _varint(view, at)
            at = start + length
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise _DamagedError(f"unknown type {kind} of a field.")
        if at > len(view):
            raise _DamagedError("the message ends within a field.")
        yield tag >> 3, view[start:at]


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """Return the number of variable length at a position, and the position after it."""
    number = 0
    for i, byte in enumerate(view[at : at + 10]):  # at most 10 bytes encode 64 bits
        number |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return number, at + i + 1
    raise _DamagedError("a number is not complete.")


def _entry(key: str, value: bytes) -> bytes:
    """Return a metadata entry as a field of a ModelProto."""
    pair = _field(1, key.encode()) + _field(2, value)
    return _field(_METADATA, pair)


def _field(number: int, value: bytes) -> bytes:
    """Return a protobuf field that holds bytes."""
    return _as_varint(number << 3 | _BYTES) + _as_varint(len(value)) + value


def _as_varint(number: int) -> bytes:
    """Return a number of at least 0 in protobuf's encoding of variable length."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def _arrays_of(text: str, path: str) -> dict[str, np.ndarray]:
    """Return the arrays of an entry that :func:`as_npz_text` wrote."""
    try:
        stream = BytesIO(base64.b64decode(text, validate=True))
        with zipfile.ZipFile(stream) as archive:  # no more than the stated size is expanded
            n_bytes = sum(member.file_size for member in archive.infolist())
        if n_bytes > _MAX_BYTES:
            raise ValueError(f"its arrays take {n_bytes / 2**20:.0f} MiB, at most {_MAX_BYTES // 2**20} MiB are read.")
        with np.load(stream, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # bytes that `export` did not write can raise any error
        raise _foreign(repr(path), error) from error


def _foreign(name: str, error: Exception) -> ModelFileError:
    """Return the error for a file whose digest is correct, but whose content `export` did not write."""
    return ModelFileError(f"{name} was not written by skpatchcore.export: {type(error).__name__}: {error}")
