"""How caches get into models. `models.py` is the table of what is supported."""
