"""`python -m dim` is the command `dim`."""

from dim.cli.main import main

if __name__ == "__main__":
    main()
