"""From clients to a result: read, judge, merge or refine, write, report."""
