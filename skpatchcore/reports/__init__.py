"""HTML pages of predictions, evaluations and detection capability.

Names are imported on first use. Therefore predictions can be written without importing torch.
"""

from typing import TYPE_CHECKING

from skpatchcore._utils.lazy import attach

if TYPE_CHECKING:
    from skpatchcore.reports.capability import write_capability_report
    from skpatchcore.reports.card_page import write_card_page
    from skpatchcore.reports.cards import Card, CardGroup, Nearest
    from skpatchcore.reports.evaluation import write_evaluation_report, write_worst
    from skpatchcore.reports.labels import read_labels
    from skpatchcore.reports.layers import Layers, Region
    from skpatchcore.reports.prediction_page import make_cards, write_prediction_report
    from skpatchcore.reports.predictions import Prediction, read_predictions, write_predictions

__all__ = [
    "Card",
    "CardGroup",
    "Layers",
    "Nearest",
    "Prediction",
    "Region",
    "make_cards",
    "read_labels",
    "read_predictions",
    "write_capability_report",
    "write_card_page",
    "write_evaluation_report",
    "write_prediction_report",
    "write_predictions",
    "write_worst",
]

__getattr__, __dir__ = attach(
    __name__,
    submod_attrs={
        "capability": ["write_capability_report"],
        "card_page": ["write_card_page"],
        "cards": ["Card", "CardGroup", "Nearest"],
        "evaluation": ["write_evaluation_report", "write_worst"],
        "labels": ["read_labels"],
        "layers": ["Layers", "Region"],
        "prediction_page": ["make_cards", "write_prediction_report"],
        "predictions": ["Prediction", "read_predictions", "write_predictions"],
    },
)
