"""Archives: many recordings processed by many workers, on one machine or on a Ray cluster."""
