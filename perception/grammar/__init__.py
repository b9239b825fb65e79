"""Which id may follow which: the automaton, its mask over logits, its form for other engines."""
