"""The report: its model, its JSON, its reader. No torch at import."""
