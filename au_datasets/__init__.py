"""Readers that turn AU datasets (and the face renderer) into one record table."""
