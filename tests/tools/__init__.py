"""Programs that tests start as processes of their own, and people by hand."""
