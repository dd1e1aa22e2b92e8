"""A round's clients: found, loaded, compared. No torch at import."""
