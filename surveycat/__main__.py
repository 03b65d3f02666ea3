"""`python -m surveycat` is the command `surveycat`."""

from surveycat.cli import main

main(prog_name="surveycat")
