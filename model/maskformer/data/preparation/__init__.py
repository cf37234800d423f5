"""Data sets whose official archives are converted once before they can be read."""
