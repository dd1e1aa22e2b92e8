"""The command line. No torch at import."""
