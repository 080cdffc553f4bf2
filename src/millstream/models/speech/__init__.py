"""What models of sound need: spectra, speech and voices found in it, and the weights that packages carry."""
