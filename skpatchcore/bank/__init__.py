"""Memory bank: selection from patch features within a memory budget, and scoring (Equations 6 and 7 of the paper)."""

from skpatchcore.bank.budget import MemoryEstimate
from skpatchcore.bank.memory_bank import MemoryBank

__all__ = ["MemoryBank", "MemoryEstimate"]
