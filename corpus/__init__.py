"""Makes the data `prepare.py` serves: sources, downloads, tokenizer, token files on disk."""
