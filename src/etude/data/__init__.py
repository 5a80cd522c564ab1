"""From files to pixels in memory: sources, split, decode and the store."""
