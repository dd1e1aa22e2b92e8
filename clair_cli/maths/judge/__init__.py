"""From evidence to verdicts and weights."""
