"""The pictures of a report as files for a paper. Needs the extra `plot`."""
