"""The one door to scikit-learn's private and experimental names: when a release moves one, only this file changes."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

from sklearn.base import _fit_context as fit_context
from sklearn.utils import _safe_indexing
from sklearn.utils._param_validation import HasMethods, Interval, RealNotInt, StrOptions

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


class OlderStatesMixin:
    """For estimators that gain parameters: a state that an older version wrote is completed with defaults."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        parameters = signature(type(self).__init__).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not Parameter.empty}
        super().__setstate__({**defaults, **state})  # type: ignore[misc]


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
    "visual_block",
    "with_callbacks",
]
