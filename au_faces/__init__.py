"""Faces in pictures and videos: decode, detect, level the eyes, crop, follow."""
