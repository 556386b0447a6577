"""The rows that cover all patch features (Eq. 5, Algorithm 1)."""
