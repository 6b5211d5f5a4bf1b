"""Fine-tuning: frozen parts, learning rates by depth, settings that fit the dataset, early stopping, search tools."""
