"""Results as files: whole or not at all. No torch at import."""
