"""`vitwarm generate`."""

import sys
from dataclasses import dataclass

from vitwarm.cli.words import option
from vitwarm.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Continue a text with an exported language model.

    Or with any GPT-2 folder of transformers that holds its tokenizer.
    """

    export: str = option("folder of the model", form="RUN/export")
    prompt: str = option("the text to continue", form='"TEXT"')
    tokenizer: str | None = option("folder of the tokenizer; the model's if not given", None, form="FOLDER")
    tokens: int = option("tokens to add", 50, within="[1, inf)")
    temperature: float = option("logits are divided by it; 0 takes the most probable token", 0.0, within="[0, inf)")
    top_k: int | None = option("sample among the k most probable tokens only", None, form="K", within="[1, inf)")
    seed: int = option("seed of the sampling", 0, within="[0, inf)")
    cache: bool = option("keep keys and values of earlier tokens", True)


def run(options: Options) -> None:
    """Generate; prints the prompt and its continuation."""
    import torch  # only once the command line is checked

    from vitwarm.data.tokenizers import read_tokenizer
    from vitwarm.exports.gpt2 import read_gpt2
    from vitwarm.trunk import generate

    decoder = read_gpt2(options.export)
    tokenizer = read_tokenizer(options.tokenizer or options.export)
    if tokenizer.vocab_size > decoder.vocab_size:
        raise UserError(
            f"tokenizer= has {tokenizer.vocab_size} ids, the model {decoder.vocab_size}; give the model's own"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prompt = tokenizer.encode(options.prompt)
    if not prompt and tokenizer.end is not None:
        prompt = [tokenizer.end]
    if not prompt:
        raise UserError("an empty prompt needs a tokenizer with an end-of-text id, which also begins a text")
    continued = generate(
        decoder.to(device),
        torch.tensor([prompt], device=device),
        options.tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        seed=options.seed,
        stop=tokenizer.end,
        cache=options.cache,
    )
    new = continued[0, len(prompt) :].tolist()
    if tokenizer.end in new:
        new = new[: new.index(tokenizer.end)]
    sys.stdout.write(options.prompt + tokenizer.decode(new) + "\n")
