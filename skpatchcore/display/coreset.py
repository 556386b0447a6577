"""CoresetDisplay: a figure of the memory bank among the patch features from which it was selected."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.utils.validation import check_is_fitted

from skpatchcore.patches.patches import Patches

# Maximum number of patches to draw. More points would only hide each other.
_N_DRAWN = 20_000


class CoresetDisplay:
    """Scatter plot of patch features and their coreset in two dimensions (Figure 3 of the PatchCore paper).

    The coreset is the subset of the patch features that the detector stores as the memory bank.

    Use :meth:`from_estimator` or :meth:`from_predictions` to create a display.

    Parameters
    ----------
    patches : array of shape (n_patches, 2)
        Coordinates of the patches in the plot.
    components : array of shape (n_components, 2)
        Coordinates of the rows of the memory bank in the plot, in order of selection.
    explained : float or None, default=None
        Fraction of the variance of the patch features that the two dimensions explain. None if this fraction is
        unknown.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        The Axes and the Figure of the last plot.

    Notes
    -----
    Patch features have hundreds of dimensions, and the plot shows only two. Points that are close in the plot can be
    far apart in the other dimensions.

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
        """Plot a detector's memory bank over the patch features of images.

        Parameters
        ----------
        estimator : PatchCoreDetector
            A fitted detector.
        X : sequence of images, or patch features
            Images or features as for the detector's `fit`, e.g. the training images.
        **options : dict
            Arguments of :meth:`plot`.

        Returns
        -------
        CoresetDisplay
            The display, after its plot was drawn.

        Raises
        ------
        ImageError
            If an image cannot be read or is not an image.
        """
        check_is_fitted(estimator, "memory_bank_")
        features = X if estimator.extractor_ is None else estimator.extractor_.transform(X)
        rows = Patches.from_features(features).rows
        if (transformer := getattr(estimator, "transformer_", None)) is not None:
            rows = transformer.transform(rows)
        return cls.from_predictions(rows, estimator.memory_bank_, **options)

    @classmethod
    def from_predictions(cls, patches: Any, components: Any, **options: Any) -> CoresetDisplay:
        """Plot patch features and a coreset, projected onto the first two principal components of the patch features.

        Parameters
        ----------
        patches : array of shape (n_patches, n_channels)
            Patch features. Features with two channels are plotted without a projection. If there are more than 20,000
            patches, only every k-th patch is used, with the smallest k that leaves at most 20,000.
        components : array of shape (n_components, n_channels)
            Patch features of the coreset. All of them are plotted.
        **options : dict
            Arguments of :meth:`plot`.

        Returns
        -------
        CoresetDisplay
            The display, after its plot was drawn.

        Raises
        ------
        ValueError
            If `patches` and `components` are not 2-D arrays with the same number of channels, if there are fewer than
            two patches, or if there are fewer than two channels.
        """
        patches, components = np.asarray(patches), np.asarray(components)
        if patches.ndim != 2 or components.ndim != 2 or patches.shape[1] != components.shape[1] or len(patches) < 2:
            raise ValueError(
                f"patches of shape {patches.shape} and components of shape {components.shape} do not fit: expected 2-D "
                "arrays with the same number of channels, and at least two patches."
            )
        if patches.shape[1] < 2:
            raise ValueError("features of one channel cannot be drawn in two dimensions: use more channels.")
        patches = patches[:: -(-len(patches) // _N_DRAWN)]
        explained = None
        if patches.shape[1] > 2:
            directions = PCA(2, svd_solver="covariance_eigh").fit(patches)
            explained = float(directions.explained_variance_ratio_.sum())
            patches, components = directions.transform(patches), directions.transform(components)
        return cls(patches, components, explained=explained).plot(**options)

    def plot(self, *, ax: Any = None) -> CoresetDisplay:
        """Plot the patch features, and the coreset on top of them.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to plot on. None creates a new figure.

        Returns
        -------
        CoresetDisplay
            The display itself.
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
