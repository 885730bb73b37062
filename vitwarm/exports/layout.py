"""Names of the files in runs and exports."""

WARMUP = "warmup"  # folder of a run that holds the model as the warm-up left it
EXPORT = "export"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of weights in several files
PROVENANCE = "vitwarm.json"
CARD = "README.md"
GENERATION = "generation_config.json"
WRITTEN = (  # patterns of all that an export holds
    *(CONFIG, WEIGHTS, INDEX, "model-*-of-*.safetensors", PROVENANCE, CARD, GENERATION),
    *("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"),
)
