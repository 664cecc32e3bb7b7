"""The network as a functional graph: its export, the meaning of its dimensions, its splits. Nothing here knows a method."""
