"""Looking into a trunk: attention entropy, sizes and spectra of its matrices."""
