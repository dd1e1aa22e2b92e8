"""Whether what the judge states is so: its power, its error at the line, and its thresholds."""
