"""What pictures of a report show, as plain numbers: the page and the figures draw the same."""
