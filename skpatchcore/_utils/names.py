"""Conversion of file names to text that tables, HTML pages, consoles and file systems accept."""

from __future__ import annotations

import hashlib
import os
import re
import sys

# The escapes that this module writes. In a name that already contains such text, its backslash becomes "\x5c".
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4}))")
_AMBIGUOUS = re.compile(r"\\(?=x[0-9a-f]{2}|u[0-9a-f]{4})")
_NOT_STORABLE = re.compile("[\0\ud800-\udfff]")
# Control characters, line separators, and characters that turn the direction of the text around them.
_NOT_SHOWN = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# Characters that Windows forbids in file names, control characters, surrogates, and "%" before two hexadecimal digits.
_NOT_IN_FILES = re.compile('[<>:"/\\\\|?*\0-\x1f\x7f-\x9f\ud800-\udfff]|%(?=[0-9A-F]{2})')
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]) *(\..*)?", re.IGNORECASE)
# Maximum length of a file name in bytes. File systems allow 255 bytes, encrypted file systems 143.
_LONGEST_NAME = 140


def escape_name(name: str) -> str:
    r"""Escape a name as text that UTF-8 can encode. :func:`unescape_name` reverses the escape.

    Bytes that are invalid in the file system's encoding become escapes such as ``\xe9``. Other lone surrogates become
    escapes such as ``\ud800``. A zero byte becomes ``\x00``. If the name already contains text that looks like such an
    escape, the backslash of this text becomes ``\x5c``. All other names stay unchanged.

    Parameters
    ----------
    name : str
        A path or a file name, as Python returns it.

    Returns
    -------
    str
        The escaped name.
    """
    return _NOT_STORABLE.sub(_escape, _AMBIGUOUS.sub(r"\\x5c", name))


def unescape_name(text: str) -> str:
    """Reverse :func:`escape_name` and :func:`shown_name`.

    Parameters
    ----------
    text : str
        The escaped name.

    Returns
    -------
    str
        The original name.
    """
    if not _ESCAPE.search(text):
        return text
    name = _ESCAPE.sub(_unescape, text)
    try:  # bytes that were invalid in another locale's encoding may be valid in the current encoding
        return os.fsdecode(os.fsencode(name))
    except UnicodeError:
        return name


def shown_name(name: str) -> str:
    r"""Escape a name as a single line of text, for messages, HTML pages and figures.

    The name is escaped as in :func:`escape_name`. In addition, control characters such as line breaks (``\x0a``) and
    characters that change the direction of the text are escaped.

    Parameters
    ----------
    name : str
        A path or a file name.

    Returns
    -------
    str
        The escaped name.
    """
    return _NOT_SHOWN.sub(_escape, _AMBIGUOUS.sub(r"\\x5c", name))


def shown_text(text: str) -> str:
    """Escape a message for display, as :func:`shown_name` does, but keep line breaks and backslashes."""
    return "\n".join(_NOT_SHOWN.sub(_escape, line) for line in text.split("\n"))


def file_name(text: str, suffix: str = "") -> str:
    """Return a file name that is valid on every operating system.

    Forbidden characters become ``%`` and two hexadecimal digits per byte, as in URLs. The first letter of a name that
    Windows reserves, such as ``CON``, is replaced in the same way. Names longer than 140 bytes are cut, and the first
    twelve digits of the SHA-256 of the complete name are appended. Different texts give different names.

    Parameters
    ----------
    text : str
        The name without its suffix.
    suffix : str, default=""
        The suffix, such as ``".png"``.

    Returns
    -------
    str
        The file name, including the suffix.
    """
    name = _NOT_IN_FILES.sub(lambda match: _percent(match[0]), text)
    try:
        name.encode(sys.getfilesystemencoding())
    except UnicodeEncodeError:  # the encoding of the file system lacks some characters
        name = "".join(c if c.isascii() else _percent(c) for c in name)
    if not suffix and name[-1:] in {".", " "}:  # Windows removes these characters from the end of a name
        name = name[:-1] + _percent(name[-1])
    if _RESERVED.fullmatch(name):
        name = _percent(name[0]) + name[1:]
    if len(os.fsencode(name + suffix)) > _LONGEST_NAME:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        room = _LONGEST_NAME - len(os.fsencode(suffix)) - len(digest) - 1
        name = f"{os.fsencode(name)[:room].decode(sys.getfilesystemencoding(), 'ignore')}~{digest}"
    return name + suffix


def _escape(match: re.Match[str]) -> str:
    r"""Return the escape of a character: ``\xNN`` for ASCII and undecodable bytes, otherwise ``\uNNNN``."""
    code = ord(match[0])
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def _unescape(match: re.Match[str]) -> str:
    """Return the character of an escape."""
    if match[2]:
        return chr(int(match[2], 16))
    code = int(match[1], 16)
    return chr(code if code < 0x80 else 0xDC00 + code)


def _percent(text: str) -> str:
    """Return a character as ``%`` and two hexadecimal digits per byte."""
    if "\udc80" <= text <= "\udcff":
        return f"%{ord(text) - 0xDC00:02X}"
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))
