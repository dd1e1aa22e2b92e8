"""LoRA clients of a small vision transformer: a second domain, held back from all tuning."""
