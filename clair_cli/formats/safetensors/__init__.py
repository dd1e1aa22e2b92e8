"""Safetensors files: a strict reader of strangers' files, and a writer."""
