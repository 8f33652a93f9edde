"""The weights that are installed with the program. README.md in this folder points to their model card."""
