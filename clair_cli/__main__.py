"""`python -m clair_cli`, the same as `clair`."""

from clair_cli.cli import console

if __name__ == "__main__":
    console()
