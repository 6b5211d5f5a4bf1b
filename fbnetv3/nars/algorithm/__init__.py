"""The search algorithm: settings, rounds of trials, early stopping, evolution, recommendations."""
