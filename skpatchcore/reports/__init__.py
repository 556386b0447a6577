"""Self-contained HTML pages of predictions and evaluations."""

from skpatchcore.reports.evaluation import write_evaluation_report, write_worst
from skpatchcore.reports.predictions import Prediction, write_prediction_report, write_predictions

__all__ = ["Prediction", "write_evaluation_report", "write_prediction_report", "write_predictions", "write_worst"]
