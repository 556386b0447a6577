"""CoresetDisplay: the memory bank among the patches that it stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.utils.validation import check_is_fitted

from skpatchcore.patches.patches import Patches

# Patches that are drawn, at most: more only cover each other.
_N_DRAWN = 20_000


class CoresetDisplay:
    """Patch features and the coreset that stands for them, in two dimensions (Figure 3 of the paper).

    Make one by :meth:`from_estimator` or :meth:`from_predictions`.

    Parameters
    ----------
    patches : array of shape (n_patches, 2)
        Where the patches are drawn.
    components : array of shape (n_components, 2)
        Where the rows of the memory bank are, in order of selection.
    explained : float or None, default=None
        Share of the patches' variance that two dimensions show.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        What was drawn last.

    Notes
    -----
    Two directions of some hundred: what looks covered twice here may lie far apart in the others.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import GreedyCoresetSampler
    >>> from skpatchcore.display import CoresetDisplay
    >>> rows = np.random.default_rng(0).normal(size=(200, 2))
    >>> sampler = GreedyCoresetSampler(20, random_state=0).fit(rows)
    >>> CoresetDisplay.from_predictions(rows, sampler.components_).components.shape
    (20, 2)
    """

    def __init__(self, patches: Any, components: Any, *, explained: float | None = None):
        self.patches = patches
        self.components = components
        self.explained = explained

    @classmethod
    def from_estimator(cls, estimator: Any, X: Any, **options: Any) -> CoresetDisplay:
        """Draw a detector's memory bank over the patch features of images.

        Parameters
        ----------
        estimator : PatchCoreDetector
            A fitted one.
        X : sequence of images, or patch features
            As for its `fit`, such as the training images.
        **options : dict
            As for :meth:`plot`.

        Returns
        -------
        CoresetDisplay
            Drawn.

        Raises
        ------
        ImageError
            If an image can't be read.
        """
        check_is_fitted(estimator, "memory_bank_")
        features = X if estimator.extractor_ is None else estimator.extractor_.transform(X)
        return cls.from_predictions(Patches.from_features(features).rows, estimator.memory_bank_, **options)

    @classmethod
    def from_predictions(cls, patches: Any, components: Any, **options: Any) -> CoresetDisplay:
        """Draw features that are there already, by their two directions of most variance.

        Parameters
        ----------
        patches : array of shape (n_patches, n_channels)
            Patch features; with two channels they are drawn as they are. Of very many, every so many-th is drawn.
        components : array of shape (n_components, n_channels)
            The coreset.
        **options : dict
            As for :meth:`plot`.

        Returns
        -------
        CoresetDisplay
            Drawn.

        Raises
        ------
        ValueError
            If the two have not the same channels, or fewer than two.
        """
        patches, components = np.asarray(patches), np.asarray(components)
        if patches.ndim != 2 or components.ndim != 2 or patches.shape[1] != components.shape[1] or len(patches) < 2:
            raise ValueError(f"patches of shape {patches.shape} and components of shape {components.shape} do not fit.")
        if patches.shape[1] < 2:
            raise ValueError("features of one channel can't be drawn in two dimensions.")
        patches = patches[:: -(-len(patches) // _N_DRAWN)]
        explained = None
        if patches.shape[1] > 2:
            directions = PCA(2, svd_solver="covariance_eigh").fit(patches)
            explained = float(directions.explained_variance_ratio_.sum())
            patches, components = directions.transform(patches), directions.transform(components)
        return cls(patches, components, explained=explained).plot(**options)

    def plot(self, *, ax: Any = None) -> CoresetDisplay:
        """Draw patches, and the coreset over them.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Where to; None makes a figure.

        Returns
        -------
        CoresetDisplay
            Itself.
        """
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots(figsize=(5, 4.4), layout="constrained")
        ax.scatter(*np.asarray(self.patches).T, s=4, color="#999999", alpha=0.35, linewidths=0, label="patches")
        size = float(np.clip(2000 / len(self.components), 4, 30))
        ax.scatter(
            *np.asarray(self.components).T, s=size, color="#D55E00", edgecolors="white", linewidths=0.4,
            label=f"memory bank: {len(self.components)}",
        )  # fmt: skip
        explained = "" if self.explained is None else f" ({self.explained:.0%} of the variance)"
        ax.set(xlabel=f"first two principal directions{explained}" if explained else "", xticks=[], yticks=[])
        legend = ax.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        for handle in legend.legend_handles:
            handle.set(sizes=[25], alpha=1)
        self.ax_, self.figure_ = ax, ax.figure
        return self
