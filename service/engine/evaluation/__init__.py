"""How faithful a map is to the network. Knows no method."""
