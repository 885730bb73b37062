"""python tools/generate.py export=FOLDER prompt="..." [tokens=50] [temperature=0] [top_k=K] [seed=0] [cache=true]

Continue a text with an exported language model (or any GPT-2 folder of transformers that holds its tokenizer).
Temperature 0 takes the most probable token each time; export=FOLDER tokenizer=FOLDER takes the tokenizer elsewhere.
"""

import sys

from vitwarm.cli import guarded
from vitwarm.errors import UserError

READ = {
    "export": str,
    "tokenizer": str,
    "prompt": str,
    "tokens": int,
    "temperature": float,
    "top_k": int,
    "seed": int,
    "cache": {"true": True, "false": False}.__getitem__,
}


def main(arguments: list[str]) -> None:
    """Read the command line, generate, print prompt and continuation."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__.strip())
        return
    given = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key in given:
            raise UserError(f"{key}= stands twice")
        if key not in READ or not equals:
            raise UserError(f"cannot use {argument!r}; known: {', '.join(f'{k}=' for k in READ)}")
        try:
            given[key] = READ[key](value)
        except (ValueError, KeyError):
            raise UserError(f"cannot use {value!r} for {key}; see --help") from None
    if missing := {"export", "prompt"} - given.keys():
        raise UserError(f"no {' and no '.join(sorted(missing))}; see --help")
    count = given.get("tokens", 50)
    if count < 1 or given.get("top_k", 1) < 1 or given.get("seed", 0) < 0 or not given.get("temperature", 0) >= 0:
        raise UserError("tokens and top_k are at least 1, temperature and seed at least 0")
    import torch  # only once the command line is known to be good

    from vitwarm.data.tokenizers import read_tokenizer
    from vitwarm.export.gpt2 import read_gpt2
    from vitwarm.trunk import generate

    decoder = read_gpt2(given["export"])
    tokenizer = read_tokenizer(given.get("tokenizer", given["export"]))
    if tokenizer.vocab_size > decoder.vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size} ids, the model {decoder.vocab_size}: not its own")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prompt = tokenizer.encode(given["prompt"]) or [tokenizer.end]
    if prompt == [None]:
        raise UserError("an empty prompt needs a tokenizer with an end-of-text id, which also begins a text")
    options = {k: given[k] for k in ("temperature", "top_k", "seed", "cache") if k in given}
    tokens = torch.tensor([prompt], device=device)
    new = generate(decoder.to(device), tokens, count, stop=tokenizer.end, **options)[0, len(prompt) :].tolist()
    if tokenizer.end in new:
        new = new[: new.index(tokenizer.end)]
    sys.stdout.write(given["prompt"] + tokenizer.decode(new) + "\n")


if __name__ == "__main__":
    guarded(main)()
