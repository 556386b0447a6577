"""Self-contained HTML pages of predictions and evaluations."""
