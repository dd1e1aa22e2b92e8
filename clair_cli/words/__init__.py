"""A report in words that need no mathematics: why, how sure, what next. No torch."""
