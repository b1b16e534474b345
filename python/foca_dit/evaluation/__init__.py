"""Side by side: this project's caches, the published ones and the installed ones, at equal cost.

`foca-dit eval` runs it. `metrics` says how good images are, `cost` what they took, `suite` runs the
rows; every other module holds rivals. docs/evaluation.md says what each row is.
"""
