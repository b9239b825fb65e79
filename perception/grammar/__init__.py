"""The grammar of spans: the automaton, its mask over logits, its form for other engines."""
