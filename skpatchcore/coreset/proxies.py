"""LearnedProxySampler: proxies trained to reconstruct the rows (Eq. 8), a baseline of the paper's Figure 5."""

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

# Rows whose distances from all proxies are held at once, when the rows nearest to the proxies are looked up.
_BLOCK = 4096


def squared_distances(X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    """Return squared distances of all rows of `X` from all rows of `Y`, differentiable, at least 1e-12."""
    squares = X.square().sum(1)[:, None] + Y.square().sum(1) - 2 * (X @ Y.T)
    return squares.clamp_min(1e-12)  # the root's slope at 0 is infinite


def reconstruction_loss(X: torch.Tensor, proxies: torch.Tensor) -> torch.Tensor:
    """Return the mean of Eq. 8 over the rows of `X`.

    Parameters
    ----------
    X : tensor of shape (n_samples, n_features)
        Rows.
    proxies : tensor of shape (n_proxies, n_features)
        Proxies.

    Returns
    -------
    tensor, a number
        Mean squared distance of a row from the average of the proxies, weighted by ``softmax(-distance)``.
    """
    weights = torch.softmax(-squared_distances(X, proxies).sqrt(), dim=1)
    return (X - weights @ proxies).square().sum(1).mean()


class LearnedProxySampler(SubsetSampler):
    """Proxies of the rows, learned so that soft mixtures of near ones reconstruct each row (Eq. 8).

    The paper's Figure 5 has them between random subsets and greedy coresets. They are slow to learn, and blur what
    is rare: a baseline to compare with, not a recommendation.

    Parameters
    ----------
    ratio : float or int, default=0.1
        Share of the rows, in (0, 1], that tells how many proxies: ``max(1, ceil(ratio * n_samples))``. An int is
        their number.
    n_epochs : int, default=5
        Passes over the rows.
    batch_size : int, default=512
        Rows a step.
    learning_rate : float, default=0.01
        Of Adam, in units of the rows' standard deviation.
    device : str, default="auto"
        ``"auto"`` is CUDA where there is one, else the CPU.
    random_state : int, RandomState instance or None, default=None
        Draws the rows that proxies start from, and the order of batches.
    verbose : int, default=0
        1 shows a progress bar.

    Attributes
    ----------
    components_ : array of shape (n_proxies, n_features)
        The proxies: not rows of `X`.
    component_indices_ : array of shape (n_proxies,), int64
        For each proxy, the row of `X` nearest to it. Rows may occur more than once.
    loss_curve_ : list of float
        Mean of Eq. 8 over each epoch.
    n_features_in_ : int
        Columns of `X`.
    feature_names_in_ : array of str
        Names of the columns, where `X` had them.

    See Also
    --------
    GreedyCoresetSampler : Selects rows that cover all others.

    References
    ----------
    Roth et al., CVPR 2022, Eq. 8.

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
        """Learn proxies of the rows of `X`.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            The rows; float32 and float64 are kept, anything else becomes float64 (float16: float32).
        y : ignored
            Present by convention.

        Returns
        -------
        LearnedProxySampler
            Itself.

        Raises
        ------
        ValueError
            If `X` holds NaN, infinity or values beyond ±1e15 (float32) or ±1e150 (float64), whose squares could
            overflow: the error names row and column; if an int `ratio` is larger than the number of rows,
            or the device is absent.
        """
        device = require_device(self.device)
        X = self._validated_rows(X)
        rng = check_random_state(self.random_state)
        rows = as_tensor(X, device)
        first = rng.permutation(len(X))[: count_of(self.ratio, len(X))]
        proxies = rows[torch.from_numpy(first).to(device)].clone().requires_grad_()
        # A scale of 0, of constant data, would leave nothing to do anyway.
        scale = float((rows - rows.mean(0)).square().mean().sqrt())
        optimizer = torch.optim.Adam([proxies], lr=self.learning_rate * scale or 1e-12)
        losses = []
        n_steps = -(-len(X) // self.batch_size) * self.n_epochs
        with progress_bar(n_steps, "learning proxies", "step", self.verbose) as bar:
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
            raise ValueError("the proxies are not finite after learning: scale X, or lower learning_rate.")
        self.components_ = proxies.detach().cpu().numpy()
        self.component_indices_ = _nearest_rows(proxies.detach(), rows)
        self.loss_curve_ = losses
        return self


def _nearest_rows(proxies: torch.Tensor, rows: torch.Tensor) -> np.ndarray:
    """Return the row nearest to each proxy, the first of equally near ones."""
    smallest = torch.full((len(proxies),), torch.inf, dtype=rows.dtype, device=rows.device)
    nearest = torch.zeros(len(proxies), dtype=torch.int64, device=rows.device)
    for i in range(0, len(rows), _BLOCK):
        squares, places = squared_distances(rows[i : i + _BLOCK], proxies).min(0)
        nearer = squares < smallest
        nearest[nearer] = places[nearer] + i
        smallest[nearer] = squares[nearer]
    return nearest.cpu().numpy()
