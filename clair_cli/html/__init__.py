"""A report as one page for a browser: no file beside it, no network. Needs the extra `html`."""
