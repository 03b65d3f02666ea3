"""Training of surveycat's networks: scenes composed from real data, the trainer and its evaluation.

Runs from the repository root (``python -m training.scenes --help``) and needs the data folder ``../shared/data``;
nothing in the package `surveycat` imports from here.
"""
