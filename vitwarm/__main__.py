"""`python -m vitwarm SUBCOMMAND ...`, as `accelerate launch -m vitwarm train` needs it."""

from vitwarm.cli import main

if __name__ == "__main__":
    main()
