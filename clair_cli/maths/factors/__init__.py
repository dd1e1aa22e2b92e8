"""Low-rank matrices as factors side by side, and their Grams."""
