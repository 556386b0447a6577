"""Names of files as text that any table, page, console and file system can hold."""

from __future__ import annotations

import hashlib
import os
import re
import sys

# What reads as an escape. A backslash before it is written as "\x5c".
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4}))")
_AMBIGUOUS = re.compile(r"\\(?=x[0-9a-f]{2}|u[0-9a-f]{4})")
_NOT_STORABLE = re.compile("[\0\ud800-\udfff]")
# Control characters, line separators, and characters that turn the direction of the text around them.
_NOT_SHOWN = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# What Windows forbids in names of files, control characters, surrogates, and what reads as one of our own escapes.
_NOT_IN_FILES = re.compile('[<>:"/\\\\|?*\0-\x1f\x7f-\x9f\ud800-\udfff]|%(?=[0-9A-F]{2})')
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]) *(\..*)?", re.IGNORECASE)
# Bytes of a file name. File systems allow 255; encrypted ones 143.
_LONGEST_NAME = 140


def escape_name(name: str) -> str:
    r"""Return a name as text that UTF-8 can encode; :func:`unescape_name` returns the name.

    Bytes that are not valid in the file system's encoding become ``\xe9``, other lone surrogates ``\ud800``, and a zero
    byte ``\x00``. A backslash that would read as the start of such an escape becomes ``\x5c``. All other names stay as
    they are.

    Parameters
    ----------
    name : str
        A path or a name, as Python returns it.

    Returns
    -------
    str
    """
    return _NOT_STORABLE.sub(_escape, _AMBIGUOUS.sub(r"\\x5c", name))


def unescape_name(text: str) -> str:
    """Return the name that :func:`escape_name` or :func:`shown_name` was given.

    Parameters
    ----------
    text : str
        The escaped name.

    Returns
    -------
    str
    """
    if not _ESCAPE.search(text):
        return text
    name = _ESCAPE.sub(_unescape, text)
    try:  # bytes that another locale could not decode may be valid in this one
        return os.fsdecode(os.fsencode(name))
    except UnicodeError:
        return name


def shown_name(name: str) -> str:
    r"""Return a name on one line, for messages, pages and figures.

    Escaped as by :func:`escape_name`; so are control characters, such as a line break (``\x0a``), and characters that
    change the direction of the text.

    Parameters
    ----------
    name : str
        A path or a name.

    Returns
    -------
    str
    """
    return _NOT_SHOWN.sub(_escape, _AMBIGUOUS.sub(r"\\x5c", name))


def shown_text(text: str) -> str:
    """Return a message as it can be shown: as :func:`shown_name`, but line breaks and backslashes stay."""
    return "\n".join(_NOT_SHOWN.sub(_escape, line) for line in text.split("\n"))


def file_name(text: str, suffix: str = "") -> str:
    """Return a name that a new file can have on any system.

    Characters that a file system or Windows forbids become ``%`` and two hexadecimal digits per byte, as in addresses
    of web pages. So does the first letter of a name that Windows reserves, such as ``CON``. Names of more than 140
    bytes are cut, and get the first twelve digits of the SHA-256 of the whole name at the end.

    Parameters
    ----------
    text : str
        The name, without its ending.
    suffix : str, default=""
        Its ending, such as ``".png"``.

    Returns
    -------
    str
    """
    name = _NOT_IN_FILES.sub(lambda match: _percent(match[0]), text)
    try:
        name.encode(sys.getfilesystemencoding())
    except UnicodeEncodeError:  # a locale without these letters
        name = "".join(c if c.isascii() else _percent(c) for c in name)
    if not suffix and name[-1:] in {".", " "}:  # Windows drops these
        name = name[:-1] + _percent(name[-1])
    if _RESERVED.fullmatch(name):
        name = _percent(name[0]) + name[1:]
    if len(os.fsencode(name + suffix)) > _LONGEST_NAME:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        room = _LONGEST_NAME - len(os.fsencode(suffix)) - len(digest) - 1
        name = f"{os.fsencode(name)[:room].decode(sys.getfilesystemencoding(), 'ignore')}~{digest}"
    return name + suffix


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def _unescape(match: re.Match[str]) -> str:
    if match[2]:
        return chr(int(match[2], 16))
    code = int(match[1], 16)
    return chr(code if code < 0x80 else 0xDC00 + code)


def _percent(text: str) -> str:
    if "\udc80" <= text <= "\udcff":
        return f"%{ord(text) - 0xDC00:02X}"
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))
