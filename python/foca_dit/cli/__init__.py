"""The `foca-dit` command."""
