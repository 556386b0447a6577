"""Program: run a program of the user for each result, without a shell."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

from skpatchcore.watching.delivery import DeliveryFailed, DeliveryStopped
from skpatchcore.watching.journal import Message

# Seconds between two looks at a running program, and seconds that it may go on when the process ends.
_STEP, _GRACE = 0.2, 5.0


def runner_of(
    command: Sequence[str], timeout: float, full: Callable[[str], str], is_stopped: Callable[[], bool]
) -> Callable[[Message], None]:
    """Return a function that runs a program for a message.

    Parameters
    ----------
    command : sequence of str
        The program and its first arguments. The path of the image is the last argument. The result is the standard
        input, as one line of JSON.
    timeout : float
        Seconds after which the program and the programs that it started are killed.
    full : callable
        Function that returns the path of a file of a message.
    is_stopped : callable
        Function that returns whether the process ends. The program is then killed after 5 seconds.

    Returns
    -------
    callable
        It raises DeliveryFailed if the program cannot be started, does not exit with 0, or takes too long.
    """

    def run(message: Message) -> None:
        try:
            process = subprocess.Popen(
                [*command, full(message.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise DeliveryFailed(getattr(error, "strerror", None) or type(error).__name__) from None
        end, content, is_ending = time.monotonic() + timeout, message.body, False
        while True:
            try:
                process.communicate(content or None, timeout=_STEP)
                break
            except subprocess.TimeoutExpired:
                content = b""  # was passed on already
            if is_stopped() and not is_ending:
                is_ending, end = True, min(end, time.monotonic() + _GRACE)
            if time.monotonic() >= end:
                _kill(process)
                if is_ending:
                    raise DeliveryStopped
                raise DeliveryFailed(f"it took more than {timeout:g} s, and was killed")
        if process.returncode:
            raise DeliveryFailed(f"exit code {process.returncode}")

    return run


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a program and the programs that it started."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.kill()
    if process.stdin is not None:
        process.stdin.close()
    process.wait()
