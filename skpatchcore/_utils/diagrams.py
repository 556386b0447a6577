"""`diagram_of` and `DocumentationLinkMixin`: the HTML representation of estimators in notebooks."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

from skpatchcore._utils.sklearn import visual_block

_PACKAGE = "skpatchcore"


@cache
def documentation_site() -> str | None:
    """Return the address of the documentation without a trailing slash; None if there is none.

    Returns
    -------
    str or None
        The URL "Documentation" in the metadata of the package. Otherwise, in a checkout with built pages, the address
        of ``docs/_build/html``.
    """
    try:
        entries = metadata(_PACKAGE).get_all("Project-URL") or []
    except PackageNotFoundError:
        entries = []
    for entry in entries:
        label, _, url = entry.partition(",")
        if label.strip().lower() == "documentation":
            return str(url).strip().rstrip("/")
    pages = Path(__file__).resolve().parents[2] / "docs" / "_build" / "html"
    return pages.as_uri() if (pages / "index.html").is_file() else None


class DocumentationLinkMixin:
    """Mixin that links the HTML representation of an estimator to its page in the API reference."""

    def _get_doc_link(self) -> str:
        """Return the address of the estimator's page; empty if there is none, e.g. for a subclass of the user."""
        site = documentation_site()
        is_own = type(self).__module__.split(".")[0] == _PACKAGE
        return f"{site}/generated/{_PACKAGE}.{type(self).__name__}.html" if site and is_own else ""


def diagram_of(kind: str, estimators: list[Any], names: list[str]) -> Any:
    """Return the boxes of the nested estimators in an estimator's HTML representation.

    Parameters
    ----------
    kind : {"serial", "parallel"}
        Arrangement of the boxes.
    estimators : list of estimators
        The nested estimators, one per box.
    names : list of str
        Titles of the boxes.
    """
    shown = [_WithoutColumns(one) if hasattr(one, "get_feature_names_out") else one for one in estimators]
    return visual_block(kind, shown, names, [str(estimator) for estimator in estimators])


class _WithoutColumns:
    """A nested estimator without the names of the columns of its ``transform``.

    scikit-learn draws these names as a box "n features" below an estimator. The columns of a fitted sampler are the
    rows of the memory bank, and the next stage does not receive them.
    """

    def __init__(self, estimator: Any):
        self._estimator = estimator

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._estimator)

    def __getattr__(self, name: str) -> Any:
        if name == "get_feature_names_out":
            raise AttributeError(name)
        return getattr(self._estimator, name)

    def __repr__(self) -> str:
        return repr(self._estimator)
