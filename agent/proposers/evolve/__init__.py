"""Evolution of MatrixPolicy, the literal in train.py that says how Muon makes its update."""
