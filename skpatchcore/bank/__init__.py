"""Patches to the memory bank, within a memory budget, and its scores (Eq. 6-7)."""

from skpatchcore.bank.budget import MemoryEstimate
from skpatchcore.bank.memory_bank import MemoryBank

__all__ = ["MemoryBank", "MemoryEstimate"]
