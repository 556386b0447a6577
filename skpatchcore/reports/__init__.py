"""Self-contained HTML pages of predictions and evaluations."""

from skpatchcore.reports.evaluation import write_evaluation_report, write_worst
from skpatchcore.reports.prediction_page import write_prediction_report
from skpatchcore.reports.predictions import Prediction, read_predictions, write_predictions

__all__ = [
    "Prediction",
    "read_predictions",
    "write_evaluation_report",
    "write_prediction_report",
    "write_predictions",
    "write_worst",
]
