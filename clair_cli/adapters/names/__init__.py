"""One tensor-name format a file."""
