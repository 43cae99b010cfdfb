"""`python -m refusal_dial` is the command `refusal-dial`."""

from refusal_dial.cli.commands import main

if __name__ == "__main__":
    main()
