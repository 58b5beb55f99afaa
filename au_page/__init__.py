"""The page: reading pictures and drawing faces in a browser."""
