"""Presets of trained weights, a folder each; installed as `surveycat.weights`."""
