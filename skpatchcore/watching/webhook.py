"""Webhook: post results to a URL. Passwords in the URL never appear in messages."""

from __future__ import annotations

import base64
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import skpatchcore
from skpatchcore.watching.delivery import DeliveryFailed, DeliveryRefused
from skpatchcore.watching.journal import Message

# Seconds without an answer after which a request fails.
_TIMEOUT = 10.0
# Answers below 500 after which a request is tried again: timeout, too early, too many requests.
_AGAIN = (408, 425, 429)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET without the result."""

    def redirect_request(self, *_: Any) -> None:
        return None


def shown_url(url: str) -> str:
    """Return scheme, host and port of a URL. User, password, path and query may be secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"


def sender_of(url: str, journal_id: str) -> Callable[[Message], None]:
    """Return a function that posts a message to a URL.

    Parameters
    ----------
    url : str
        The URL. A user and a password in it are sent as basic authentication.
    journal_id : str
        Identity of the journal. Together with the number of the row, it is the header ``Idempotency-Key``.

    Returns
    -------
    callable
        It raises DeliveryFailed if the server cannot be reached or answers with 5xx, 408, 425 or 429, and
        DeliveryRefused for other answers except 2xx.
    """
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    headers = {"Content-Type": "application/json", "User-Agent": f"skpatchcore/{skpatchcore.__version__}"}
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    address = urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
    opener = urllib.request.build_opener(_NoRedirect)

    def send(message: Message) -> None:
        own = {**headers, "Idempotency-Key": f"{journal_id}-{message.row}"}
        try:
            request = urllib.request.Request(address, message.body.strip(), own, method="POST")
            with opener.open(request, timeout=_TIMEOUT):
                return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code >= 500 or error.code in _AGAIN:
                raise DeliveryFailed(f"status {error.code}") from None
            raise DeliveryRefused(f"status {error.code}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise DeliveryFailed(_reason_of(error)) from None

    return send


def _reason_of(error: Exception) -> str:
    """Return the reason of a failure without texts that can contain the URL."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, OSError) and reason.strerror:
        return str(reason.strerror)
    return type(reason if isinstance(reason, Exception) else error).__name__
