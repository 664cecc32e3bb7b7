"""A network as a functional graph: exported once, its dimensions followed, split at any layer. Knows no method."""
