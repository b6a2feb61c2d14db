"""The generator and its clocks: sending, receiving, histograms, validity."""
