"""Notices that the texts a model gets are no longer those it was calibrated on. Sketches of them hold no text."""
