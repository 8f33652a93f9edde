"""Jobs: what the commands do, from sources through stages to sinks."""
