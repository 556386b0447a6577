"""`open_runner`: run the graph of an exported ONNX file with ONNX Runtime or with OpenVINO.

Both runners compute in float32. OpenVINO computes only the requested outputs. ONNX Runtime computes all outputs of the
graph, and copies the requested ones: its option ``only_execute_path_to_fetches`` had no effect in version 1.32.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any, Protocol

import numpy as np

from skpatchcore.deployment.errors import ModelFileError

#: Name of the input of an exported graph.
INPUT = "images"


class Runner(Protocol):
    """A graph that is loaded into a runtime. It may be used by several threads."""

    def run(self, images: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        """Return outputs of the graph.

        Parameters
        ----------
        images : array of shape (n, height, width, 3), uint8 or float32
            Images of one size.
        outputs : sequence of str
            Names of the outputs.

        Returns
        -------
        list of array
            In the order of `outputs`.
        """


class OnnxRuntimeRunner:
    """Runner of ONNX Runtime, on the CPU.

    Parameters
    ----------
    content : bytes
        The ONNX file.
    n_threads : int or None
        Number of threads of an operator. None means one per physical core.
    """

    def __init__(self, content: bytes, n_threads: int | None):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only; they are also raised
        if n_threads is not None:
            options.intra_op_num_threads = n_threads
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._options = onnxruntime.RunOptions()
        self._options.log_severity_level = 3

    def run(self, images: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        """Return outputs of the graph, as :class:`Runner` describes."""
        found: list[np.ndarray] = self._session.run(list(outputs), {INPUT: images}, self._options)
        return found


class OpenVinoRunner:
    """Runner of OpenVINO, on the CPU.

    OpenVINO computes all outputs of a compiled graph. Therefore the graph is compiled once for each set of outputs.

    Parameters
    ----------
    content : bytes
        The ONNX file.
    n_threads : int or None
        Number of threads. None lets OpenVINO choose.
    """

    def __init__(self, content: bytes, n_threads: int | None):
        import openvino

        self._core = openvino.Core()
        self._model = self._core.read_model(BytesIO(content))
        # OpenVINO would compute in bfloat16 on processors that have it, which changes scores.
        self._config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if n_threads is not None:
            self._config["INFERENCE_NUM_THREADS"] = n_threads
        self._compiled: dict[tuple[str, ...], Any] = {}
        self._lock = threading.Lock()

    def run(self, images: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        """Return outputs of the graph, as :class:`Runner` describes."""
        request = self._graph_of(tuple(outputs)).create_infer_request()
        request.infer([images])
        return [request.get_output_tensor(i).data.copy() for i in range(len(outputs))]

    def _graph_of(self, outputs: tuple[str, ...]) -> Any:
        """Return the compiled graph that computes only some outputs."""
        import openvino

        with self._lock:
            if outputs not in self._compiled:
                part = openvino.Model([self._model.output(name) for name in outputs], self._model.get_parameters())
                self._compiled[outputs] = self._core.compile_model(part, "CPU", self._config)
            return self._compiled[outputs]


_RUNNERS: dict[str, tuple[Callable[[bytes, int | None], Runner], str]] = {
    "onnxruntime": (OnnxRuntimeRunner, "onnx"),
    "openvino": (OpenVinoRunner, "openvino"),
}
#: Names of the runtimes.
RUNTIMES = tuple(_RUNNERS)


def results_of(names: Sequence[str], outputs: Sequence[np.ndarray], n_images: int = 1) -> dict[str, np.ndarray]:
    """Return the outputs of the last image of a batch by name, without the axis of the images.

    Parameters
    ----------
    names : sequence of str
        Names of the outputs. The output ``grid`` belongs to all images of a batch.
    outputs : sequence of array
        The outputs.
    n_images : int, default=1
        Number of images of the batch.

    Raises
    ------
    ValueError
        If the first axis of an output is not the number of images.
    """
    found = {}
    for name, value in zip(names, outputs, strict=True):
        if name != "grid" and value.shape[:1] != (n_images,):
            raise ValueError(f"the output {name} has the shape {value.shape} for {n_images} images.")
        found[name] = value if name == "grid" else value[-1]
    return found


def open_runner(content: bytes, runtime: str, n_threads: int | None, name: str) -> Runner:
    """Load an ONNX file into a runtime.

    Parameters
    ----------
    content : bytes
        The file.
    runtime : {"onnxruntime", "openvino"}
        The runtime.
    n_threads : int or None
        Number of threads. None lets the runtime choose.
    name : str
        Path of the file, for errors.

    Returns
    -------
    Runner

    Raises
    ------
    ValueError
        If `runtime` or `n_threads` is invalid.
    ImportError
        If the runtime is not installed. The message names the extra that installs it.
    ModelFileError
        If the runtime cannot load the file.
    """
    if runtime not in _RUNNERS:
        raise ValueError(f"runtime={runtime!r}: expected {' or '.join(map(repr, _RUNNERS))}.")
    if n_threads is not None and n_threads < 1:
        raise ValueError(f"n_threads={n_threads}: expected at least 1, or None.")
    make, extra = _RUNNERS[runtime]
    try:
        return make(content, n_threads)
    except ImportError as error:
        raise ImportError(
            f"runtime={runtime!r} needs the package {runtime}, which the extra {extra!r} installs. Run: pip install "
            f"{runtime}. ({error})"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # runtimes raise their own classes of errors
        reason = " ".join(str(error).split())
        raise ModelFileError(f"{name!r} cannot be loaded by {runtime}: {reason}") from error
