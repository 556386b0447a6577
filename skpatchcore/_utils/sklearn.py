"""All imports of scikit-learn's private and experimental names, with fallbacks for older releases.

If a release of scikit-learn moves one of these names, only this file must change.
"""

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

from skpatchcore._utils.version import __version__
from skpatchcore._utils.warning import warn_user

if TYPE_CHECKING:

    class CallbackSupportMixin:
        """Mixin of scikit-learn for estimators that support callbacks."""

    def with_callbacks(method: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate `fit`. The callbacks are torn down after the method returns."""
        return method

else:
    try:
        from sklearn.callback import CallbackSupportMixin, with_callbacks
    except ImportError:  # scikit-learn 1.8

        class CallbackSupportMixin:
            """Empty replacement. scikit-learn 1.8 has no callbacks."""

        def with_callbacks(method: Callable[..., Any]) -> Callable[..., Any]:
            """Return the method unchanged."""
            return method


# Key of a pickled state that holds the versions of the packages that wrote the state.
_VERSIONS = "_skpatchcore_versions"
_apart: ContextVar[bool] = ContextVar("apart", default=False)


class OlderStatesMixin:
    """Mixin for estimators whose pickled states must stay readable in later versions of this package.

    Parameters that an older state lacks get their default values. scikit-learn stores its version in the states of its
    own classes only. This mixin stores the versions of scikit-learn and of this package, and warns if a state was
    written by other versions.
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
    """Write states without versions and read them without version warnings within the block.

    Used for model files, which store the versions once for the whole file.
    """
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


def warn_of_versions(versions: Mapping[str, str], holds: str, source: str | None = None) -> None:
    """Warn if a model was written by another version of scikit-learn or of this package.

    Parameters
    ----------
    versions : mapping of str to str
        Versions that wrote the model, by the keys "scikit-learn" and "skpatchcore".
    holds : str
        Class name of the estimator in the model.
    source : str or None, default=None
        Description of the file for the message. None for a pickled model, because a pickle does not know its file.

    Warns
    -----
    InconsistentVersionWarning
        If the model was written by another version of scikit-learn.
    UserWarning
        If the model was written by another version of this package.
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
            f"{__version__}: its scores may differ. See the changelog for the models that changed."
        )


def safe_indexing(X: Any, indices: Any) -> Any:
    """Return the items of `X` at `indices`, as scikit-learn's ``_safe_indexing`` does.

    If `X` has a method ``taken``, this method is used, and the items are not read.

    Parameters
    ----------
    X : array, list or object with a method ``taken``
        The items.
    indices : slice, array of int or array of bool
        Which items to return.
    """
    if not isinstance(indices, slice) and callable(taken := getattr(X, "taken", None)):
        return taken(indices)
    return _safe_indexing(X, indices)


def root_context(estimator: Any) -> Any:
    """Return the root of the task tree that callbacks follow during an estimator's fit.

    Parameters
    ----------
    estimator : estimator
        An estimator that is being fitted.

    Returns
    -------
    callback context or None
        None if the estimator does not support callbacks.
    """
    if not hasattr(estimator, "_init_callback_context"):
        return None
    return estimator._init_callback_context(max_subtasks=None)


def visual_block(kind: str, estimators: list[Any], names: list[str], details: list[str]) -> Any:
    """Return scikit-learn's description of the boxes of nested estimators.

    Parameters
    ----------
    kind : {"serial", "parallel"}
        Arrangement of the boxes.
    estimators : list of estimators
        The nested estimators, one per box.
    names, details : list of str
        Title and text of each box.
    """
    from sklearn.utils._repr_html.estimator import _VisualBlock

    return _VisualBlock(kind, estimators, names=names, name_details=details)


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
