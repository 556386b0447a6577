"""The one door to scikit-learn's private and experimental names: when a release moves one, only this file changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

import sklearn
from sklearn.base import _fit_context as fit_context
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.utils import _safe_indexing
from sklearn.utils._param_validation import HasMethods, Interval, RealNotInt, StrOptions

from skpatchcore._utils.warning import warn_user
from skpatchcore._version import __version__

if TYPE_CHECKING:

    class CallbackSupportMixin:
        """scikit-learn's, for estimators that callbacks can be set on."""

    def with_callbacks(method: Callable[..., Any]) -> Callable[..., Any]:
        """Return the method, after which callbacks are torn down."""
        return method

else:
    try:
        from sklearn.callback import CallbackSupportMixin, with_callbacks
    except ImportError:  # scikit-learn 1.8

        class CallbackSupportMixin:
            """Stands for what this scikit-learn does not have yet."""

        def with_callbacks(method: Callable[..., Any]) -> Callable[..., Any]:
            """Return the method as it is."""
            return method


# Key under which states carry the versions that wrote them.
_VERSIONS = "_skpatchcore_versions"
_apart: ContextVar[bool] = ContextVar("apart", default=False)


class OlderStatesMixin:
    """For estimators that gain parameters: a state that an older version wrote is completed with defaults.

    scikit-learn stores its version in states of its own classes only. States of these classes have it too, with the
    version of this package, and the same warnings are given if they are others when a state is read.
    """

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[assignment]
        if _apart.get():
            return state
        return {**state, _VERSIONS: {"scikit-learn": sklearn.__version__, "skpatchcore": __version__}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        parameters = signature(type(self).__init__).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not Parameter.empty}
        state = {**defaults, **state}
        versions = state.pop(_VERSIONS, None)
        super().__setstate__(state)  # type: ignore[misc]
        if versions is not None and not _apart.get():
            warn_of_versions(versions, type(self).__name__)


@contextmanager
def versions_apart() -> Iterator[None]:
    """Within, states are written without versions, and read without warnings: for files that have them once."""
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


def warn_of_versions(versions: Mapping[str, str], holds: str, source: str | None = None) -> None:
    """Warn if other versions of scikit-learn or of this package wrote a model.

    Parameters
    ----------
    versions : mapping of str to str
        Those that wrote it, by "scikit-learn" and "skpatchcore".
    holds : str
        Class of the estimator.
    source : str or None, default=None
        What the model was read from, as the message says it. None for a pickle, which does not know its file.

    Warns
    -----
    InconsistentVersionWarning
        scikit-learn's, if its version is another one.
    UserWarning
        If the version of this package is another one.
    """
    if versions.get("scikit-learn") != sklearn.__version__:
        warn_user(
            InconsistentVersionWarning(
                estimator_name=holds,
                current_sklearn_version=sklearn.__version__,
                original_sklearn_version=versions.get("scikit-learn", "unknown"),
            )
        )
    if versions["skpatchcore"] != __version__:
        warn_user(
            f"{source or 'the model'} was written by skpatchcore {versions['skpatchcore']} and is read by "
            f"{__version__}: its scores may differ. The changelog says which models changed."
        )


def safe_indexing(X: Any, indices: Any) -> Any:
    """Return some items of `X`, as scikit-learn does; without reading them if `X` can say so by its method `taken`."""
    if not isinstance(indices, slice) and callable(taken := getattr(X, "taken", None)):
        return taken(indices)
    return _safe_indexing(X, indices)


def root_context(estimator: Any) -> Any:
    """Return the context of an estimator's fit, which callbacks see as a tree of tasks; None without callbacks.

    Parameters
    ----------
    estimator : estimator
        One with `CallbackSupportMixin`, in its `fit`.
    """
    if not hasattr(estimator, "_init_callback_context"):
        return None
    return estimator._init_callback_context(max_subtasks=None)


def visual_block(kind: str, estimators: list[Any], names: list[str]) -> Any:
    """Return boxes for the HTML representation of an estimator that is made of others.

    Parameters
    ----------
    kind : {"serial", "parallel"}
        How the boxes are arranged.
    estimators : list of estimators
        What they show.
    names : list of str
        Their titles.
    """
    from sklearn.utils._repr_html.estimator import _VisualBlock

    return _VisualBlock(kind, estimators, names=names, name_details=[str(estimator) for estimator in estimators])


__all__ = [
    "CallbackSupportMixin",
    "HasMethods",
    "Interval",
    "OlderStatesMixin",
    "RealNotInt",
    "StrOptions",
    "fit_context",
    "root_context",
    "safe_indexing",
    "versions_apart",
    "visual_block",
    "warn_of_versions",
    "with_callbacks",
]
