"""Video in, annotated video and findings out. Never imports torch."""
