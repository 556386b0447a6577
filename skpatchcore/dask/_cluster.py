"""client_of and check_workers: find the Dask client, and compare the software of the workers before a fit."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from inspect import signature
from typing import Any

import numpy as np
import PIL
import sklearn
import torch
from distributed import Client, default_client
from distributed.comm import CommClosedError

from skpatchcore._utils.version import __version__
from skpatchcore._utils.warning import warn_user


@dataclass(frozen=True)
class Environment:
    """Software and hardware of a process that can change the results of a fit.

    Attributes
    ----------
    versions : dict of str to str
        Versions of packages. They must be the same in all processes.
    digest : str or None
        Digest of the network's weights. It must be the same in all processes. None if there is no network.
    n_threads : int
        Number of threads of torch. Features of the same image can differ in the last bit for other numbers of threads.
    capability : str
        Instruction set that torch uses on the CPU. The same holds for other instruction sets.
    """

    versions: Mapping[str, str]
    digest: str | None
    n_threads: int
    capability: str


@dataclass(frozen=True)
class Worker:
    """A worker process of the cluster: its number of threads, and its memory limit in bytes or None."""

    n_threads: int
    memory_limit: int | None


def client_of(client: Client | None) -> Client:
    """Return the given client, or the current client of this process.

    Raises
    ------
    ValueError
        If there is no client, or if it is closed or asynchronous.
    """
    if client is None:
        try:
            client = default_client()
        except ValueError:
            raise ValueError(
                "there is no Dask client: create one with distributed.Client(...), or pass it as client=. A client is "
                "not pickled, so that it is not known in other processes."
            ) from None
    if client.status in ("closing", "closed"):
        raise ValueError("the Dask client is closed: create a new one, and pass it with set_params(client=...).")
    if client.asynchronous:
        raise ValueError("the Dask client is asynchronous: pass a client that was created with asynchronous=False.")
    return client


def scheduler_workers(client: Client) -> dict[str, Any]:
    """Return what the scheduler knows of each worker, by the worker's address."""
    # Some versions of Dask return a few workers only, unless they are asked for all.
    all_of_them = {"n_workers": -1} if "n_workers" in signature(client.scheduler_info).parameters else {}
    found: dict[str, Any] = client.scheduler_info(**all_of_them)["workers"]
    return found


def workers_of(client: Client) -> dict[str, Worker]:
    """Return the workers of the cluster by address.

    Raises
    ------
    RuntimeError
        If the cluster has no worker.
    """
    found = scheduler_workers(client)
    if not found:
        raise RuntimeError("the Dask cluster has no worker: start workers, e.g. with cluster.scale(2), and fit again.")
    return {address: Worker(info["nthreads"], info["memory_limit"] or None) for address, info in found.items()}


def environment_of(extractor: Any) -> Environment:
    """Return the environment of this process for a fitted extractor, or for None."""
    versions = {
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "skpatchcore": __version__,
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "Pillow": PIL.__version__,
    }
    digests = getattr(extractor, "network_digests", None)
    digest = None if digests is None else digests()[0]
    return Environment(versions, digest, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability())


async def _environment_of(extractor: Any) -> Environment:
    """Return the environment of a worker, without blocking the worker's event loop."""
    return await asyncio.to_thread(environment_of, extractor)


def check_workers(client: Client, extractor: Any) -> Environment:
    """Compare the environments of all workers with each other and with this process, and return that of this process.

    Raises
    ------
    RuntimeError
        If versions of packages or weights of the network differ, or if a worker cannot load the network.

    Warns
    -----
    UserWarning
        If the workers differ in the number of threads of torch or in the instruction set of the CPU.
    """
    own = environment_of(extractor)
    found = client.run(_environment_of, extractor, on_error="return")
    environments: dict[str, Environment] = {}
    for address, result in found.items():
        if isinstance(result, CommClosedError):  # the worker is gone, so it takes no part
            continue
        if isinstance(result, BaseException):
            raise RuntimeError(f"the Dask worker {address} cannot run a fit: {result}") from result
        environments[address] = result
    for address, environment in environments.items():
        if problem := difference(own, environment):
            raise RuntimeError(f"the Dask worker {address} {problem}")
    for name, text in (("n_threads", "number of torch threads"), ("capability", "instruction set of the CPU")):
        values = {address: getattr(environment, name) for address, environment in environments.items()}
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{address}: {value}" for address, value in values.items())
            warn_user(
                f"the Dask workers differ in the {text} ({listed}). Patch features of the same image can then differ "
                "in the last bit between workers, and the memory bank can differ from that of another fit."
            )
    return own


def difference(expected: Environment, found: Environment) -> str | None:
    """Return the second half of an error message if a worker must not take part in a fit; otherwise None."""
    for name, own in expected.versions.items():
        other = found.versions.get(name, "none")
        if other != own:
            return (
                f"has {name} {other}, and the client has {own}: install the same versions on all machines, "
                "because other versions can give other results."
            )
    if found.digest != expected.digest:
        return (
            f"has other weights of the network than the client: digest {found.digest}, expected {expected.digest}. "
            "Use the same file of weights on all machines."
        )
    return None
