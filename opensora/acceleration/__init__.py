"""Process groups, collectives and engines."""
