"""Sources: they yield the frames of recordings, demos, capture devices and network streams."""
