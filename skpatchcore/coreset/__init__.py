"""The rows that cover all patch features (Eq. 5, Algorithm 1)."""

from skpatchcore.coreset.greedy import GreedyCoresetSampler
from skpatchcore.coreset.proxies import LearnedProxySampler
from skpatchcore.coreset.uniform import RandomSampler

__all__ = ["GreedyCoresetSampler", "LearnedProxySampler", "RandomSampler"]
