"""describe_missing: one line about dependencies that are not installed, with the command that installs them."""

from __future__ import annotations

from importlib.util import find_spec

# Module that is imported, and name of its package in the package index. Pillow and numpy are needed by all commands.
_PACKAGES = {
    "imagecodecs": "imagecodecs",
    "joblib": "joblib",
    "pandas": "pandas",
    "psutil": "psutil",
    "pynndescent": "pynndescent",
    "scipy": "scipy",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "skops": "skops",
    "threadpoolctl": "threadpoolctl",
    "tifffile": "tifffile",
    "torch": "torch",
    "torchvision": "torchvision",
}


def describe_missing(error: BaseException) -> str | None:
    """Return the text of an error that a missing dependency caused; None for other errors.

    Parameters
    ----------
    error : exception
        Error of an import.

    Returns
    -------
    str or None
        Names of all missing packages, and what to install.
    """
    if not isinstance(error, ModuleNotFoundError) or (error.name or "").split(".")[0] not in _PACKAGES:
        return None
    missing = [package for module, package in _PACKAGES.items() if find_spec(module) is None]
    return (
        f"this command needs packages that are not installed: {', '.join(missing)}. Run 'pip install .' in the folder "
        "with the source code of skpatchcore. Without these packages, 'predict' and 'verify' work with exported .onnx "
        "files."
    )
