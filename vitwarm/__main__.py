"""python -m vitwarm COMMAND ...: the console commands, as `accelerate launch -m vitwarm train` needs them."""

import sys

from vitwarm import cli

COMMANDS = {
    "train": cli.train,
    "validate": cli.validate,
    "make-shards": cli.make_shards,
    "compare": cli.compare,
}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        print(f"usage: python -m vitwarm {{{','.join(COMMANDS)}}} ...", file=sys.stderr)
        sys.exit(cli.MISTAKE)
    COMMANDS[sys.argv.pop(1)]()
