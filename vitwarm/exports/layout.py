"""Names of the files in runs and exports."""

WARMUP = "warmup"  # folder of a run that holds the model as the warm-up left it
EXPORT = "export"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of weights in several files
PROVENANCE = "vitwarm.json"
CARD = "README.md"
