"""`python -m clair_cli`, the same as `clair`."""

from clair_cli.cli import main

if __name__ == "__main__":
    main()
