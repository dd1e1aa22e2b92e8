"""LoRA clients of a really pretrained BERT, honest and bad ones: pools, cohorts, tables."""
