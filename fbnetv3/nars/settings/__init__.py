"""Settings of a search, and the constraints and budgets that follow from them."""
