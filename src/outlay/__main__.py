"""`python -m outlay`: the same as the `outlay` command."""

from outlay.cli import main

if __name__ == "__main__":
    main()
