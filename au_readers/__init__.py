"""Readers: one file a dataset, and what they share. Each turns a copy on disk into records."""
