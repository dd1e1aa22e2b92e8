"""Pools of trained LoRA clients on disk, cohorts drawn from them, and their tables.

What `pretrained/` (a BERT on sequences) and `vision/` (a transformer on images) have in common.
"""
