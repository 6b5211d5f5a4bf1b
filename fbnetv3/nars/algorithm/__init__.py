"""The search itself: the plan, the trials and their store, and the result."""
