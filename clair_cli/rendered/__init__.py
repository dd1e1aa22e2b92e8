"""A report in the forms that pipelines and people read. No torch, and nothing is judged again."""
