"""Recognition in pictures and videos: inputs, the run and its journal, and the tables and figures it writes."""
