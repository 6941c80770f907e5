"""Pygmy in turns with its peers; see bench/README.md."""
