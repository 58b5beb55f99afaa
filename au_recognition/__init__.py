"""Recognition of one's own files: what is read (inputs), how it runs and goes on (reading), what is written."""
