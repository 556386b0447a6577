"""The answers of a person about a part, as report pages save them."""

from __future__ import annotations

DEFECT, FINE, UNSURE, OPEN = "defect", "fine", "unsure", ""
#: All answers. The last one means that the part was not reviewed.
ANSWERS = (DEFECT, FINE, UNSURE, OPEN)
