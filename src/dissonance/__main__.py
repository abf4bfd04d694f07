"""`python -m dissonance`: the command line."""

from dissonance.cli import main

if __name__ == "__main__":
    main()
