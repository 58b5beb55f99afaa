"""Evaluation beyond the plain scores of `metrics_au.py`: intervals, calibration, audits, protocols, the report."""
