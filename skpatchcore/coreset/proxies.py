"""LearnedProxySampler: proxies trained to reconstruct the rows (Equation 8), a baseline of the paper's Figure 5."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

from skpatchcore._utils.arrays import as_tensor
from skpatchcore._utils.device import require_device
from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.progress import progress_bar
from skpatchcore._utils.sklearn import Interval, fit_context
from skpatchcore.coreset._base import SubsetSampler, count_of

# Number of rows in one block of distances to the proxies, when the nearest row of each proxy is searched.
_BLOCK = 4096


def squared_distances(X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    """Return the differentiable squared distances, at least 1e-12, between all rows of `X` and all rows of `Y`."""
    squares = X.square().sum(1)[:, None] + Y.square().sum(1) - 2 * (X @ Y.T)
    return squares.clamp_min(1e-12)  # the gradient of the square root is infinite at 0


def reconstruction_loss(X: torch.Tensor, proxies: torch.Tensor) -> torch.Tensor:
    """Return the mean of Equation 8 over the rows of `X`.

    Each row is reconstructed as the average of the proxies, weighted by ``softmax(-distance)``.

    Parameters
    ----------
    X : tensor of shape (n_samples, n_features)
        Rows to reconstruct.
    proxies : tensor of shape (n_proxies, n_features)
        The proxies.

    Returns
    -------
    tensor of shape ()
        Mean squared distance between the rows and their reconstructions.
    """
    weights = torch.softmax(-squared_distances(X, proxies).sqrt(), dim=1)
    return (X - weights @ proxies).square().sum(1).mean()


class LearnedProxySampler(SubsetSampler):
    """Train new rows (proxies) to reproduce each row of the data as a weighted average of proxies (Equation 8).

    Equation 8 is that of the PatchCore paper. In Figure 5 of the paper, the results with learned proxies lie between
    those with random rows and those with a greedy coreset. The training is slow. Rare patch features have little
    influence on the proxies, because the proxies reproduce averages. Use this sampler only for comparisons.

    Parameters
    ----------
    ratio : float or int, default=0.1
        Number of proxies. A float in (0, 1] is a fraction of the rows: ``max(1, ceil(ratio * n_samples))`` proxies are
        trained. An int is the number of proxies.
    n_epochs : int, default=5
        Number of passes over the rows.
    batch_size : int, default=512
        Number of rows per optimization step.
    learning_rate : float, default=0.01
        Learning rate of the Adam optimizer, in units of the standard deviation of the rows.
    device : str, default="auto"
        Device on which the training runs. ``"auto"`` uses CUDA if CUDA is available, otherwise the CPU.
    random_state : int, RandomState instance or None, default=None
        Source of the random numbers that choose the initial proxies and the order of the rows in each epoch.
    verbose : int, default=0
        1 shows a progress bar.

    Attributes
    ----------
    components_ : array of shape (n_proxies, n_features)
        The proxies. They are not rows of `X`.
    component_indices_ : array of shape (n_proxies,), int64
        Index of the row of `X` nearest to each proxy. The same index may occur several times.
    loss_curve_ : list of float
        Mean of Equation 8 over the rows in each epoch.
    n_features_in_ : int
        Number of columns of `X`.
    feature_names_in_ : array of str
        Names of the columns of `X`, if `X` has column names.

    See Also
    --------
    GreedyCoresetSampler : Select rows that cover all rows.

    References
    ----------
    Roth et al., CVPR 2022, Equation 8.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import LearnedProxySampler
    >>> X = np.random.default_rng(0).normal(size=(200, 2))
    >>> sampler = LearnedProxySampler(10, random_state=0).fit(X)
    >>> sampler.components_.shape
    (10, 2)
    >>> sampler.loss_curve_[-1] < sampler.loss_curve_[0]
    True
    """

    computes_components = True  # see the protocol of samplers

    _parameter_constraints: dict[str, Any] = {
        "ratio": [Interval(Real, 0, 1, closed="right"), Interval(Integral, 1, None, closed="left")],
        "n_epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "device": [str],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        ratio: float = 0.1,
        *,
        n_epochs: int = 5,
        batch_size: int = 512,
        learning_rate: float = 0.01,
        device: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.ratio = ratio
        self.n_epochs = n_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @fit_context(prefer_skip_nested_validation=True)
    @default_modes(grad=True)
    def fit(self, X: Any, y: Any = None) -> LearnedProxySampler:
        """Train proxies on the rows of `X`.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            Rows on which the proxies are trained. The training computes in the dtype of `X` if this dtype is float32 or
            float64. Rows of dtype float16 are converted to float32, and rows of any other dtype to float64.
        y : ignored
            Present for API consistency.

        Returns
        -------
        LearnedProxySampler
            The fitted sampler.

        Raises
        ------
        ValueError
            If `X` contains NaN, infinity, or a value beyond ±1e15 (float32) or ±1e150 (float64), because the squares of
            such values could overflow. The error names the row and the column. The error is also raised if `ratio` is
            an int and larger than the number of rows, if the device is not available, or if the training diverges.
        """
        device = require_device(self.device)
        X = self._validated_rows(X)
        rng = check_random_state(self.random_state)
        rows = as_tensor(X, device)
        first = rng.permutation(len(X))[: count_of(self.ratio, len(X))]
        proxies = rows[torch.from_numpy(first).to(device)].clone().requires_grad_()
        # The scale of constant data is 0. The proxies then already equal the rows, and any small learning rate works.
        scale = float((rows - rows.mean(0)).square().mean().sqrt())
        optimizer = torch.optim.Adam([proxies], lr=self.learning_rate * scale or 1e-12)
        losses = []
        n_steps = -(-len(X) // self.batch_size) * self.n_epochs
        with progress_bar(n_steps, "training proxies", "step", self.verbose) as bar:
            for _ in range(self.n_epochs):
                total = 0.0
                for batch in torch.split(torch.from_numpy(rng.permutation(len(X))).to(device), self.batch_size):
                    optimizer.zero_grad()
                    loss = reconstruction_loss(rows[batch], proxies)
                    torch.autograd.backward(loss)
                    optimizer.step()
                    total += loss.item() * len(batch)
                    bar.update()
                losses.append(total / len(X))
        if not bool(proxies.isfinite().all()):
            raise ValueError("the proxies are not finite after training: scale X or use a smaller learning_rate.")
        self.components_ = proxies.detach().cpu().numpy()
        self.component_indices_ = _nearest_rows(proxies.detach(), rows)
        self.loss_curve_ = losses
        return self


def _nearest_rows(proxies: torch.Tensor, rows: torch.Tensor) -> np.ndarray:
    """Return the index of the row nearest to each proxy, the lowest index among equally near rows."""
    smallest = torch.full((len(proxies),), torch.inf, dtype=rows.dtype, device=rows.device)
    nearest = torch.zeros(len(proxies), dtype=torch.int64, device=rows.device)
    for i in range(0, len(rows), _BLOCK):
        squares, places = squared_distances(rows[i : i + _BLOCK], proxies).min(0)
        nearer = squares < smallest
        nearest[nearer] = places[nearer] + i
        smallest[nearer] = squares[nearer]
    return nearest.cpu().numpy()
