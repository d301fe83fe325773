"""How the shipped tiny base was made: demonstrations in memory, plain flow matching, an auxiliary grounding loss."""
