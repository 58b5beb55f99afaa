"""Evaluation: reading records, scores with intervals, calibration, audits, protocols, transfer, the report."""
