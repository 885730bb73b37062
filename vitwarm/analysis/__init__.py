"""Figures of a rule's sequences; looking into a trunk: attention entropy, sizes and spectra of its matrices."""
