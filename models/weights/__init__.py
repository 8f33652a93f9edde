"""The weights that come with the program; see README.md beside this file for their model card."""
