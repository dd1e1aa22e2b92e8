"""Classification heads of clients whose labels are skewed, honest and attacked."""
