"""Samplers: GreedyCoresetSampler, RandomSampler and LearnedProxySampler select the rows of the memory bank."""

from skpatchcore.coreset.greedy import GreedyCoresetSampler
from skpatchcore.coreset.proxies import LearnedProxySampler
from skpatchcore.coreset.uniform import RandomSampler

__all__ = ["GreedyCoresetSampler", "LearnedProxySampler", "RandomSampler"]
