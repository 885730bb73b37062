"""Text for decoders: documents of files, tokenised once into a cache that is mapped into memory."""

from vitwarm.data.text.corpus import Corpus, open_corpus, overlap
from vitwarm.data.text.readers import TextSource

__all__ = ["Corpus", "TextSource", "open_corpus", "overlap"]
