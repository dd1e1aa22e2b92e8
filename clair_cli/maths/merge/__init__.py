"""The weighted mean, cut and rounded."""
