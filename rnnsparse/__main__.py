"""`python -m rnnsparse`."""

from rnnsparse.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
