"""The evaluation, one module for each kind of picture that a preset is tried on.

`training.evaluate` is the command. A *section* is a function ``(subject, page) -> figures``: it tries the preset of a
`subject.Subject` on pictures it never saw, gives a dict that can be written as JSON, and draws on the `report.Page`.
"""
