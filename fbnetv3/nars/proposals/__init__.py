"""How a search chooses what to try next: models, acquisition functions, and Algorithm 1's rounds."""
