"""The tractable prior: probabilistic circuits over grids of tokens, their exact queries, and how they learn."""
