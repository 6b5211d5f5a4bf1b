"""Search spaces, candidates, constraints, and costs of many candidates at once."""
