"""Whatever makes proposals: a language model, a command, a knob search, evolution."""
