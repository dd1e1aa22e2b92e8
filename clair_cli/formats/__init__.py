"""Bytes from strangers: files, JSON, safetensors, and the limits on them. No torch at import."""
