"""Indexes: ExactIndex and PyNNDescentIndex find the nearest rows of the memory bank."""

from skpatchcore.index.exact import ExactIndex
from skpatchcore.index.pynndescent import PyNNDescentIndex

__all__ = ["ExactIndex", "PyNNDescentIndex"]
