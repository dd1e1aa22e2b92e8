"""An adapter as its file and its config say it: read, named, written. No torch at import."""
